"""The contents of the page's pictures: risks of all kinds of items, and attacked items beside their clean selves."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np
import torch
from numpy.typing import NDArray

from guard.fusion import Floats
from guard.offline.attacks.model import Model
from guard.offline.attacks.objective import Gap
from guard.offline.data.input_kind import kind_for
from guard.offline.evaluation.attack_rows import Examined, GuardReadings
from guard.offline.evaluation.clean_rows import class_name
from guard.offline.findings.figures import Exhibit, Specimen
from guard.offline.findings.intervals import Promise
from guard.offline.programs.read import read

PICTURED_ITEMS = 6


def exhibit_of(
    guard: GuardReadings,
    examined: Mapping[str, Examined],
    promises: Sequence[Promise],
    model: Model,
    noise: NDArray[np.float32],
    names: Sequence[str],
) -> Exhibit:
    """Collect what the page's pictures are drawn from.

    `model` is what attacks run on; `noise` are unit-space items [item, ...]; `names` are the classes', if any.
    """
    shape = guard.cascade.spec.shape
    kind = kind_for(guard.cascade.spec)
    pictures = kind.drawn(shape) != "none"
    risks = guard.cascade.calibration.sorted_risks
    return Exhibit(
        thresholds={p.rate: threshold(risks, p.rate) for p in promises if p.reason is None},
        clean=guard.clean.risk,
        noise=read(guard.cascade, noise).risk,
        attacks={label: found.readings.risk for label, found in examined.items()},
        specimens=specimens(guard, examined, model, names) if pictures else (),
        reason="" if pictures else kind.drawing_note,
    )


def threshold(rising: Floats, rate: float) -> float:
    """Return the largest clean risk that still passes at the rate: a p-value is at most the rate just above it."""
    return float(rising[-math.floor(rate * (len(rising) + 1) + 1e-12)])


def specimens(
    guard: GuardReadings, examined: Mapping[str, Examined], model: Model, names: Sequence[str]
) -> tuple[Specimen, ...]:
    """Return items of as many families as there are, each another item where that is possible."""
    found: list[Specimen] = []
    used: set[str] = set()
    for label, place in chosen(examined):
        one = examined[label]
        hashes = one.crafted.hashes.tolist()
        place = next((i for i in range(place, len(hashes)) if hashes[i] not in used), place)
        used.add(hashes[place])
        found.append(specimen(guard, one, place, model, names))
    return tuple(found)


def chosen(examined: Mapping[str, Examined]) -> list[tuple[str, int]]:
    """Choose (label, place among its attacked items): first an attack a family, then the others, then further items."""
    able = [label for label, one in examined.items() if len(one.crafted)]
    first = {examined[label].crafted.family: label for label in reversed(able)}
    order = [label for label in able if label in first.values()] + [x for x in able if x not in first.values()]
    rounds = [(label, number) for number in range(PICTURED_ITEMS) for label in order]
    kept = [(label, number) for label, number in rounds if number < len(examined[label].crafted)][:PICTURED_ITEMS]
    return sorted(kept, key=lambda pair: (list(examined).index(pair[0]), pair[1]))


def specimen(guard: GuardReadings, one: Examined, place: int, model: Model, names: Sequence[str]) -> Specimen:
    crafted = one.crafted
    before, after = int(crafted.labels[place]), int(crafted.predictions[place])
    where = int(np.flatnonzero(guard.hashes == crafted.hashes[place])[0])
    return Specimen(
        attack=one.row.label,
        clean=crafted.clean[place],
        attacked=crafted.attacked[place],
        clean_map=saliency(model, crafted.clean[place], before),
        attacked_map=saliency(model, crafted.attacked[place], after),
        before=class_name(before, names),
        after=class_name(after, names),
        clean_p=float(guard.clean.p_value[where]),
        attacked_p=float(one.readings.p_value[place]),
    )


def saliency(model: Model, picture: NDArray[np.float32], answer: int) -> NDArray[np.float32]:
    """Return how fast the answer's lead over the runner-up changes with each place, in its largest channel.

    Source: Simonyan et al. 2014, arXiv:1312.6034, section 3.1; of the lead, where theirs is of the class score.
    """
    points = torch.from_numpy(picture[None])
    _, _, gradient = model.value_and_gradient(points, Gap(torch.tensor([answer])))
    return np.asarray(gradient[0].abs().amax(dim=0).numpy(), dtype=np.float32)
