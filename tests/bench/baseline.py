"""For maintainers: what fourteen numbers and a random forest make of the items that a bundle was measured on.

    python -m tests.bench.baseline BUNDLE --data cifar10-test.npz

The numbers: gaps between the best logits (two) and the two best probabilities, entropy, log-sum-exp; how far the
probabilities move under 4 bits, a mean and a median; the input gradient's L1 and L2 norm and their ratio; the size of
the image's residual, and how it and its signs lie along the gradient. One forest is fitted on the clean and attacked
items of each attack alone, which is what a detector could do that knew the attack; one on all of them together. The
guard stands beside them, all on the same held-out items. It needs `BUNDLE.work`, images and three classes. What is
printed are AUROCs against all clean items; "right": against those that the model has right, as attacked ones were.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from rich.console import Console
from rich.table import Table
from sklearn.ensemble import RandomForestClassifier
from torch import Tensor
from torch.nn.functional import avg_pool2d, pad

from guard.bundle import Bundle
from guard.calibration import auroc
from guard.fusion import Floats
from guard.offline.attacks.attack import Attack
from guard.offline.crafting.crafted_set import CraftedSet
from guard.offline.crafting.engine import attack_model
from guard.offline.data.input_kind import kind_like
from guard.offline.data.splits import Split
from guard.offline.denoisers.bit_depth import BitDepth
from guard.offline.denoisers.median import Median
from guard.offline.evaluate import Wish, prepared
from guard.offline.evaluation.measure import craft_enough
from guard.offline.findings.attack_names import labels_of
from guard.offline.programs.read import read
from guard.offline.training.reopen import Work
from guard.offline.work.progress import Stages

COLUMNS = ("attack", "items", "own forest", "own forest, right", "one forest", "guard", "guard, right")
BATCH = 256
Images = NDArray[np.float32]


def main() -> None:
    options = parse()
    torch.set_num_threads(1)
    console = Console(width=120)
    bundle = Bundle.open(options.bundle)
    work = Work.beside(bundle)
    held_out, _ = work.held_out(bundle, options.data)
    subject, effort = work.subject(bundle), Wish().effort(work.directory)
    graph, grid = subject.classifier.graph, subject.cascade.spec.grid
    with Stages(console).stage("items") as progress:
        ready = prepared(work, bundle, progress)
        model = attack_model(subject.classifier, held_out.images, work.directory)
        attacks = labels_of(work.recipe.attacks, grid)
        fresh = {
            label: craft_enough(model, subject, held_out, attack, effort, progress) for label, attack in attacks.items()
        }
    clean = numbers_of(graph, ready.data.part(Split.HEADS).images)
    known = {
        label: numbers_of(graph, of_attack(ready.crafted, attack).select(ready.data.splits, Split.HEADS).attacked)
        for label, attack in attacks.items()
    }
    test = numbers_of(graph, held_out.images)
    right = graph_labels(graph, held_out.images) == held_out.labels
    risk = read(subject.cascade, held_out.images).risk
    draw = np.random.default_rng(options.seed)
    joint = forest(clean, np.concatenate(list(known.values())), options.seed)
    table = Table(*COLUMNS)
    for label, found in fresh.items():
        own = forest(some(clean, options.items, draw), some(known[label], options.items, draw), options.seed)
        attacked = numbers_of(graph, found.attacked)
        guarded = read(subject.cascade, found.attacked).risk
        alone, clean_odds = odds(own, attacked), odds(own, test)
        cells = (
            auroc(clean_odds, alone),
            auroc(clean_odds[right], alone),
            auroc(odds(joint, test), odds(joint, attacked)),
            auroc(risk, guarded),
            auroc(risk[right], guarded),
        )
        table.add_row(label, str(len(found)), *(f"{cell:.3f}" for cell in cells))
    console.print(table)


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m tests.bench.baseline", description=__doc__.splitlines()[0])
    parser.add_argument("bundle", type=Path)
    parser.add_argument("--data", type=Path, required=True, help="labelled; what the bundle knows is put aside")
    parser.add_argument("--items", type=int, default=360, help="of each kind, that a forest is fitted on")
    parser.add_argument("--seed", type=int, default=0)
    return parser.parse_args()


def of_attack(crafted: Sequence[CraftedSet], attack: Attack) -> CraftedSet:
    return next(found for found in crafted if found.attack == repr(attack))


def some(numbers: Floats, most: int, draw: np.random.Generator) -> Floats:
    return numbers[draw.permutation(len(numbers))[:most]]


def forest(clean: Floats, attacked: Floats, seed: int) -> RandomForestClassifier:
    """Both kinds weigh the same."""
    model = RandomForestClassifier(500, min_samples_leaf=2, class_weight="balanced", random_state=seed)
    return model.fit(np.concatenate([clean, attacked]), np.repeat([0, 1], [len(clean), len(attacked)]))


def odds(model: RandomForestClassifier, numbers: Floats) -> Floats:
    return np.asarray(model.predict_proba(numbers)[:, 1], dtype=np.float64)


def graph_labels(graph: torch.nn.Module, images: Images) -> NDArray[np.int64]:
    with torch.no_grad():
        return np.concatenate([graph(part).argmax(dim=1).numpy() for part in torch.from_numpy(images).split(BATCH)])


def numbers_of(graph: torch.nn.Module, images: Images) -> Floats:
    """[item, 14] of unit-space images [item, channel, height, width]."""
    parts = [torch.stack(list(fourteen(graph, part).values()), dim=1) for part in torch.from_numpy(images).split(BATCH)]
    return np.asarray(torch.cat(parts).numpy(), dtype=np.float64)


def fourteen(graph: torch.nn.Module, images: Tensor) -> Mapping[str, Tensor]:
    """Each [item]."""
    points = images.detach().requires_grad_(True)
    logits = graph(points)
    best = logits.topk(3, dim=1).values
    (slope,) = torch.autograd.grad((best[:, 0] - best[:, 1]).sum(), points)
    with torch.no_grad():
        shares = logits.softmax(dim=1)
        squeezed = [BitDepth(4)(images), mean(images), Median(2)(images)]
        moved = [(graph(other).softmax(dim=1) - shares).abs().sum(dim=1) for other in squeezed]
        top = shares.topk(2, dim=1).values
        flat, fine = slope.flatten(1), kind_like(images).residual(images).flatten(1)
        total, length = flat.abs().sum(dim=1), flat.norm(dim=1)
        return {
            "gap to the second": best[:, 0] - best[:, 1],
            "gap to the third": best[:, 0] - best[:, 2],
            "gap of the probabilities": top[:, 0] - top[:, 1],
            "entropy": -(shares * (shares + 1e-12).log()).sum(dim=1),
            "log-sum-exp": logits.logsumexp(dim=1),
            "moved by 4 bits": moved[0],
            "moved by a mean": moved[1],
            "moved by a median": moved[2],
            "gradient, L1": total,
            "gradient, L2": length,
            "sparsity": total / (length + 1e-12),
            "residual": fine.norm(dim=1),
            "residual along the gradient": (fine * flat).sum(dim=1) / (fine.norm(dim=1) * length + 1e-12),
            "signs along the gradient": (fine.sign() * flat.sign()).mean(dim=1),
        }


def mean(images: Tensor) -> Tensor:
    """Of 3 x 3 pixels."""
    return avg_pool2d(pad(images, (1, 1, 1, 1), mode="replicate"), 3, 1)


if __name__ == "__main__":
    main()
