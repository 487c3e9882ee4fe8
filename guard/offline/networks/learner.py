"""Learner of a second network: one epoch at a time, so that long training can stop between epochs and go on.

Rule 1: an epoch follows from the state before it, its number and the seed; nothing global is drawn from or changed.
Rule 2: what is used in the end is the running mean of the weights, which jumps less than the weights do.

How it works. The first epochs are natural: clean items, cross-entropy. The others are robust: each batch of clean items
is learned beside the same items perturbed against the network itself, and the budget grows over the first of them.
For example 5 natural and 10 robust epochs of 45,000 items in batches of 128, budget 4/255: 352 steps an epoch; the
budget grows to 4/255 during the first 528 of the 3,520 robust steps.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from guard.errors import ModelError
from guard.offline.networks.augmentation import varied
from guard.offline.networks.one_vs_rest import few_steps, natural_loss, taught_loss, verifier_loss
from guard.offline.networks.residual import Design

NATURAL_RATE, ROBUST_RATE, LAST_RATE_SHARE = 0.1, 0.05, 0.1  # learning rates; what is left when robust epochs begin
WARM_UP_SHARE, RAMP_SHARE = 0.15, 0.15  # of the steps: until the rate has risen, until the budget has
MOMENTUM_SHARE, WEIGHT_DECAY_PENALTY, MAX_NORM_DISTANCE = 0.9, 5e-4, 5.0
MEAN_SHARE, MAX_MEAN_SHARE = 0.1, 0.998  # of all steps: what the running mean spans; most that it keeps at a step
MIN_QUICK_CHANNELS = 8  # of the first stage of a network that oneDNN computes, and whose channels lie last in memory
SEED_STEP = 1_000_003  # between the seeds of two epochs

Images = NDArray[np.float32]  # [item, ...] in unit space
Answers = Callable[[Tensor], Tensor]  # unit-space items [item, ...] -> another model's logits [item, class]


@dataclass(frozen=True)
class Course:
    """Course of training: how many epochs of each kind, and on what."""

    natural_epochs: int
    robust_epochs: int
    budget: float = 4 / 255  # of the perturbations, L-infinity in unit space
    wide: bool = True  # turned, covered, noisy and recoloured images, too
    mirror: bool = False
    taught: bool = False  # natural epochs by another model's answers to mixed items, and not by labels
    batch_items: int = 128
    bfloat16: bool = False
    seed: int = 0

    @property
    def epochs(self) -> int:
        return self.natural_epochs + self.robust_epochs


@dataclass(frozen=True, eq=False)
class Lessons:
    """Items to learn from, and the model whose answers teach, if any does."""

    images: Images
    labels: NDArray[np.int64]
    teacher: Answers | None = None

    def __len__(self) -> int:
        return len(self.labels)


class Learner:
    """A network that learns a course, with all that its next epoch needs."""

    def __init__(self, design: Design, course: Course, lessons: Lessons, device: torch.device) -> None:
        self.design, self.course, self.lessons, self.device = design, course, lessons, device
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(course.seed)
            network = design.build(normed=True)
        self.memory_format = memory_format(design)
        self.network = network.to(device)
        for parameter in self.network.parameters():
            parameter.data = in_order(parameter.data, self.memory_format)
        self.mean = copy.deepcopy(self.network).eval().requires_grad_(False)
        self.optimiser = torch.optim.SGD(
            self.network.parameters(),
            lr=NATURAL_RATE,
            momentum=MOMENTUM_SHARE,
            weight_decay=WEIGHT_DECAY_PENALTY,
            nesterov=True,
        )
        self.done_epochs = 0
        self.attack_steps = 1  # of what a robust epoch perturbs its items by

    @property
    def steps(self) -> int:
        """Steps of one epoch."""
        return max(1, len(self.lessons) // self.course.batch_items)

    def epoch(self) -> float:
        """Learn for one epoch and return its mean loss. Raises ModelError where that is no number."""
        place, course = self.done_epochs, self.course
        generator = torch.Generator().manual_seed(course.seed + SEED_STEP * (place + 1))
        losses = []
        self.network.train()
        for step, batch in enumerate(self.batches(generator)):
            losses.append(self.step(place * self.steps + step, *batch, generator))
        self.network.eval()
        self.done_epochs += 1
        mean = float(torch.stack(losses).mean())
        if not np.isfinite(mean):
            raise ModelError(
                f"the training of the second network diverged in epoch {self.done_epochs} of {course.epochs}: its "
                f"loss is {mean}; look for wrong labels or values in --second-data, or leave it out"
            )
        return mean

    def batches(self, generator: torch.Generator) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield augmented unit-space items [item, ...] and their labels [item], in a drawn order."""
        course, lessons = self.course, self.lessons
        order = torch.randperm(len(lessons), generator=generator).numpy()
        for index in np.array_split(order, self.steps):
            items = torch.from_numpy(lessons.images[index]).to(self.device)
            labels = torch.from_numpy(lessons.labels[index]).to(self.device)
            items = varied(items, generator, mirror=course.mirror, wide=course.wide)
            yield items.contiguous(memory_format=self.memory_format), labels

    def step(self, number: int, items: Tensor, labels: Tensor, generator: torch.Generator) -> Tensor:
        """Take one step and return its loss."""
        with quickly(self.design):
            return self.learn_batch(number, items, labels, generator)

    def learn_batch(self, number: int, items: Tensor, labels: Tensor, generator: torch.Generator) -> Tensor:
        """Learn one batch by whatever library torch is set to, and return its loss."""
        first_robust = self.course.natural_epochs * self.steps
        robust = number >= first_robust
        for group in self.optimiser.param_groups:
            group["lr"] = self.rate(number, first_robust, robust=robust)
        self.optimiser.zero_grad(set_to_none=True)
        loss = (
            self.robust_loss(number - first_robust, items, labels, generator)
            if robust
            else self.clean_loss(items, labels, generator)
        )
        loss.backward()
        nn.utils.clip_grad_norm_(self.network.parameters(), MAX_NORM_DISTANCE)
        self.optimiser.step()
        self.follow()
        return loss.detach()

    def clean_loss(self, items: Tensor, labels: Tensor, generator: torch.Generator) -> Tensor:
        teacher = self.lessons.teacher
        if not self.course.taught or teacher is None:
            return natural_loss(self.answer(items), labels)
        share = torch.rand((len(items), *[1] * (items.ndim - 1)), generator=generator).to(self.device)
        mixed = share * items + (1 - share) * items.roll(1, dims=0)
        with torch.no_grad():
            answers = teacher(mixed.cpu()).to(self.device)
        return taught_loss(self.answer(mixed), answers)

    def robust_loss(self, number: int, items: Tensor, labels: Tensor, generator: torch.Generator) -> Tensor:
        ramp = RAMP_SHARE * self.course.robust_epochs * self.steps
        budget = self.course.budget * min(1.0, (number + 1) / max(ramp, 1.0))
        perturbed = few_steps(self.answer, items, labels, budget, self.attack_steps, generator)
        both = torch.cat([items, perturbed]).contiguous(memory_format=self.memory_format)
        clean, attacked = self.answer(both).chunk(2)
        return verifier_loss(clean, attacked, labels)

    def answer(self, items: Tensor) -> Tensor:
        """Return logits [item, class] in float32, computed in bfloat16 where the course says so."""
        with self.precision():
            logits: Tensor = self.network(items)
        return logits.float()

    def precision(self) -> AbstractContextManager[None]:
        return torch.autocast(self.device.type, dtype=torch.bfloat16, enabled=self.course.bfloat16)

    def rate(self, number: int, first_robust: int, *, robust: bool) -> float:
        """Return the learning rate of a step: it rises, then falls, once for each kind of epoch."""
        total = (self.course.robust_epochs if robust else self.course.natural_epochs) * self.steps
        place = ((number - first_robust if robust else number) + 1) / total
        peak = ROBUST_RATE if robust else NATURAL_RATE
        last = 0.0 if robust or not self.course.robust_epochs else LAST_RATE_SHARE
        if place <= WARM_UP_SHARE:
            return peak * place / WARM_UP_SHARE
        return peak * (last + (1 - last) * (1 - place) / (1 - WARM_UP_SHARE))

    def follow(self) -> None:
        """Move the running mean towards the weights."""
        spanned = max(1.0, MEAN_SHARE * self.course.epochs * self.steps)
        keep = min(MAX_MEAN_SHARE, 1 - 1 / spanned)
        with torch.no_grad():
            for mean, now in zip(self.mean.state_dict().values(), self.network.state_dict().values(), strict=True):
                if mean.is_floating_point():
                    mean.lerp_(now, 1 - keep)
                else:
                    mean.copy_(now)

    def judged(self) -> nn.Module:
        """Return a copy on the CPU of what would be used if no further epoch came."""
        network: nn.Module = copy.deepcopy(self.mean).cpu()
        return network

    def state(self) -> dict[str, NDArray[np.float32] | NDArray[np.int64]]:
        """Return all that the next epoch needs, as a file can keep it."""
        parts: list[tuple[str, Mapping[str, Tensor]]] = [
            ("network", self.network.state_dict()),
            ("mean", self.mean.state_dict()),
            ("momentum", self.momenta()),
        ]
        state = {
            f"{part}.{name}": value.detach().cpu().numpy() for part, values in parts for name, value in values.items()
        }
        return {**state, "done_epochs": np.asarray(self.done_epochs), "attack_steps": np.asarray(self.attack_steps)}

    def momenta(self) -> dict[str, Tensor]:
        states = {name: self.optimiser.state[parameter] for name, parameter in self.network.named_parameters()}
        return {name: state["momentum_buffer"] for name, state in states.items() if "momentum_buffer" in state}

    def restore(self, state: Mapping[str, NDArray[np.float32] | NDArray[np.int64]]) -> None:
        """Go on from a state that `state` returned."""
        parts: dict[str, dict[str, Tensor]] = {"network": {}, "mean": {}, "momentum": {}}
        for name, value in state.items():
            part, _, rest = name.partition(".")
            if part in parts:
                parts[part][rest] = torch.from_numpy(np.array(value)).to(self.device)
        self.network.load_state_dict(parts["network"])
        self.mean.load_state_dict(parts["mean"])
        for name, parameter in self.network.named_parameters():
            if name in parts["momentum"]:
                kept = parts["momentum"][name]
                self.optimiser.state[parameter]["momentum_buffer"] = torch.empty_like(parameter).copy_(kept)
        self.done_epochs, self.attack_steps = int(state["done_epochs"]), int(state["attack_steps"])


def memory_format(design: Design) -> torch.memory_format:
    """Return the order in which values lie in memory: channels last for images, which is the quicker one."""
    last = len(design.item_shape) == 3 and design.width >= MIN_QUICK_CHANNELS
    return torch.channels_last if last else torch.contiguous_format


@contextmanager
def quickly(design: Design) -> Iterator[None]:
    """Compute a network by oneDNN within this context, unless it is too narrow for that.

    With fewer than eight channels the gradient of a convolution writes beyond its memory on some processors (oneDNN in
    torch 2.13.0 on an AMD EPYC, found with glibc's checks of the heap), and the process ends.
    """
    before: bool = torch._C._get_mkldnn_enabled()  # the flags' own context manager warns of cards that are not there
    torch._C._set_mkldnn_enabled(before and design.width >= MIN_QUICK_CHANNELS)
    try:
        yield
    finally:
        torch._C._set_mkldnn_enabled(before)


def in_order(values: Tensor, order: torch.memory_format) -> Tensor:
    """Return weights in memory as the values that they multiply are, where they have as many axes."""
    return values.contiguous(memory_format=order) if values.ndim == 4 else values
