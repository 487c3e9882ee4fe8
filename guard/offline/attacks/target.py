"""Target class of a targeted attack, chosen here for all attacks."""

from __future__ import annotations

from typing import Any, Literal, get_args

import torch
from torch import Tensor

from guard.errors import ConfigError
from guard.offline.attacks.model import Model
from guard.offline.attacks.objective import without

Target = Literal["least_likely", "random", "next"]


def known_target(attack: Any) -> None:
    """Check that the target is known; None is, and means any class but the label. Raises ConfigError."""
    if attack.target is not None and attack.target not in get_args(Target):
        raise ConfigError(
            f"attack {attack.name!r}: target = {attack.target!r}; wanted one of {', '.join(get_args(Target))}, or none "
            "at all: any class but the label"
        )


def targets_of(
    target: Target | None, model: Model, inputs: Tensor, labels: Tensor, generator: torch.Generator
) -> Tensor | None:
    """Choose a target class for each item, never its label; None where any class will do.

    `least_likely` has the smallest logit of the clean input, `random` is any other, `next` the label plus one. Costs a
    forward, of one item for `random` and `next`.

    Source: Kurakin et al. 2017, arXiv:1607.02533, section 2.3 (least likely); Carlini & Wagner 2017, arXiv:1608.04644,
    section V (random), and the usual one of Xu et al. 2018, arXiv:1704.01155 (next).
    """
    if target is None:
        return None
    with torch.no_grad():
        logits = model(inputs if target == "least_likely" else inputs[:1])
    if target == "least_likely":
        return without(-logits, labels).argmax(dim=1)
    classes = logits.shape[1]
    if target == "next":
        return (labels + 1) % classes
    further = torch.randint(1, classes, labels.shape, generator=generator, device=generator.device)
    return (labels + further.to(labels.device)) % classes
