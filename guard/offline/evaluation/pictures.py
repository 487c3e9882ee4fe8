"""The contents of the page's pictures: risks of all kinds of items, and attacked items beside their clean selves."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from guard.fusion import Floats
from guard.offline.attacks.model import Model
from guard.offline.attacks.objective import Gap
from guard.offline.data.dataset import Dataset
from guard.offline.data.input_kind import kind_for
from guard.offline.evaluation.attack_rows import Examined, GuardReadings
from guard.offline.evaluation.clean_rows import class_name
from guard.offline.evaluation.interpretations import grad_cam, last_layer, nearest_prototypes
from guard.offline.findings.figures import Exhibit, Specimen
from guard.offline.findings.intervals import Promise
from guard.offline.model.classifier import Classifier
from guard.offline.programs.read import read

PICTURED_ITEMS = 6
MAX_PROTOTYPE_ITEMS, BATCH_ITEMS = 1000, 100


@dataclass(frozen=True, eq=False)
class Shown:
    """What interpretations read: the model, and clean items that stand for what it knows."""

    classifier: Classifier
    prototypes: NDArray[np.float32]  # [prototype, ...] in unit space
    labels: NDArray[np.int64]  # [prototype]

    @staticmethod
    def of(classifier: Classifier, clean: Dataset) -> Shown:
        """Return the model with the first clean items of a data set as prototypes."""
        return Shown(classifier, clean.images[:MAX_PROTOTYPE_ITEMS], clean.labels[:MAX_PROTOTYPE_ITEMS])

    def looked(self, items: NDArray[np.float32], classes: Sequence[int]) -> NDArray[np.float32] | None:
        """Return where the model looked for each item's class [item, *places]; None where it has no feature maps."""
        found = grad_cam(self.classifier, torch.from_numpy(items), torch.tensor(classes))
        return None if found is None else np.asarray(found.numpy(), dtype=np.float32)

    def nearest(self, item: NDArray[np.float32]) -> tuple[NDArray[np.float32], int]:
        """Return the prototype whose last layer is nearest to that of one item [1, ...], and its class."""
        own = last_layer(self.classifier, torch.from_numpy(item))
        (place,) = nearest_prototypes(own, self.layer)[0].tolist()
        return self.prototypes[place], int(self.labels[place])

    @cached_property
    def layer(self) -> Tensor:
        """The prototypes' last layer [prototype, feature]."""
        parts = torch.from_numpy(self.prototypes).split(BATCH_ITEMS)
        return torch.cat([last_layer(self.classifier, part) for part in parts])


def exhibit_of(
    guard: GuardReadings,
    examined: Mapping[str, Examined],
    promises: Sequence[Promise],
    model: Model,
    noise: NDArray[np.float32],
    names: Sequence[str],
    shown: Shown,
) -> Exhibit:
    """Collect what the page's pictures are drawn from.

    `model` is what attacks run on; `noise` are unit-space items [item, ...]; `names` are the classes', if any; `shown`
    is what interpretations read.
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
        specimens=specimens(guard, examined, model, names, shown) if pictures else (),
        reason="" if pictures else kind.drawing_note,
    )


def threshold(rising: Floats, rate: float) -> float:
    """Return the largest clean risk that still passes at the rate: a p-value is at most the rate just above it."""
    return float(rising[-math.floor(rate * (len(rising) + 1) + 1e-12)])


def specimens(
    guard: GuardReadings, examined: Mapping[str, Examined], model: Model, names: Sequence[str], shown: Shown
) -> tuple[Specimen, ...]:
    """Return items of as many families as there are, each another item where that is possible."""
    found: list[Specimen] = []
    used: set[str] = set()
    for label, place in chosen(examined):
        one = examined[label]
        hashes = one.crafted.hashes.tolist()
        place = next((i for i in range(place, len(hashes)) if hashes[i] not in used), place)
        used.add(hashes[place])
        found.append(specimen(guard, one, place, model, names, shown))
    return tuple(found)


def chosen(examined: Mapping[str, Examined]) -> list[tuple[str, int]]:
    """Choose (label, place among its attacked items): first an attack a family, then the others, then further items."""
    able = [label for label, one in examined.items() if len(one.crafted)]
    first = {examined[label].crafted.family: label for label in reversed(able)}
    order = [label for label in able if label in first.values()] + [x for x in able if x not in first.values()]
    rounds = [(label, number) for number in range(PICTURED_ITEMS) for label in order]
    kept = [(label, number) for label, number in rounds if number < len(examined[label].crafted)][:PICTURED_ITEMS]
    return sorted(kept, key=lambda pair: (list(examined).index(pair[0]), pair[1]))


def specimen(
    guard: GuardReadings, one: Examined, place: int, model: Model, names: Sequence[str], shown: Shown
) -> Specimen:
    crafted = one.crafted
    before, after = int(crafted.labels[place]), int(crafted.predictions[place])
    where = int(np.flatnonzero(guard.hashes == crafted.hashes[place])[0])
    pair = np.stack([crafted.clean[place], crafted.attacked[place]])
    looked = shown.looked(pair, (before, after))
    nearest, its_class = shown.nearest(pair[1:])
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
        clean_looked=None if looked is None else looked[0],
        attacked_looked=None if looked is None else looked[1],
        nearest=nearest,
        nearest_class=class_name(its_class, names),
    )


def saliency(model: Model, picture: NDArray[np.float32], answer: int) -> NDArray[np.float32]:
    """Return how fast the answer's lead over the runner-up changes with each place, in its largest channel.

    Source: Simonyan et al. 2014, arXiv:1312.6034, section 3.1; of the lead, where theirs is of the class score.
    """
    points = torch.from_numpy(picture[None])
    _, _, gradient = model.value_and_gradient(points, Gap(torch.tensor([answer])))
    return np.asarray(gradient[0].abs().amax(dim=0).numpy(), dtype=np.float32)
