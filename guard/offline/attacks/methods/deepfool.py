"""DeepFool: walk to the nearest boundary of the linearised model, again and again, until the answer changes."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor

from guard.errors import ConfigError
from guard.offline.attacks.attack import Family, Traits, call_text, more_than_zero, whole
from guard.offline.attacks.model import Model
from guard.offline.attacks.norm_ball import Size, part_of, per_item, spread, steepest
from guard.offline.attacks.objective import chosen, gap, without
from guard.offline.attacks.ranges import Amount, settled, take_ranges

Walk = Literal["linf", "l2"]
# Of the largest logit: a rival must lead by this, or rounding would keep the item on the boundary for ever
LEAD_SHARE = 1e-5
DUAL: Mapping[Walk, float] = {"linf": 1, "l2": 2}  # the order of the norm that says how far a boundary is


def deepfool(
    model: Model,
    inputs: Tensor,
    labels: Tensor,
    *,
    steps: int = 50,
    overshoot: Size = 0.02,
    classes: int = 10,
    norm: Walk = "l2",
) -> Tensor:
    """Return the first fooling point of each item; one that never fools ends where its steps did. Deterministic.

    Costs two forwards and min(classes, all) - 1 backwards a step, for the items that are not fooled yet.

    Source: Moosavi-Dezfooli et al. 2016, arXiv:1511.04599, algorithm 2, and section 3.3 for L-infinity. Only the
    `classes` largest logits of the clean input are looked at, as in their code. The walk is kept in the unit box, which
    theirs is not.
    """
    with torch.no_grad():
        logits = model(inputs)
    rivals = without(logits, labels).topk(min(classes, logits.shape[1]) - 1, dim=1).indices  # [item, rival]
    attacked = inputs.clone()
    walked = torch.zeros_like(inputs)  # the perturbation before overshooting
    active = (gap(logits, labels) <= 0).nonzero()[:, 0]
    for step in range(steps):
        if step > 0:
            active = active[unfooled(model, attacked[active], labels[active])]
        if len(active) == 0:
            break
        clean = inputs[active]
        behind, normals = linearise(model, attacked[active], labels[active], rivals[active])
        walked[active] = (clean + walked[active] + nearest_boundary(behind, normals, norm)).clamp(0, 1) - clean
        attacked[active] = (clean + (1 + spread(part_of(overshoot, active), clean)) * walked[active]).clamp(0, 1)
    return attacked


def unfooled(model: Model, points: Tensor, labels: Tensor) -> Tensor:
    """Return which items still get their label [item], by a forward that spares fooled items all backwards."""
    with torch.no_grad():
        return gap(model(points), labels) <= 0


def linearise(
    model: Callable[[Tensor], Tensor], points: Tensor, labels: Tensor, rivals: Tensor
) -> tuple[Tensor, Tensor]:
    """Return each rival's distance in logits from leading [item, rival], and its gain's gradient [item, rival, ...]."""
    with torch.enable_grad():
        watched = points.detach().requires_grad_()
        logits = model(watched)
        gains = logits.gather(1, rivals) - chosen(logits, labels)[:, None]
        last = rivals.shape[1] - 1
        normals = [
            torch.autograd.grad(gains[:, place].sum(), watched, retain_graph=place < last)[0]
            for place in range(rivals.shape[1])
        ]
    behind = LEAD_SHARE * logits.abs().amax(dim=1, keepdim=True) - gains
    return behind.detach(), torch.stack(normals, dim=1)


def nearest_boundary(behind: Tensor, normals: Tensor, norm: Walk = "l2") -> Tensor:
    """Return the shortest step in `norm` that makes some rival's linearised logit equal the label's."""
    item = torch.arange(len(behind), device=behind.device)
    lengths = torch.linalg.vector_norm(normals.flatten(2), ord=DUAL[norm], dim=2).clamp_min(1e-12)
    nearest = (behind / lengths).argmin(dim=1)
    reach: Tensor = behind[item, nearest] / lengths[item, nearest]
    normal: Tensor = normals[item, nearest]
    return per_item(reach, normal) * steepest(normal, norm)


@dataclass(frozen=True, repr=False)
class DeepFool:
    """DeepFool as a value, in L2 or L-infinity."""

    name: ClassVar[str] = "deepfool"
    family: ClassVar[Family] = Family.LOW_CONFIDENCE
    budget: ClassVar[float | None] = None
    traits: ClassVar[Traits] = Traits(ranges=("overshoot",))

    steps: int = 50
    overshoot: Amount = 0.02
    classes: int = 10
    norm: Walk = "l2"

    def __post_init__(self) -> None:
        take_ranges(self)
        whole(self, "steps", "classes")
        more_than_zero(self, "overshoot")
        if self.classes < 2:
            raise ConfigError(f"attack {self.name!r}: classes = {self.classes!r}; wanted 2 at least: the label is one")
        if self.norm not in DUAL:
            raise ConfigError(f"attack {self.name!r}: norm = {self.norm!r}; wanted one of {', '.join(DUAL)}")

    def __call__(self, model: Model, inputs: Tensor, labels: Tensor, generator: torch.Generator) -> Tensor:
        del generator  # nothing is drawn
        return deepfool(
            model,
            inputs,
            labels,
            steps=self.steps,
            overshoot=settled(self.overshoot),
            classes=self.classes,
            norm=self.norm,
        )

    def __repr__(self) -> str:
        return call_text(self)
