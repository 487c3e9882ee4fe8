"""For maintainers: interpretation turned into attack, on a real model, against random noise of the same size.

    python -m tests.bench.interpretation path/to/model.onnx path/to/data.npz
    python -m tests.bench.interpretation model.onnx data.npz --attacks "pgd(budget=8/255)" "smoothgrad(budget=8/255)"

For each attack: the share of the first correctly classified items that it fools; the share that falls to any of its own
perturbations when their entries are put in random places with random signs; median sizes of the perturbations; and
seconds of work an item, on one thread. What an attack learns first it learns from the data's last items.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from pathlib import Path

import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor

from guard.arrays import read_examples, to_wire
from guard.offline.attacks.attack import Attack, learns
from guard.offline.attacks.informed import Informed
from guard.offline.attacks.model import Model, TorchModel
from guard.offline.attacks.noise import shuffled
from guard.offline.attacks.norm_ball import sizes
from guard.offline.attacks.table import ATTACKS
from guard.offline.crafting.engine import compiled_model
from guard.offline.model.open_model import Source, open_model
from guard.offline.work.directory import WorkDirectory

COLUMNS = ("attack", "fooled", "noise", "L∞", "L2", "values", "s/item", "s to learn")
DEFAULTS = (
    "pgd(budget=8/255)",
    "smoothgrad(budget=8/255)",
    "ig_deletion(budget=0.01)",
    "lime_surrogate(budget=8/255)",
    "lemna_surrogate(budget=8/255)",
    "substitute(budget=8/255)",
    "substitute(budget=16/255)",
    "on_manifold()",
    "feature_visualisation(budget=8/255)",
    "feature_visualisation(budget=16/255)",
)
BATCH = 64


def main() -> None:
    options = parse()
    torch.set_num_threads(1)
    examples = read_examples(options.data)
    height, width, channels = examples.images.shape[1:]  # bytes, as picture files hold them
    classifier = open_model(Source(str(options.model), (channels, height, width), grid=255))
    spec = classifier.spec.input
    images = torch.from_numpy(spec.box.to_unit(to_wire(examples.images, spec)))
    labels = torch.from_numpy(examples.labelled())
    table = Table(*COLUMNS)
    with tempfile.TemporaryDirectory() as folder:
        console = Console(width=120)
        compiled = compiled_model(classifier, images[:BATCH].numpy(), WorkDirectory(Path(folder)))
        model: Model = TorchModel(classifier.graph) if options.torch else compiled
        with torch.no_grad():
            right = model(images[: 2 * options.items]).argmax(dim=1) == labels[: 2 * options.items]
        kept = right.nonzero()[: options.items, 0]
        for text in options.attacks:
            attack = eval(text, dict(ATTACKS))
            cells = row(attack, model, images[kept], labels[kept], images[-options.learn :], labels[-options.learn :])
            console.print(*cells, highlight=False)
            table.add_row(*cells)
        console.print(table)


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path)
    parser.add_argument("data", type=Path)
    parser.add_argument("--attacks", nargs="+", default=DEFAULTS, help="as the calls that make them")
    parser.add_argument("--items", type=int, default=64)
    parser.add_argument("--learn", type=int, default=256, help="items to learn from, at most")
    parser.add_argument("--torch", action="store_true", help="attack the model in torch, not in ONNX Runtime")
    return parser.parse_args()


def row(
    attack: Attack, model: Model, images: Tensor, labels: Tensor, seen: Tensor, seen_labels: Tensor
) -> tuple[str, ...]:
    text, began = repr(attack), time.thread_time()
    if learns(attack):
        wanted = attack.learning_items
        knowledge = attack.learn(model, seen[:wanted], seen_labels[:wanted], torch.Generator().manual_seed(1))
        attack = Informed(attack, knowledge)
    learnt = time.thread_time()
    batches = zip(images.split(BATCH), labels.split(BATCH), strict=True)
    attacked = torch.cat([attack(model, own, truth, torch.Generator().manual_seed(2)) for own, truth in batches])
    seconds = (time.thread_time() - learnt) / len(images)
    noise = shuffled(images, attacked, torch.Generator().manual_seed(3))
    change = attacked - images
    return (
        text,
        f"{fooled(model, attacked, labels):.3f}",
        f"{fooled(model, noise, labels):.3f}",
        *(f"{sizes(change, norm).median():.3f}" for norm in ("linf", "l2")),
        f"{(change != 0).flatten(1).float().mean(dim=1).median():.3f}",
        f"{seconds:.3f}",
        f"{learnt - began:.0f}",
    )


def fooled(model: Model, images: Tensor, labels: Tensor) -> float:
    with torch.no_grad():
        return float((model(images).argmax(dim=1) != labels).float().mean())


if __name__ == "__main__":
    main()
