"""For maintainers: which of torch's operators a model may hold: as they are, through ONNX, or not at all, and why.

    python -m tests.bench.operators                all, some 5 minutes of processor time
    python -m tests.bench.operators roll sort      these
    python -m tests.bench.operators --quick        eight

Each is a small network around one operator, exported as `.pt2`, opened, and its gradient compared with torch's. It ends
with 1 where one opens with another gradient than torch's, or ends in anything but a refusal.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
import warnings
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from rich.console import Console
from rich.table import Table

from guard.errors import ModelError
from guard.offline.model.gradient.coverage import without_adjoint
from guard.offline.model.open_model import Source
from guard.offline.model.several_outputs import single_path
from tests.zoo.operators import OPERATORS, SHAPE, Network
from tests.zoo.trial import COMPARED_ITEMS, opened

QUICK = ("relu6", "square", "sin", "max_dim", "roll", "fft", "adaptive_avg_pool", "zeroed")
AS_IT_IS, BY_ONNX, REFUSED, WRONG = "as it is", "through ONNX", "refused", "wrong"


@dataclass(frozen=True)
class Row:
    """What became of one network."""

    operator: str
    way: str
    error: float  # of the gradient, relative L2 of the median item
    seconds: float
    message: str

    def cells(self) -> tuple[str, ...]:
        error = "-" if self.way == REFUSED else f"{self.error:.0e}"
        return (self.operator, self.way, error, f"{self.seconds:.1f}", self.message)


def main() -> int:
    options = parse()
    names = options.operators or (QUICK if options.quick else tuple(OPERATORS))
    if unknown := [name for name in names if name not in OPERATORS]:
        sys.exit(f"no operator {unknown[0]!r}; there are: {', '.join(OPERATORS)}")
    warnings.simplefilter("ignore")
    with tempfile.TemporaryDirectory() as folder:
        rows = [tried(name, Path(folder) / f"{name}.pt2") for name in names]
    return report(rows)


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("operators", nargs="*", help="names; all unless given")
    parser.add_argument("--quick", action="store_true")
    return parser.parse_args()


def tried(name: str, file: Path) -> Row:
    """Export the network of one operator, open the file, and compare its gradient with torch's."""
    network = Network(OPERATORS[name]).eval()
    images = torch.rand(COMPARED_ITEMS, *SHAPE, generator=torch.Generator().manual_seed(0))
    batch = torch.export.Dim("batch")
    program = torch.export.export(network, (images[:2],), dynamic_shapes=({0: batch},))
    torch.export.save(program, file)
    known = is_known(file)
    began = time.perf_counter()
    got = opened(file, network, images, Source(str(file), SHAPE))
    seconds = time.perf_counter() - began
    way = AS_IT_IS if known else BY_ONNX
    if got.classifier is None:
        way = REFUSED
    elif not got.gradient_agrees:
        way = WRONG
    return Row(name, way, got.gradient_error, seconds, got.message)


def is_known(file: Path) -> bool:
    """Tell whether every operator of an exported program has an adjoint."""
    try:
        return not without_adjoint(single_path(torch.export.load(file)))
    except ModelError:
        return False


def report(rows: Sequence[Row]) -> int:
    table = Table("operator", "opens", "gradient", "seconds", "why not")
    console = Console(width=max(160, Console().width))
    for row in rows:
        table.add_row(*row.cells())
    console.print(table)
    counts = Counter(row.way for row in rows)
    ways = ", ".join(f"{counts[way]} {way}" for way in (AS_IT_IS, BY_ONNX, REFUSED, WRONG))
    console.print(f"{len(rows)} operators: {ways}; {sum(row.seconds for row in rows):.0f} s", highlight=False)
    return int(counts[WRONG] > 0)


if __name__ == "__main__":
    sys.exit(main())
