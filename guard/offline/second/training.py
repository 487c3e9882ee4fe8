"""Training of a second network: as long as the recipe says, kept after each epoch, once for all guards of a bundle.

Rule 1: the plan is made once and kept; a training that is taken up again follows it, and ends with the same weights.
Rule 2: an epoch in which a robust network began to hide its gradient is undone, and learned again against a step more;
where that does not help it ends with the epoch before.
"""

from __future__ import annotations

import hashlib
import math
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, TypeAlias, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray

from guard.errors import DeviceError, ModelError
from guard.offline.evidence.kinds.second import SecondNetwork
from guard.offline.job.job import Job
from guard.offline.job.second_settings import SecondSettings
from guard.offline.model.classifier import Classifier
from guard.offline.networks.learner import Course, Learner, Lessons
from guard.offline.networks.multiply_adds import multiply_adds
from guard.offline.networks.residual import Design, folded
from guard.offline.second.answers import named
from guard.offline.second.brought import cost
from guard.offline.second.lessons import SecondData
from guard.offline.second.verifier_check import Held, attack_verifier, check_verifier
from guard.offline.work.files import read_arrays, write_arrays
from guard.offline.work.parallel import torch_threads
from guard.offline.work.store import cache_key
from guard.offline.work.tasks import Tasks, Watch
from guard.offline.work.text import duration

FEW_ITEMS, MAX_EPOCHS_FACTOR = 20_000, 5.0  # with fewer items there are more epochs, up to so many times as many
TIMED_STEPS, MIN_EPOCHS = 2, 1
MIRROR_SHARE = 0.95  # of the model's accuracy: where it is as good on mirrored images, they have the same label
MIRRORED_ITEMS = 100
CHECKED_ITEMS, CHECK_STEPS = 300, 50  # after each epoch, and so of what is taken
MAX_ATTACK_STEPS = 4  # that a robust epoch learns against, at most
ENDED = "ended"  # in what is kept: no further epoch comes, since the network would hide its gradient
BEST = "best"  # in what is kept: the largest share of items that held against many steps after an epoch
NAME = "second"  # of the network that is trained

T = TypeVar("T")
State: TypeAlias = Mapping[str, NDArray[Any]]  # of a learner, with the marks that are kept beside it
Say = Callable[[str], None]
Progress = Callable[[object, int, int], None]  # (what, epochs done, epochs in all)


@dataclass(frozen=True)
class CoursePlan:
    """Speed of a course on this machine, and how it is computed fastest."""

    threads: int
    bfloat16: bool
    natural_epochs: int
    robust_epochs: int


@dataclass(frozen=True, eq=False)
class Training:
    """Training of one second network: what is learned, from what, and where it is kept."""

    job: Job
    classifier: Classifier
    lessons: SecondData

    @property
    def settings(self) -> SecondSettings:
        return self.job.recipe.second

    @cached_property
    def design(self) -> Design:
        """The design whose cost is nearest to what the settings say, beside the model's."""
        shape, classes = self.classifier.item_shape, self.classifier.spec.output.classes
        own = multiply_adds(self.classifier.graph, torch.zeros(1, *shape))
        return Design(shape, classes, 0).costing(self.settings.forwards * own)

    @property
    def device(self) -> torch.device:
        """The device on which the network learns; it is judged on a CPU."""
        return torch.device(self.job.runs_on.device(accelerated=True))

    @cached_property
    def key(self) -> str:
        """Cache key of the plan and of the weights, over all that they follow from but measured speeds."""
        learned = hashlib.sha256("".join(self.lessons.learned.hashes.tolist()).encode())
        learned.update(np.ascontiguousarray(self.lessons.learned.labels).tobytes())
        teacher = self.classifier.spec.fingerprint if self.settings.kind == "distilled" else ""
        mirror = self.mirror  # the model's own word, which another model may not have
        given = (
            self.design,
            self.settings,
            learned.hexdigest(),
            self.job.second_minutes,
            self.job.seed,
            mirror,
            teacher,
        )
        return cache_key((*given, self.device.type), (__name__,))

    @cached_property
    def mirror(self) -> bool:
        """Whether the model is as often right on mirrored images, so that these keep their labels."""
        some = self.lessons.held_out.take(slice(MIRRORED_ITEMS))
        straight = some.images[:]
        if straight.ndim != 4:
            return False
        mirrored = np.ascontiguousarray(straight[:, :, :, ::-1])
        plain, turned = (
            float((named(self.classifier.graph, images) == some.labels).mean()) for images in (straight, mirrored)
        )
        return turned >= MIRROR_SHARE * plain

    @cached_property
    def untrained(self) -> SecondNetwork:
        """Return a network of the design that has learned nothing: for the forecast of costs."""
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(self.job.seed)
            network = self.design.build(normed=False).eval().requires_grad_(False)
        return SecondNetwork(NAME, "untrained", cost(network, self.classifier), network)

    def most_epochs(self) -> tuple[int, int]:
        """Return the natural and robust epochs, were there time for all."""
        factor = min(MAX_EPOCHS_FACTOR, max(1.0, FEW_ITEMS / len(self.lessons.learned)))
        natural, robust = (math.ceil(factor * epochs) for epochs in self.settings.epochs)
        return natural, robust

    def course(self, pace: CoursePlan) -> Course:
        settings = self.settings
        return Course(
            pace.natural_epochs,
            pace.robust_epochs,
            settings.budget,
            settings.wide,
            self.mirror,
            settings.kind == "distilled",
            bfloat16=pace.bfloat16,
            seed=self.job.seed,
        )

    def learner(self, pace: CoursePlan, device: str) -> Learner:
        """Return a learner that has learned nothing yet. Raises DeviceError where there is no such device."""
        if device == "cuda" and not torch.cuda.is_available():
            raise DeviceError(
                "a task was given a GPU, and torch finds none; wanted a torch that is built for CUDA wherever there is "
                "a GPU, or a cluster that declares none"
            )
        learned = self.lessons.learned
        lessons = Lessons(learned.images[:], learned.labels, self.classifier)
        return Learner(self.design, self.course(pace), lessons, torch.device(device))

    def pace(self) -> CoursePlan:
        """Measure how a step is fastest, and return how many epochs fit into the minutes."""
        natural, robust = self.most_epochs()
        threads = sorted({1, self.job.runs_on.max_threads}) if self.job.threads is None else [self.job.threads]
        halves = (True,) if self.device.type == "cuda" else (False, True)
        tried = [CoursePlan(count, half, natural, robust) for count in threads for half in halves]
        seconds = {pace: self.computed(paced, (pace, self.device.type), pace) for pace in tried}
        best = min(tried, key=lambda pace: sum(seconds[pace]))
        if self.job.second_minutes is None:
            return best
        natural_s, robust_s = seconds[best]
        share = min(1.0, 60 * self.job.second_minutes / (natural * natural_s + robust * robust_s))
        kept = [max(MIN_EPOCHS, math.floor(share * epochs)) if epochs else 0 for epochs in (natural, robust)]
        return replace(best, natural_epochs=kept[0], robust_epochs=kept[1])

    def computed(self, work: Callable[[Training, Any, Watch], T], part: Any, pace: CoursePlan) -> T:
        """Compute one task of the training, on the threads and the device that it learns on."""
        tasks = Tasks(work, self, [part], threads=pace.threads, alone=True, accelerated=True)
        (found,) = self.job.runs_on.run(tasks)
        return found

    def seconds(self, pace: CoursePlan, device: str) -> tuple[float, float]:
        """Measure the seconds of a natural and of a robust epoch."""
        learner = self.learner(replace(pace, natural_epochs=1, robust_epochs=1), device)
        learner.network.train()
        generator = torch.Generator().manual_seed(0)
        batch = next(iter(learner.batches(generator)))
        found = []
        for first in (0, learner.steps):
            tries = []
            for place in range(1 + TIMED_STEPS):
                began = time.perf_counter()
                learner.step(first + place, *batch, generator)
                tries.append(time.perf_counter() - began)
            found.append(min(tries[1:]) * learner.steps)
        return found[0], found[1]

    @cached_property
    def epoch_seconds(self) -> tuple[float, float]:
        """Seconds of a natural and of a robust epoch, on one thread as measured now."""
        pace = CoursePlan(1, self.device.type == "cuda", *self.most_epochs())
        return self.computed(paced, (pace, self.device.type), pace)

    @property
    def seconds_all(self) -> float:
        """Forecast of the seconds that the training takes: no fewer than those of the epochs that it has at least."""
        natural, robust = self.most_epochs()
        natural_s, robust_s = self.epoch_seconds
        whole_s = natural * natural_s + robust * robust_s
        minutes = self.job.second_minutes
        return whole_s if minutes is None else max(min(whole_s, 60 * minutes), self.least_seconds)

    @property
    def least_seconds(self) -> float:
        """Forecast of the seconds of MIN_EPOCHS natural and as many robust epochs, where there are any."""
        return sum(
            min(MIN_EPOCHS, epochs) * seconds
            for epochs, seconds in zip(self.most_epochs(), self.epoch_seconds, strict=True)
        )

    @property
    def time(self) -> str:
        """How long the training takes, in words."""
        minutes = self.job.second_minutes
        if minutes is None:
            return f"{sum(self.most_epochs())} epochs in about {duration(self.seconds_all)}"
        if self.least_seconds > 60 * minutes:
            return (
                f"in about {duration(self.least_seconds)}, an epoch of each kind, which is more than the {minutes:.3g} "
                "min of --second-minutes"
            )
        return f"in at most {minutes:.3g} min (--second-minutes)"

    @property
    def cuts(self) -> tuple[str, ...]:
        """What was cut of the training to its minutes, in words."""
        pace, (natural, robust) = self.plan(), self.most_epochs()
        kept = read_arrays(self.job.work.second(self.key)) or {}
        if ENDED in kept:
            done, epochs = int(kept["done_epochs"]), pace.natural_epochs + pace.robust_epochs
            return (f"the second network learned for {done} of {epochs} epochs: then it began to hide its gradient",)
        if (pace.natural_epochs, pace.robust_epochs) == (natural, robust):
            return ()
        return (
            f"the second network learned for {pace.natural_epochs} natural and {pace.robust_epochs} robust epochs of "
            f"{natural} and {robust}, to end within {self.job.second_minutes:.3g} minutes",
        )

    def plan(self) -> CoursePlan:
        """Return the plan of before, or make and keep it."""
        chosen = self.job.work.choices.choice("second", self.key, lambda: list(vars(self.pace()).values()))
        return CoursePlan(*chosen)

    def in_words(self, pace: CoursePlan) -> str:
        """Say what will be trained."""
        design, kind = self.design, self.settings.kind
        numbers = sum(value.numel() for value in self.untrained.network.parameters())
        robust = f" and {pace.robust_epochs} robust" if pace.robust_epochs else ""
        most = sum(self.most_epochs())
        fewer = (
            f" (of {most}, to end within {self.job.second_minutes:.3g} min)"
            if most > sum(vars(pace)[k] for k in ("natural_epochs", "robust_epochs"))
            else ""
        )
        return (
            f"{kind} of {numbers:,} numbers, width {design.width}, "
            f"{cost_text(self.untrained.forwards)}; {pace.natural_epochs} natural{robust} "
            f"epochs{fewer} on {self.device.type}, {'bfloat16' if pace.bfloat16 else 'float32'}"
        )

    def run(self, say: Say, progress: Progress) -> SecondNetwork:
        """Train the network, or take it up again, and return it. Raises ModelError: its training diverged."""
        pace = self.plan()
        say(self.in_words(pace))
        learner = self.learned(pace, say, progress)
        with torch_threads(pace.threads):
            return self.finished(learner, pace)

    def learned(self, pace: CoursePlan, say: Say, progress: Progress) -> Learner:
        """Learn all epochs that are not kept yet, each as a task."""
        file, course = self.job.work.second(self.key), self.course(pace)
        kept = read_arrays(file)
        learner = self.learner(pace, "cpu")
        state: State = learner.state() if kept is None else kept
        done = first = int(state["done_epochs"])
        if kept is not None:
            say(f"going on after epoch {done}")
        epochs, began = course.epochs, time.monotonic()
        best = float(state[BEST]) if BEST in state else 0.0
        while done < epochs and ENDED not in state:
            progress("second network, epoch", done, epochs)
            found = self.computed(learned_epoch, EpochTask(pace, self.device.type, state), pace)
            done += 1
            said = [f"epoch {done} of {epochs}: loss {found.loss:.3f}, right on {found.right:.1%}"]
            if found.held is not None:
                said.append(str(found.held))
                if found.held.begins_to_hide(best):
                    done -= 1
                    attack_steps = int(state["attack_steps"]) + 1
                    ended = attack_steps > MAX_ATTACK_STEPS
                    marks = {BEST: np.asarray(best), **({ENDED: np.asarray(1)} if ended else {})}
                    state = {**state, "attack_steps": np.asarray(attack_steps), **marks}
                    write_arrays(file, state)
                    again = f"epoch {done} is the last" if ended else "it is learned again"
                    say(", ".join([*said, f"so it hides from {attack_steps - 1} of them; {again}"]))
                    continue
                best = max(best, found.held.many_steps)
            state = {**found.state, BEST: np.asarray(best)}
            write_arrays(file, state)
            left = (time.monotonic() - began) / (done - first) * (epochs - done)
            say(", ".join([*said, f"{duration(left)} left"]))
        learner.restore(state)
        return learner

    def right(self, learner: Learner) -> float:
        """Return the share of the held-out items that the network has right."""
        held_out = self.lessons.held_out
        return float((named(learner.judged(), held_out.images[:]) == held_out.labels).mean())

    def attacked(self, attack: Callable[..., Held], learner: Learner, items: int, steps: int) -> Held:
        """Attack the verifier in one step and in many, on held-out items."""
        some = self.lessons.held_out.take(slice(items))
        images, labels = torch.from_numpy(some.images), torch.from_numpy(some.labels)
        return attack(learner.judged(), images, labels, self.settings.budget, steps, self.job.seed)

    def finished(self, learner: Learner, pace: CoursePlan) -> SecondNetwork:
        """Return what was learned, without normalisation. Raises ModelError where it does not withstand many steps."""
        about = [
            f"{self.settings.kind}, trained on {len(self.lessons.learned):,} items",
            f"{pace.natural_epochs} natural and {learner.done_epochs - pace.natural_epochs} robust epochs",
            f"right on {self.right(learner):.1%} of {len(self.lessons.held_out):,} items beside them",
        ]
        if pace.robust_epochs:
            about.append(str(self.attacked(check_verifier, learner, CHECKED_ITEMS, CHECK_STEPS)))
        weights = {name: value.numpy() for name, value in folded(learner.mean).items()}
        return trained_network(self.design, weights, self.classifier, ", ".join(about))


@dataclass(frozen=True, eq=False)
class EpochTask:
    """Task of one epoch: the plan, the device, and the state that it begins with."""

    pace: CoursePlan
    device: str
    state: State


@dataclass(frozen=True, eq=False)
class Epoch:
    """An epoch that was learned, and how the network then stands."""

    state: State
    loss: float
    right: float  # share of the held-out items
    held: Held | None  # of a robust epoch


def learned_epoch(training: Training, task: EpochTask, watch: Watch) -> Epoch:
    """Learn one epoch from a state, and judge the network on held-out items."""
    watch.look()
    learner = training.learner(task.pace, task.device)
    learner.restore(task.state)
    loss = learner.epoch()
    held = None
    if learner.done_epochs > task.pace.natural_epochs:
        held = training.attacked(attack_verifier, learner, CHECKED_ITEMS, CHECK_STEPS)
    return Epoch(learner.state(), loss, training.right(learner), held)


def paced(training: Training, given: tuple[CoursePlan, str], watch: Watch) -> tuple[float, float]:
    """Measure the seconds of a natural and of a robust epoch of a plan on a device."""
    watch.look()
    return training.seconds(*given)


def trained_network(
    design: Design, weights: dict[str, NDArray[np.float32]], classifier: Classifier, about: str
) -> SecondNetwork:
    """Return a trained network with these weights. Raises ModelError where they are not the design's."""
    network = design.build(normed=False)
    try:
        network.load_state_dict({name: torch.from_numpy(np.array(value)) for name, value in weights.items()})
    except RuntimeError as error:
        raise ModelError(f"the kept second network has other weights than its design: {error}") from error
    network.eval().requires_grad_(False)
    return SecondNetwork(NAME, digest_of(design, weights), cost(network, classifier), network, about)


def digest_of(design: Design, weights: dict[str, NDArray[np.float32]]) -> str:
    """Return the SHA-256 (hex) of a design and its weights."""
    found = hashlib.sha256(repr(design).encode())
    for name, value in sorted(weights.items()):
        found.update(name.encode() + np.ascontiguousarray(value).tobytes())
    return found.hexdigest()


def cost_text(forwards: float) -> str:
    return f"{forwards:.2g} forwards of the model"
