"""For maintainers: what the ONNX importer makes of models x exporters x batch forms, against ONNX Runtime and torch.

    python -m tests.bench.importer
    python -m tests.bench.importer resnet20 path/to/model.onnx
    python -m tests.bench.importer module:factory --shape 3 224 224 --range -1 1

Without arguments: the networks of tests/networks.py, and Keras-style ones. A row's `output` is the largest relative L2
difference of an item to ONNX Runtime on the file. `gradient` is the median item's, and `worst` the worst's, of the
input gradient of the margin between the top two logits: to torch's own on the network before it was exported, or, for a
file alone, to differences of ONNX Runtime's outputs along 24 random directions (kinks and float32 leave about a
hundredth between the two). `torch` is how far torch itself is from float64: gradients jump where a kink is crossed.
"""

from __future__ import annotations

import argparse
import copy
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import torch
from numpy.typing import NDArray
from onnx import TensorProto
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn

from guard.errors import ModelError
from guard.offline.model.gradient.input_gradient import with_gradient
from guard.offline.model.onnx_import.graph import read_graph
from guard.offline.model.onnx_import.importer import check_import, import_onnx
from guard.offline.model.open_model import Source, build, open_model
from guard.offline.model.several_outputs import single_path
from tests import networks
from tests.onnx_files import BATCHES, EXPORTERS, KERAS, Keras, write_onnx

NETWORKS = dict.fromkeys(("resnet20", "mobilenet", "efficientnet", "vit"), (3, 32, 32)) | {"small_cnn": (1, 8, 8)}
ITEMS, DIRECTIONS = 16, 24
STEP = 0.001  # L2 in unit space; well below it float32 outputs round, above it ReLUs turn over


@dataclass(frozen=True)
class Row:
    """One file."""

    model: str
    exporter: str
    batch: str
    operators: int
    output: float  # largest relative difference of an item
    gradient: tuple[float, float]  # the median item's, and the worst's
    torch: float | None  # worst of torch's own; None where the gradient was measured on the file
    seconds: float  # to open it

    def cells(self) -> tuple[str, ...]:
        own = "-" if self.torch is None else f"{self.torch:.1e}"
        figures = (f"{self.output:.1e}", *(f"{value:.1e}" for value in self.gradient), own, f"{self.seconds:.1f}")
        return (self.model, self.exporter, self.batch, str(self.operators), *figures)


def main() -> None:
    options = parse()
    table = Table("model", "exporter", "batch", "operators", "output", "gradient", "worst", "torch", "seconds")
    console = Console(width=max(110, Console().width))
    with tempfile.TemporaryDirectory() as folder:
        for row in rows(options, Path(folder)):
            table.add_row(*row.cells())
            console.print(*row.cells(), highlight=False)
    console.print(table)


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", nargs="*", default=[*NETWORKS, "keras"], help="networks, .onnx files, module:factory")
    parser.add_argument("--shape", nargs="+", type=int, default=(3, 32, 32), help="of an item, for module:factory")
    parser.add_argument("--range", nargs=2, type=float, default=(0.0, 1.0), help="wire values, for module:factory")
    return parser.parse_args()


def rows(options: argparse.Namespace, folder: Path) -> Iterator[Row]:
    low, high = options.range
    for name in options.models:
        if name.endswith(".onnx"):
            yield of_file(name)
        elif name == "keras":
            for batch in ("item", 1, 3):
                file = KERAS.write(folder / "keras.onnx", batch=batch)
                yield of_network(
                    "keras",
                    KERAS,
                    file,
                    KERAS.shape,
                    "tf2onnx style",
                    "dynamic" if batch == "item" else f"fixed {batch}",
                )
        else:
            model = build(name) if ":" in name else getattr(networks, name)()
            shape = tuple(options.shape) if ":" in name else NETWORKS[name]
            for exporter in EXPORTERS:
                for form, batch in BATCHES.items():
                    file = write_onnx(model, folder / "model.onnx", shape, exporter=exporter, batch=batch)
                    yield of_network(name, Scaled(model, low, high), file, shape, exporter, form, low=low, high=high)


class Scaled(nn.Module):
    """A network from unit space."""

    def __init__(self, model: nn.Module, low: float, high: float) -> None:
        super().__init__()
        self.model, self.low, self.high = model, low, high

    def forward(self, unit: Tensor) -> Tensor:
        logits: Tensor = self.model(self.low + unit * (self.high - self.low))
        return logits


def of_network(
    name: str,
    model: nn.Module | Keras,
    file: Path,
    shape: tuple[int, ...],
    exporter: str,
    batch: str,
    *,
    low: float = 0.0,
    high: float = 1.0,
) -> Row:
    """A file against the network that it was made from."""
    images = random_images(shape)
    wanted = torch_gradient(model, images)
    exact = torch_gradient(copy.deepcopy(model).double(), images.double())
    opened = opened_row(Source(str(file), shape, (low,), (high,)), images)
    errors = differences(opened.gradient, wanted)
    own = float(differences(wanted, exact).max())
    gradient = (float(errors.median()), float(errors.max()))
    return Row(name, exporter, batch, opened.operators, opened.output, gradient, own, opened.seconds)


def torch_gradient(model: nn.Module, images: Tensor) -> Tensor:
    given = images.clone().requires_grad_()
    logits = model(given)
    (gradient,) = torch.autograd.grad((logits * margin(logits.detach())).sum(), given)
    return gradient


@dataclass(frozen=True)
class Opened:
    operators: int
    output: float
    gradient: Tensor
    seconds: float


def opened_row(source: Source, images: Tensor) -> Opened:
    start = time.perf_counter()
    classifier = open_model(source)
    seconds = time.perf_counter() - start
    imported = import_onnx(Path(source.model), source.item_shape)
    spec = classifier.spec.input
    difference = check_import(imported, single_path(imported.program), spec.box, items=ITEMS)
    gradient = with_gradient(classifier.graph, seed=margin)(images)[1]
    return Opened(len(imported.graph.nodes), difference, gradient, seconds)


def margin(logits: Tensor) -> Tensor:
    """The seed [item, class] of the difference between the top two logits."""
    places = torch.arange(logits.shape[1])
    first, second = (place == places for place in logits.topk(2, dim=1).indices.unsqueeze(2).unbind(1))
    return first.to(logits.dtype) - second.to(logits.dtype)


def of_file(name: str) -> Row:
    """A file against itself: its input gradient, and how ONNX Runtime's output changes along random directions."""
    graph = read_graph(Path(name))
    if None in graph.sizes[1:]:
        raise ModelError(f"{name} leaves its input's sizes open: {graph.sizes}")
    last = len(graph.sizes) == 4 and graph.sizes[3] in (1, 3)
    sizes = [int(size or 0) for size in graph.sizes[1:]]
    shape = (sizes[2], sizes[0], sizes[1]) if last else tuple(sizes)
    images = random_images(shape)[:4]
    opened = opened_row(Source(name, shape), images)
    measured, computed = along_directions(name, images, opened.gradient, last=last)
    errors = torch.from_numpy(np.linalg.norm(measured - computed, axis=0) / np.linalg.norm(measured, axis=0))
    gradient = (float(errors.median()), float(errors.max()))
    batch = "dynamic" if graph.batch is None else f"fixed {graph.batch}"
    return Row(Path(name).stem, "as it is", batch, opened.operators, opened.output, gradient, None, opened.seconds)


def along_directions(
    name: str, images: Tensor, gradient: Tensor, *, last: bool
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Slopes [direction, item] of the margin: measured on the file, and by the gradient."""
    run = runner(name, last=last)
    seed = margin(torch.from_numpy(run(images.numpy()))).numpy()
    generator = torch.Generator().manual_seed(1)
    measured, computed = [], []
    for _ in range(DIRECTIONS):
        direction = torch.randn(images.shape, generator=generator)
        direction /= direction.flatten(1).norm(dim=1).reshape(-1, *[1] * (images.dim() - 1))
        ends = [run((images + sign * STEP * direction).numpy()) for sign in (1, -1)]
        measured.append(((ends[0].astype(np.float64) - ends[1]) * seed).sum(axis=1) / (2 * STEP))
        computed.append((gradient * direction).flatten(1).sum(dim=1).double().numpy())
    return np.stack(measured), np.stack(computed)


def runner(name: str, *, last: bool) -> Callable[[NDArray[np.float32]], NDArray[Any]]:
    """The file on unit-space images; one that takes bytes is made to take any number, since it casts them anyway."""
    model = onnx.load(name)
    scale = np.float32(1)
    if model.graph.input[0].type.tensor_type.elem_type == TensorProto.UINT8:
        model.graph.input[0].type.tensor_type.elem_type = TensorProto.FLOAT
        scale = np.float32(255)
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    (given,) = session.get_inputs()

    def run(images: NDArray[np.float32]) -> NDArray[Any]:
        """Logits, up to a number an item where the file ends in a softmax."""
        wire = np.ascontiguousarray((images.transpose(0, 2, 3, 1) if last else images) * scale)
        size = given.shape[0] if isinstance(given.shape[0], int) else len(wire)
        parts = [np.resize(wire[i : i + size], (size, *wire.shape[1:])) for i in range(0, len(wire), size)]
        found = np.concatenate([session.run(None, {given.name: part})[0] for part in parts])[: len(wire)]
        probabilities = found.min() >= 0 and np.allclose(found.sum(axis=1), 1, atol=1e-4)
        return np.asarray(np.log(found) if probabilities else found)

    return run


def random_images(shape: tuple[int, ...]) -> Tensor:
    return torch.rand(ITEMS, *shape, generator=torch.Generator().manual_seed(0))


def differences(found: Tensor, wanted: Tensor) -> Tensor:
    """Relative L2 [item]."""
    return (found - wanted).flatten(1).norm(dim=1) / wanted.flatten(1).norm(dim=1)


if __name__ == "__main__":
    main()
