"""Adapter of foolbox and pyautoattack to our attack seam; both packages come with the extra `[attacks]`.

Rule 1: what they draw is drawn from the generator given, and no other randomness moves, on any thread.
Rule 2: neither package is imported before one of its attacks runs; building one only asks whether it is there.
Rule 3: they see float32 whatever the items are, and the model's parameters get no gradients from them.

Their classes are entered below their front doors, which would set torch's global seed and, in pyautoattack, give the
clean item back where an attack fails; here what is returned is the best point found.
"""

from __future__ import annotations

import importlib
import logging
import os
import re
import warnings
from collections.abc import Callable
from contextlib import suppress
from importlib.util import find_spec
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from guard.errors import ConfigError
from guard.offline.attacks.attack import Attack
from guard.offline.attacks.methods.deepfool import linearise
from guard.offline.attacks.methods.pgd import keep, rank
from guard.offline.attacks.model import Model
from guard.offline.attacks.norm_ball import into_reach, per_item, sizes
from guard.offline.data.norms import Norm

Loss = Literal["ce", "dlr"]
NAMES = {"linf": "Linf", "l2": "L2", "l1": "L1"}  # as pyautoattack spells them
QUIET = logging.Logger("pyautoattack", logging.CRITICAL)  # pyautoattack warns of items whose gradient is zero
DRAWS = {torch.rand, torch.randn, torch.randn_like}
START_IMAGES = 50  # uniform images, and as many other items, asked for an answer that is not an item's label
BISECTION_STEPS = 10  # from the start found to the boundary
MIN_SCHEDULED_STEPS = 10  # from this many steps on an L1 walk begins in larger balls
LABEL_DISTANCE = 1e10  # the label's own distance: further than any boundary


def installed(attack: Attack) -> None:
    """Check that the package that runs the attack is installed. Raises ConfigError."""
    package = attack.traits.package
    if package is not None and find_spec(package) is None:
        raise ConfigError(
            f"attack {attack.name!r} is run by the package {package!r}, which is not installed; "
            "pip install 'inference-guard[attacks]'"
        )


def foolbox() -> Any:
    """Import foolbox quietly: it imports GitPython, which fails without git, and a name that SciPy drops."""
    os.environ.setdefault("GIT_PYTHON_REFRESH", "quiet")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        return importlib.import_module("foolbox")


class Drawing(TorchFunctionMode):
    """Context in which this thread's draws come from one generator; other threads are not concerned."""

    def __init__(self, generator: torch.Generator) -> None:
        super().__init__()
        self.generator = generator

    def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        settings = dict(kwargs or {})
        if function in DRAWS:
            if function is torch.randn_like:
                like, function = args[0], torch.randn
                args, settings = like.shape, {"dtype": like.dtype, "device": like.device}
            device = settings.pop("device", "cpu")
            return function(*args, **settings, generator=self.generator, device=self.generator.device).to(device)
        return function(*args, **settings)


class Asked(nn.Module):
    """Model as these packages want it: a module of float32 whose parameters they cannot reach."""

    def __init__(self, model: Model, dtype: torch.dtype) -> None:
        super().__init__()
        self.ask: Callable[[Tensor], Tensor] = lambda points: model(points.to(dtype)).to(torch.float32, copy=True)
        self.eval()

    def forward(self, points: Tensor) -> Tensor:
        return self.ask(points)


def apgd(
    model: Model,
    inputs: Tensor,
    labels: Tensor,
    *,
    budget: float,
    steps: int,
    starts: int,
    generator: torch.Generator,
    norm: Norm = "linf",
    loss: Loss = "ce",
) -> Tensor:
    """Run Auto-PGD, which sets its own step; return the best point of all starts, ranked as our own PGD ranks them.

    Costs steps + 1 forwards and backwards a start, and two forwards. Raises ValueError for "dlr" with two classes.

    Source: Croce & Hein 2020, arXiv:2003.01690; L1: 2021, arXiv:2103.01208, its three balls in turn.
    """
    points = inputs.detach().float()
    with torch.no_grad():
        classes = model(inputs[:1]).shape[1]
    if loss == "dlr" and classes < 3:
        raise ValueError(f"apgd: loss 'dlr' compares three classes, and the model has {classes}; take 'ce'")
    walk = importlib.import_module("pyautoattack.autopgd_base").APGDAttack(
        Asked(model, inputs.dtype),
        n_iter=steps,
        norm=NAMES[norm],
        eps=budget,
        loss=loss,
        device=inputs.device,
        logger=QUIET,
    )
    walk.init_hyperparam(points)
    best, best_rank = inputs, torch.full((len(inputs),), -torch.inf, dtype=torch.float64, device=inputs.device)
    for _ in range(starts):
        with Drawing(generator):
            highest, _, _, fooling = apgd_start(walk, points, labels, budget, steps, norm)
        for found in (fooling, highest):
            found = into_reach(found.detach().to(inputs.dtype), inputs, budget, norm)
            with torch.no_grad():
                ranks = rank(model(found), labels, None)
            best, best_rank = keep(best, best_rank, found, ranks)
    return best


def apgd_start(walk: Any, points: Tensor, labels: Tensor, budget: float, steps: int, norm: Norm) -> Any:
    """Run one start of Auto-PGD; in L1 first through balls of three times and twice the budget, as AutoAttack does."""
    if norm != "l1" or steps < MIN_SCHEDULED_STEPS:
        return walk.attack_single_run(points, labels)
    large = -(-3 * steps // 10)
    return walk.decr_eps_pgd(points, labels, [3 * budget, 2 * budget, budget], [large, large, steps - 2 * large])


def square(
    model: Model,
    inputs: Tensor,
    labels: Tensor,
    *,
    budget: float,
    queries: int,
    generator: torch.Generator,
    norm: Norm = "linf",
) -> Tensor:
    """Run the Square attack: random squares of the whole budget, kept where they make the answer worse.

    Each item is asked at most `queries` times. Images [item, channel, height, width] alone. Source: Andriushchenko et
    al. 2020, arXiv:1912.00049.
    """
    places = inputs.shape[2:]  # Square throws squares on planes
    if len(places) != 2 or (norm != "linf" and min(places) < 5):
        wanted = "images" if norm == "linf" else "images of at least 5 by 5 pixels"
        raise ValueError(f"square in {norm} wants {wanted} [item, channel, height, width]; got {tuple(inputs.shape)}")
    points = inputs.detach().float()
    search = importlib.import_module("pyautoattack.square").SquareAttack(
        Asked(model, inputs.dtype), norm=NAMES[norm], n_queries=queries - 1, eps=budget, device=inputs.device
    )
    search.init_hyperparam(points)
    with Drawing(generator):
        _, found = search.attack_single_run(points, labels)
    return into_reach(found.to(inputs.dtype), inputs, budget, norm)


def fab(model: Model, inputs: Tensor, labels: Tensor, *, steps: int, norm: Norm = "linf", classes: int = 10) -> Tensor:
    """Return the smallest fooling point on a walk along the boundary; the clean item where there is none.

    Deterministic. Costs a forward and min(classes, all) backwards a step, and a forward. Only the `classes` largest
    logits of each point are looked at. FAB's own gradients would add to the parameters'.

    Source: Croce & Hein 2020, arXiv:1907.02044. Random restarts are left out.
    """
    asked = Asked(model, inputs.dtype)

    def rivals(points: Tensor, own: Tensor) -> tuple[Tensor, Tensor]:
        """Return how far rivals lead in logits [item, class], the label itself first, and the gradients of that."""
        with torch.no_grad():
            logits = asked(points)
        ranked = logits.scatter(1, own[:, None], torch.inf).topk(min(classes, logits.shape[1]), dim=1).indices
        behind, gains = linearise(asked, points, own, ranked)
        ahead = -behind
        ahead[:, 0] = LABEL_DISTANCE
        return ahead, gains

    walk = importlib.import_module("pyautoattack.fab_base").FABAttack(
        norm=NAMES[norm], n_iter=steps, device=inputs.device
    )
    walk._predict_fn = asked
    walk._get_predicted_label = lambda points: answers(asked, points)
    walk.get_diff_logits_grads_batch = rivals
    found: Tensor = walk.attack_single_run(inputs.detach().float(), labels)
    return found.to(inputs.dtype).clamp(0, 1)


def answers(model: Callable[[Tensor], Tensor], points: Tensor) -> Tensor:
    with torch.no_grad():
        return model(points).argmax(dim=1)


class SpentError(Exception):
    """Exception that ends a search: the query budget is used up."""


class Ledger(nn.Module):
    """Model for attacks on answers alone: it counts the queries, and keeps each item's nearest fooling point.

    Every query is for all items of `rows`, so that one count is every item's.
    """

    def __init__(self, model: Model, clean: Tensor, labels: Tensor, queries: int) -> None:
        super().__init__()
        self.asked, self.clean, self.labels = Asked(model, clean.dtype), clean.detach().float(), labels
        self.left = queries
        self.rows = torch.arange(len(clean), device=clean.device)
        self.best = self.clean.clone()
        self.distance = self.clean.new_full((len(clean),), torch.inf)
        self.eval()

    def forward(self, points: Tensor) -> Tensor:
        if self.left == 0:
            raise SpentError
        self.left -= 1
        with torch.no_grad():
            logits: Tensor = self.asked(points)
        distance = sizes(points - self.clean[self.rows], "l2")
        better = (logits.argmax(dim=1) != self.labels[self.rows]) & (distance < self.distance[self.rows])
        self.best[self.rows[better]], self.distance[self.rows[better]] = points[better], distance[better]
        return logits

    @property
    def fooled(self) -> Tensor:
        return self.distance.isfinite()


def start(ledger: Ledger, generator: torch.Generator) -> None:
    """Find a fooling point on the boundary for each item where possible, and narrow the ledger down to those items.

    foolbox would end the whole batch where one item's start fails; uniform images often all get the same answer.
    """
    for _ in range(START_IMAGES):
        if ledger.fooled.all():
            break
        ledger(torch.rand(ledger.clean.shape, generator=generator, device=generator.device).to(ledger.clean.device))
    for shift in range(1, min(len(ledger.clean), START_IMAGES)):
        if ledger.fooled.all():
            break
        ledger(ledger.clean.roll(shift, 0))
    ledger.rows = ledger.fooled.nonzero()[:, 0]
    clean, far = ledger.clean[ledger.rows], ledger.best[ledger.rows]
    low = torch.zeros_like(ledger.distance[ledger.rows])
    high = torch.ones_like(low)
    for _ in range(BISECTION_STEPS if len(ledger.rows) else 0):
        middle = (low + high) / 2
        logits = ledger(clean + per_item(middle, clean) * (far - clean))
        fooled = logits.argmax(dim=1) != ledger.labels[ledger.rows]
        low, high = torch.where(fooled, low, middle), torch.where(fooled, middle, high)


def ignore_mean_of_nothing() -> None:
    """Ignore one of foolbox's warnings, for the whole process, once: a filter for a thread alone there is none.

    An item whose counts foolbox has just cleared has a mean of nothing; it looks at that only where it has counts.
    """
    text, module = "Mean of empty slice", r"foolbox\.attacks\.boundary_attack"
    wanted = ("ignore", re.compile(text, re.IGNORECASE), RuntimeWarning, re.compile(module), 0)
    if wanted not in warnings.filters:
        warnings.filterwarnings("ignore", text, RuntimeWarning, module)


def decide(search: Any, ledger: Ledger, generator: torch.Generator) -> Tensor:
    """Run a foolbox search until the ledger is spent; return each item's nearest fooling point, or the clean item."""
    ignore_mean_of_nothing()
    # foolbox asserts that points still fool after rounding; one that does not ends the search, and not what it found.
    with suppress(SpentError, AssertionError), torch.no_grad():
        start(ledger, generator)
        rows = ledger.rows
        if len(rows):
            package = foolbox()
            model = package.PyTorchModel(ledger, bounds=(0, 1), device=ledger.clean.device)
            goal = package.Misclassification(ledger.labels[rows])
            with Drawing(generator):
                search.run(model, ledger.clean[rows], goal, starting_points=ledger.best[rows])
    return ledger.best


def hop_skip_jump(
    model: Model, inputs: Tensor, labels: Tensor, *, queries: int, evaluations: int, generator: torch.Generator
) -> Tensor:
    """Return the nearest fooling point of a walk along the boundary, by gradients estimated from answers. L2.

    `evaluations` answers estimate the first gradient, growing with the root of the step. Each item is asked at most
    `queries` times.

    Source: Chen et al. 2020, arXiv:1904.02144. The estimate is ours: foolbox 3.3.4 divides it by the length of all
    items' gradients together, which shortens every item's step in a batch, and holds all its draws in memory.
    """
    ledger = Ledger(model, inputs, labels, queries)
    search = foolbox().attacks.HopSkipJumpAttack(steps=queries, initial_gradient_eval_steps=evaluations)
    search.approximate_gradients = estimate
    return decide(search, ledger, generator).to(inputs.dtype)


def estimate(fooling: Callable[[Any], Any], points: Any, count: int, radius: Any) -> Any:
    """Estimate the boundary's unit normal at each point from `count` answers at `radius` [item]; eagerpy tensors."""
    centre = points.raw
    reach = per_item(radius.raw, centre)
    signed, plain, balance = torch.zeros_like(centre), torch.zeros_like(centre), torch.zeros_like(radius.raw)
    for _ in range(count):
        draw = torch.randn(centre.shape, dtype=centre.dtype, device=centre.device)
        asked = (centre + reach * draw / per_item(sizes(draw, "l2"), draw)).clamp(0, 1)
        direction = (asked - centre) / reach.clamp_min(1e-12)
        sign = torch.where(fooling(type(points)(asked)).raw, 1.0, -1.0)
        signed, plain, balance = signed + per_item(sign, centre) * direction, plain + direction, balance + sign
    mean = balance / count
    baseline = torch.where(mean.abs() == 1, 0, mean)  # where all answers agree there is nothing to take off
    normal = signed - per_item(baseline, centre) * plain
    return type(points)(normal / per_item(sizes(normal, "l2").clamp_min(1e-12), normal))


def boundary(model: Model, inputs: Tensor, labels: Tensor, *, queries: int, generator: torch.Generator) -> Tensor:
    """Return the nearest fooling point of a random walk along the boundary towards the clean item. L2.

    Each item is asked at most `queries` times. Source: Brendel et al. 2018, arXiv:1712.04248.
    """
    ledger = Ledger(model, inputs, labels, queries)
    search = foolbox().attacks.BoundaryAttack(steps=queries)
    return decide(search, ledger, generator).to(inputs.dtype)
