"""For maintainers: each attack of ours against foolbox's, torchattacks', ART's and adv-lib's, on the same items.

    python -m tests.side attacks
    python -m tests.bench.attacks ../shared/models/cifar10-resnet20.onnx --data ../shared/data/cifar10-test.npz

Items are those that the model gets right, the same for all. Contenders take turns on each batch, on one thread, and
what is timed is processor time, which other work on the machine hardly touches. A library runs the model in torch; ours
does, and also on ONNX Runtime, as `guard train` does where that is faster. Every result is judged alike, in torch: it
fools, and lies in the box and the ball. What is between two contenders is formed item by item; intervals are
bootstrapped, 95 %. Each batch's results are kept in --out, and a run that was interrupted goes on from there.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from guard.arrays import read_examples, to_wire
from guard.offline.attacks.attack import Attack
from guard.offline.attacks.model import Model, TorchModel
from guard.offline.attacks.norm_ball import sizes
from guard.offline.attacks.target import targets_of
from guard.offline.bench.stopwatch import turns
from guard.offline.crafting.onnx_model import open_compiled
from guard.offline.model.open_model import Source, open_model
from tests.bench.attack_peers import SLOW, Contest, Entrant, contests

OURS, COMPILED = "ours", "ours, compiled"
DRAWS, SLACK = 2000, 1e-5


def main() -> None:
    options = parse()
    torch.set_num_threads(1)
    classifier = open_model(Source(options.model, tuple(options.shape), grid=255))
    examples = read_examples(options.data)
    images = torch.from_numpy(to_wire(examples.images, classifier.spec.input))
    labels = torch.from_numpy(examples.labels)
    with torch.no_grad():
        right = torch.cat([classifier(part).argmax(dim=1) for part in images.split(256)]) == labels
    images, labels = images[right][: options.items], labels[right][: options.items]
    compiled = open_compiled(classifier, images.numpy(), options.out / "compiled")
    found = [
        contest
        for contest in contests(classifier.graph, tuple(options.shape), classifier.spec.output.classes)
        if not options.only or contest.name in options.only
    ]
    bench = Bench(TorchModel(classifier.graph), compiled, images, labels, options.batch, options.out, options.slow)
    until = time.monotonic() + 60 * options.minutes
    for contest in found:
        if not bench.run(contest, until):
            print(f"--minutes {options.minutes:g} are over within {contest.name}; the same command goes on from there")
            break
    report([(contest, rows) for contest in found if (rows := bench.kept(contest))], options.out)


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", help="a .onnx or .pt2 file")
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--items", type=int, default=512, help="that the model gets right")
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--shape", type=int, nargs="+", default=(3, 32, 32))
    parser.add_argument("--only", nargs="+", help="contests, by name")
    parser.add_argument("--slow", action="store_true", help="also those that take ten times as long and more")
    parser.add_argument("--minutes", type=float, default=1e9, help="begin no batch after that many")
    parser.add_argument("--out", type=Path, default=Path("attack-bench"))
    return parser.parse_args()


@dataclass(frozen=True)
class Row:
    """What one contender made of one batch."""

    batch: int
    contender: str
    seconds: float
    success: tuple[bool, ...]
    size: tuple[float, ...]


@dataclass(frozen=True, eq=False)
class Bench:
    """The model, the items, and where the rows are kept."""

    plain: Model
    compiled: Model
    images: Tensor
    labels: Tensor
    batch: int
    out: Path
    slow: bool

    def run(self, contest: Contest, until: float) -> bool:
        """Every batch that is not there yet; False where the time was over first."""
        done = {(row.batch, row.contender) for row in self.kept(contest)}
        entrants = self.entrants(contest)
        for number, (images, labels) in enumerate(self.batches()):
            targets = targets_of(
                "least_likely" if contest.aimed else None, self.plain, images, labels, torch.Generator()
            )
            for place in turns(len(entrants), number):
                name = list(entrants)[place]
                if (number, name) in done:
                    continue
                if time.monotonic() > until:
                    return False
                row = self.lap(contest, number, name, entrants[name], (images, labels, targets))
                with self.file(contest).open("a", encoding="utf-8") as file:
                    file.write(json.dumps(vars(row)) + "\n")
        return True

    def entrants(self, contest: Contest) -> Mapping[str, Entrant]:
        theirs = {name: run for name, run in contest.peers.items() if self.slow or not name.startswith(SLOW)}
        return {OURS: entrant(contest.ours, self.plain), COMPILED: entrant(contest.ours, self.compiled), **theirs}

    def batches(self) -> Iterator[tuple[Tensor, Tensor]]:
        return zip(self.images.split(self.batch), self.labels.split(self.batch), strict=True)

    def lap(
        self, contest: Contest, number: int, name: str, run: Entrant, given: tuple[Tensor, Tensor, Tensor | None]
    ) -> Row:
        torch.manual_seed(number)
        np.random.seed(number)  # noqa: NPY002  ART draws from it
        images, labels, targets = given
        began = time.process_time()
        attacked = run(images.clone(), labels.clone(), targets)
        seconds = time.process_time() - began
        with torch.no_grad():
            answers = self.plain(attacked).argmax(dim=1)
        size = sizes(attacked.detach() - images, contest.norm)  # type: ignore[arg-type]
        fooled = answers != labels if targets is None else answers == targets
        fooled &= ((attacked >= 0) & (attacked <= 1)).flatten(1).all(dim=1)
        if contest.ours.budget is not None:
            fooled &= size <= contest.ours.budget * (1 + SLACK)
        return Row(number, name, seconds, tuple(fooled.tolist()), tuple(size.tolist()))

    def file(self, contest: Contest) -> Path:
        return self.out / f"{contest.name.replace(' ', '-')}.jsonl"

    def kept(self, contest: Contest) -> list[Row]:
        """The rows of these settings; a file of others is removed."""
        head = {"settings": contest.settings, "items": len(self.images), "batch": self.batch}
        file = self.file(contest)
        lines = file.read_text("utf-8").splitlines() if file.is_file() else []
        if not lines or json.loads(lines[0]) != head:
            self.out.mkdir(parents=True, exist_ok=True)
            file.write_text(json.dumps(head) + "\n", encoding="utf-8")
            return []
        return [Row(**json.loads(line)) for line in lines[1:]]


def entrant(attack: Attack, model: Model) -> Entrant:
    def run(images: Tensor, labels: Tensor, targets: Tensor | None) -> Tensor:
        del targets  # it chooses them itself
        return attack(model, images, labels, torch.Generator().manual_seed(0))

    return run


def report(found: Sequence[tuple[Contest, list[Row]]], out: Path) -> None:
    """The table, and the same as JSON."""
    print(f"{'':30}{'success, %':>13}{'difference in points':>21}{'times as fast':>15}")
    print(f"{'attack':17}{'against':13}{'ours':>6}{'theirs':>7}{'or size, as a ratio':>21}{'torch':>6}{'compiled':>9}")
    table = []
    for contest, rows in found:
        for peer in dict.fromkeys(row.contender for row in rows):
            if peer not in (OURS, COMPILED):
                line = compared(contest, rows, peer)
                if line is not None:
                    table.append(line)
                    show(line, first=peer == next(row.contender for row in rows if "ours" not in row.contender))
    (out / "attacks.json").write_text(json.dumps(table, indent=1), encoding="utf-8")


def compared(contest: Contest, rows: Sequence[Row], peer: str) -> dict[str, Any] | None:
    """Ours and a peer's on the batches that all three have; None where there is none."""
    by = {name: {row.batch: row for row in rows if row.contender == name} for name in (OURS, COMPILED, peer)}
    batches = sorted(set.intersection(*(set(part) for part in by.values())))
    if not batches:
        return None
    success = {name: np.concatenate([part[n].success for n in batches]).astype(bool) for name, part in by.items()}
    size = {name: np.concatenate([part[n].size for n in batches]) for name, part in by.items()}
    seconds = {name: np.array([part[n].seconds for n in batches]) for name, part in by.items()}
    both = success[OURS] & success[peer]
    return {
        "attack": contest.name,
        "call": repr(contest.ours),
        "told": contest.told,
        "peer": peer,
        "items": len(success[OURS]),
        "success": [float(success[name].mean()) for name in (OURS, COMPILED, peer)],
        "success_difference": interval(success[OURS].astype(float) - success[peer]),
        "size_ratio": None
        if contest.ours.budget is not None or not both.any()
        else [float(np.exp(value)) for value in interval(np.log(size[OURS][both] / size[peer][both]))],
        "seconds_per_item": [float(seconds[name].sum() / len(success[OURS])) for name in (OURS, COMPILED, peer)],
        "times_as_fast": [float(np.median(seconds[peer] / seconds[name])) for name in (OURS, COMPILED)],
    }


def interval(values: NDArray[np.float64]) -> list[float]:
    """The mean, and its bootstrapped 95 % interval."""
    draws = np.random.default_rng(0).integers(0, len(values), (DRAWS, len(values)))
    low, high = np.quantile(values[draws].mean(axis=1), (0.025, 0.975))
    return [float(values.mean()), float(low), float(high)]


def show(line: Mapping[str, Any], *, first: bool) -> None:
    ours, _, theirs = line["success"]
    torch_faster, compiled_faster = line["times_as_fast"]
    name = line["attack"] if first else ""
    mean, low, high = (100 * value for value in line["success_difference"])
    points = f"{mean:+.1f} [{low:+.1f},{high:+.1f}]"
    left = f"{name:17}{line['peer'].removeprefix(SLOW).strip():13}{100 * ours:6.1f}{100 * theirs:7.1f}"
    print(f"{left}{points:>21}{torch_faster:6.2f}{compiled_faster:9.2f}")
    if line["size_ratio"]:
        mean, low, high = line["size_ratio"]
        print(f"{'':43}{f'x{mean:.3f} [{low:.3f},{high:.3f}]':>21}")


if __name__ == "__main__":
    main()
