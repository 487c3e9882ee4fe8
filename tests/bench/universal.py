"""For maintainers: what one perturbation, patch or frame does to items it was not learned from, against random ones.

    python -m tests.bench.universal path/to/model.onnx path/to/data.npz

Learned from --learn items and tried on --items others, all of which the model has right, by ONNX Runtime where the
attack works with it and on one thread. A random one has the same size: signs in a ball, or content of a patch or frame.
"""

from __future__ import annotations

import argparse
import math
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from guard.arrays import read_examples, to_wire
from guard.offline.attacks.attack import Attack, learns
from guard.offline.attacks.informed import Informed
from guard.offline.attacks.methods.frame import Frame, UniversalFrame, border
from guard.offline.attacks.methods.gd_uap import GdUap
from guard.offline.attacks.methods.patch import Patch
from guard.offline.attacks.methods.uap import Uap
from guard.offline.attacks.model import Model, TorchModel
from guard.offline.attacks.norm_ball import sizes
from guard.offline.crafting.onnx_model import open_compiled
from guard.offline.findings.intervals import wilson
from guard.offline.model.open_model import Source, open_model
from guard.offline.work.text import short

DRAWS = 5  # of random ones
EPSILON = 10 / 255
ATTACKS: tuple[Attack, ...] = (
    Uap(EPSILON),
    Uap(EPSILON, form="deepfool", epochs=1),
    Uap(2.0, norm="l2"),
    GdUap(EPSILON),
    Patch(0.05),
    Patch(0.1),
    UniversalFrame(0.1211),
    UniversalFrame(0.2344),
    Frame(0.1211),
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("data", type=Path)
    parser.add_argument("--learn", type=int, default=256)
    parser.add_argument("--items", type=int, default=500)
    parser.add_argument("--seeds", type=int, default=2)
    options = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        model, images, labels = opened(options.model, options.data, options.learn + options.items, Path(folder))
        parts = [(images[: options.learn], labels[: options.learn]), (images[options.learn :], labels[options.learn :])]
        print(f"{'attack':<56}{'success on others':>24}{'own':>7}{'random':>8}{'learn s':>9}{'s/item':>9}")
        for attack in ATTACKS:
            print(line(attack, model, *parts, options.seeds), flush=True)


def opened(source: str, data: Path, items: int, folder: Path) -> tuple[Model, Tensor, Tensor]:
    """The compiled model, and so many items that it has right."""
    examples = read_examples(data)
    shape = (examples.images.shape[3], *examples.images.shape[1:3])
    classifier = open_model(Source(source, shape, grid=255))
    wire = to_wire(examples.images[: 2 * items], classifier.spec.input, examples.source)
    images = np.clip(classifier.spec.input.box.to_unit(wire), 0, 1)
    labels = torch.from_numpy(examples.labelled()[: 2 * items])
    model = open_compiled(classifier, images, folder)
    right = answers(model, torch.from_numpy(images)) == labels
    return model, torch.from_numpy(images)[right][:items], labels[right][:items]


def answers(model: Model, images: Tensor) -> Tensor:
    with torch.no_grad():
        return torch.cat([model(batch).argmax(dim=1) for batch in images.split(64)])


def line(attack: Attack, model: Model, own: tuple[Tensor, Tensor], others: tuple[Tensor, Tensor], seeds: int) -> str:
    """Over all seeds; time is that of learning, and of attacking an item with its share of the learning."""
    learning, attacking, hits, mine = 0.0, 0.0, 0, []
    for seed in range(seeds):
        generator, ready = torch.Generator().manual_seed(seed), attack
        began = time.perf_counter()
        if learns(attack):
            ready = Informed(attack, attack.learn(model, *own, generator))
        between = time.perf_counter()
        attacked = ready(model, *others, generator)
        attacking += time.perf_counter() - between
        learning += between - began
        hits += int((answers(model, attacked) != others[1]).sum())
        mine.append(float((answers(model, ready(model, *own, generator)) != own[1]).float().mean()))
    tried = seeds * len(others[0])
    low, high = wilson(hits, tried)
    chance = [float((answers(model, moved) != others[1]).float().mean()) for moved in random_ones(attack, others[0])]
    an_item = attacking / tried + learning / (seeds * len(own[0]))
    rate = f"{hits / tried:.3f} [{low:.3f}, {high:.3f}]"
    seconds = f"{learning / seeds:>9.1f}{an_item:>9.4f}"
    return f"{short(repr(attack), 55):<56}{rate:>24}{np.mean(mine):>7.3f}{np.mean(chance):>8.3f}{seconds}"


def random_ones(attack: Attack, inputs: Tensor) -> Iterator[Tensor]:
    """Items with something random of the attack's size."""
    for seed in range(DRAWS):
        generator = torch.Generator().manual_seed(seed)
        if attack.norm in ("linf", "l2"):
            signs = torch.randn(inputs.shape[1:], generator=generator).sign()[None]
            size = 1.0 if attack.norm == "linf" else float(sizes(signs, "l2"))
            yield (inputs + (attack.budget or math.nan) / size * signs).clamp(0, 1)
        elif isinstance(attack, Patch):
            ready = Informed(attack, {"patch": attack.blank(inputs, generator)})
            yield ready(
                TorchModel(lambda images: images), inputs, torch.zeros(len(inputs), dtype=torch.int64), generator
            )
        else:
            taken = border(inputs, attack.budget or 0.0, attack)
            yield torch.where(taken, torch.rand(inputs.shape[1:], generator=generator), inputs)


if __name__ == "__main__":
    main()
