"""For maintainers: after how many queries the query memory sees an attack, what benign streams cost, and its price.

    python -m tests.side attacks
    python -m tests.bench.queries BUNDLE --data ../shared/data/cifar10-test.npz [--items 60] [--queries 300]
    python -m tests.bench.queries MODEL.onnx --data ../shared/data/cifar10-test.npz
    python -m tests.bench.queries --quick

Each attack searches against the answers of the bundle's own network, or of a model of images in [0, 1], an item at a
time, by a port as clients have it: values snapped to 8 bits, decisions or logits. What it asked is then replayed
through a query memory, since that looks at inputs alone; `answered_queries` closes the loop. What an attacker reaches
under "reject" is what it had reached before the memory saw it. Success is any wrong class for Square and SimBA, and for
the attacks without a budget one within --distance (root mean square). Times are processor time of this process.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from scipy import ndimage
from torch import Tensor

from guard.arrays import read_examples, to_wire
from guard.bundle import Bundle
from guard.offline.attacks.methods.adapted import Boundary, HopSkipJump
from guard.queries.fingerprint import Fingerprinter
from guard.queries.memory import MAX_PRINCIPALS, QueryFinding, QueryMemory
from guard.runtime import Runtime
from guard.session import Session
from tests.queries.streams import (
    coordinate_search,
    exposure,
    panning_camera,
    scene,
    snapped,
    still_camera,
)
from tests.side import reach

Floats = NDArray[np.float32]
BUDGET = 8 / 255
MIN_ALARM_QUERIES = 14  # near-copies before which no score can be an attack's
NAMES = ("Square", "HopSkipJump", "Boundary", "SimBA-like")


@dataclass
class Port:
    """The port as an attacker has it: it answers with logits, and keeps what was asked."""

    answers: Callable[[Floats], Floats]
    label: int
    asked: list[Floats] = field(default_factory=list)
    margins: list[float] = field(default_factory=list)

    def __call__(self, points: Tensor) -> Tensor:
        images = snapped(points.detach().numpy())
        logits = self.answers(images)
        others = np.delete(logits, self.label, axis=1)
        self.asked.extend(images)
        self.margins.extend((logits[:, self.label] - others.max(axis=1)).tolist())
        return torch.from_numpy(logits)

    def margin(self, image: Floats) -> float:
        """How far the right class is ahead in one picture's answer."""
        self(torch.from_numpy(image[None]))
        return self.margins[-1]


class Module(torch.nn.Module):
    """A port as torchattacks wants it."""

    def __init__(self, port: Port) -> None:
        super().__init__()
        self.port = port

    def forward(self, points: Tensor) -> Tensor:
        return self.port(points)


@dataclass(frozen=True)
class Search:
    """What one attack on one item asked, and which of the queries had succeeded."""

    queries: Floats  # [query, channel, height, width]
    wins: NDArray[np.bool_]  # [query]


def search(
    name: str, answers: Callable[[Floats], Floats], image: Floats, label: int, options: Any, seed: int
) -> Search:
    """Run one attack on one item."""
    port, point, right = Port(answers, label), torch.from_numpy(image[None]), torch.tensor([label])
    generator = torch.Generator().manual_seed(seed)
    if name == "SimBA-like":
        coordinate_search(image, 0.2, np.random.default_rng(seed), port.margin, count=options.queries)
    elif name == "Square":
        torch.manual_seed(seed)
        settings = {"eps": BUDGET, "n_queries": options.queries, "n_restarts": 1, "seed": seed}
        import torchattacks

        torchattacks.Square(Module(port), norm="Linf", **settings)(point, right)
    else:
        kind = HopSkipJump if name == "HopSkipJump" else Boundary
        kind(queries=options.queries)(port, point, right, generator)
    queries = np.stack(port.asked[: options.queries])
    wins = np.asarray(port.margins[: options.queries]) < 0
    if name in ("HopSkipJump", "Boundary"):
        wins &= np.sqrt(((queries - image) ** 2).mean(axis=(1, 2, 3))) <= options.distance
    return Search(queries, wins)


def replayed(queries: Floats, *, streams: bool, principals: int = 1) -> list[QueryFinding]:
    """What a fresh memory tells of each query, a second apart, sent by so many principals in turn."""
    fingerprinter = Fingerprinter(queries.shape[1:], np.random.default_rng(0))
    memory = QueryMemory(fingerprinter, streams=streams)
    prints = [fingerprinter.of(query[None]) for query in queries]
    return [memory.see(f"p{number % principals}", one, number / 10) for number, one in enumerate(prints)]


def seen_at(found: Sequence[QueryFinding], *, shared: bool = False) -> float:
    """The number of the first query that was seen as an attack's; infinite where none was."""
    hits = (number for number, one in enumerate(found, 1) if one.is_attack or (shared and one.is_shared_attack))
    return next(hits, float("inf"))


def won_before(search: Search, seen: float) -> bool:
    """Whether the search succeeded before it was seen; the query that is seen is refused."""
    return bool(search.wins[: int(min(seen - 1, len(search.wins)))].any())


def alone(found: Sequence[QueryFinding]) -> int:
    """The first queries that are near to no earlier one: no memory can tell them from unrelated pictures."""
    related = (number for number, one in enumerate(found) if one.near > 0)
    return next(related, len(found))


def first_queries(name: str, searches: Sequence[Search], founds: Sequence[Sequence[QueryFinding]]) -> str:
    """A line on what "within 50" cannot count: searches that begin with unrelated pictures, or end before any alarm."""
    before = np.asarray([alone(found) for found in founds])
    related = np.asarray([len(one.queries) for one in searches]) - before
    seen = np.asarray([seen_at(found) for found in founds])
    short = related < MIN_ALARM_QUERIES
    within = np.mean(seen[~short] - before[~short] <= 50) if not short.all() else np.nan
    return (
        f"  {name}: first {np.mean(before):.0f} queries near no earlier one (mean; more than one in "
        f"{np.mean(before > 1):.0%}); {np.mean(short):.0%} end before {MIN_ALARM_QUERIES} that are; of the others "
        f"{within:.0%} are seen within 50 of these"
    )


def row(name: str, searches: Sequence[Search], seen: Sequence[float]) -> str:
    """A line of the table of attacks; a search that ended unseen and without success counts as never seen."""
    share = np.mean(np.isfinite(seen))
    within = np.mean(np.asarray(seen) <= 50)
    middle, high = (np.quantile(np.asarray(seen), q, method="higher") for q in (0.5, 0.95))
    won = np.mean([one.wins.any() for one in searches])
    left = np.mean([won_before(one, at) for one, at in zip(searches, seen, strict=True)])
    figures = f"{middle:>7.0f} {high:>7.0f} {100 * share:>6.0f} % {100 * within:>8.0f} %"
    return f"{name:48} {figures} {100 * won:>9.0f} % {100 * left:>8.0f} %"


def moved(queries: Floats, generator: np.random.Generator) -> Floats:
    """The queries as a knowing attacker sends them: each turned and shifted a little, with noise."""
    found = []
    for query in queries:
        turned = ndimage.rotate(query, generator.uniform(-8, 8), axes=(1, 2), reshape=False, order=1, mode="nearest")
        found.append(np.roll(turned, generator.integers(-2, 3, 2), axis=(1, 2)))
    return snapped(np.stack(found) + generator.normal(0, 2 / 255, queries.shape))


def hidden(queries: Floats, cover: Floats, generator: np.random.Generator) -> tuple[Floats, NDArray[np.bool_]]:
    """Queries with 40 unrelated pictures between each two, and which are the attack's."""
    parts = [np.concatenate([query[None], cover[generator.integers(0, len(cover), 40)]]) for query in queries]
    return np.concatenate(parts), np.tile(np.arange(41) == 0, len(queries))


def attacks(
    options: Any, answers: Callable[[Floats], Floats], images: Floats, labels: NDArray[np.int64], cover: Floats
) -> Iterator[str]:
    """Yield the table of attacks."""
    yield f"{'seen at query':48} {'median':>7} {'95 %':>7} {'seen':>8} {'within 50':>10} {'success':>11} {'left':>10}"
    generator = np.random.default_rng(7)
    for name in NAMES:
        searches = [
            search(name, answers, image, int(label), options, number)
            for number, (image, label) in enumerate(zip(images, labels, strict=True))
        ]
        for streams, words in ((True, "streams expected"), (False, "single pictures")):
            founds = [replayed(one.queries, streams=streams) for one in searches]
            yield row(f"{name}, {words}", searches, [seen_at(found) for found in founds])
            yield first_queries(words, searches, founds)
        knowing = partial(replayed, streams=False)
        seen = [seen_at(knowing(moved(one.queries, generator))) for one in searches]
        yield row("  knowing: each turned, shifted and noisy", searches, seen)
        seen = [seen_at(knowing(one.queries, principals=8)) for one in searches]
        yield row("  knowing: 8 principals, refused", searches, seen)
        seen = [seen_at(knowing(one.queries, principals=8), shared=True) for one in searches]
        yield row("  knowing: 8 principals, told of together", searches, seen)
        some = searches[: min(len(searches), 10)]
        seen = []
        for one in some:
            mixed, own = hidden(one.queries[:60], cover, generator)
            found = [finding for finding, ours in zip(replayed(mixed, streams=False), own, strict=True) if ours]
            seen.append(seen_at(found))
        yield row(f"  knowing: 40 others between ({len(some)} items)", some, seen)


def streams(frames: int, scenes: int, copies: Floats) -> Iterator[str]:
    """Yield the table of benign streams: requests of single pictures, and how many were called an attack's."""
    generator = np.random.default_rng(3)
    places = [scene(generator) for _ in range(scenes)]
    kinds: dict[str, Callable[[Floats], Floats]] = {
        "still camera, noise 2/255": lambda place: still_camera(place, frames, generator),
        "still camera, noise 0.5/255": lambda place: still_camera(place, frames, generator, noise=0.5 / 255),
        "panning by 0.25 pixels": lambda place: panning_camera(place, frames, generator, pixels=0.25),
        "panning by 1 pixel": lambda place: panning_camera(place, frames, generator, pixels=1.0),
        "panning by 2.7 pixels": lambda place: panning_camera(place, frames, generator, pixels=2.7),
        "light that changes": lambda place: exposure(place, frames, generator),
        "retries, each 5 times": lambda _: np.repeat(
            copies[generator.permutation(len(copies))[: frames // 5]], 5, axis=0
        ),
        "A/B duplicates": lambda _: np.tile(copies[generator.permutation(len(copies))[: frames // 2]], (2, 1, 1, 1)),
        "unrelated pictures": lambda _: copies[generator.permutation(len(copies))[:frames]],
        "skipped blocks (a known miss)": lambda place: skipped_blocks(place, frames, generator),
    }
    yield (
        f"{'benign stream':34} {'requests':>9} {'alarms':>8} {'together':>9} {'streams alarmed':>16} "
        f"{'alarms, single pictures':>24}"
    )
    quiet = alarmed = 0
    for name, make in kinds.items():
        told = [replayed(made, streams=True) for made in map(make, places)]
        single = sum(one.is_attack for made in map(make, places) for one in replayed(made, streams=False))
        alarms, requests = [sum(one.is_attack for one in found) for found in told], sum(map(len, told))
        shared = sum(one.is_shared_attack for found in told for one in found)
        yield (
            f"{name:34} {requests:>9,} {sum(alarms):>8,} {shared:>9,} {np.count_nonzero(alarms):>8} of {scenes:<5} "
            f"{single:>24,}"
        )
        if "known miss" not in name:
            quiet, alarmed = quiet + requests, alarmed + sum(alarms) + shared
    bound = f"; at most {3 / quiet:.1e} a request, with 95 % confidence were they independent" if not alarmed else ""
    yield f"streams expected, known misses apart: {alarmed} alarms in {quiet:,} requests{bound}"


def skipped_blocks(place: Floats, count: int, generator: np.random.Generator) -> Floats:
    """Frames of a video whose unchanged blocks are repeated to the last bit, as codecs do."""
    frame = place[:, :32, :32].copy()
    frames = []
    for _ in range(count):
        row, column = 8 * generator.integers(0, 4, 2)
        frame[:, row : row + 8, column : column + 8] += generator.normal(0, 3 / 255, (3, 8, 8))
        frames.append(frame.copy())
    return snapped(np.stack(frames))


def price(shape: tuple[int, ...], *, principals: int, requests: int) -> Iterator[str]:
    """Yield the bytes of a memory that is full of principals, and what a request costs."""
    generator = np.random.default_rng(5)
    fingerprinter = Fingerprinter(shape, generator)
    memory = QueryMemory(fingerprinter, streams=True)
    images = snapped(generator.random((64, *shape)))
    began = time.process_time()
    prints = [fingerprinter.of(images[number % 64][None]) for number in range(requests)]
    print_us = 1e6 * (time.process_time() - began) / requests
    for number in range(principals):
        memory.see(f"p{number}", prints[number % len(prints)], number / 1e4)
    began = time.process_time()
    for number, one in enumerate(prints):
        memory.see(f"p{number % 100}", one, 10.0)
    look_us = 1e6 * (time.process_time() - began) / requests
    one = next(iter(memory.principals.values())).size_bytes
    yield f"{len(memory.principals):,} principals: {memory.size_bytes:,} bytes, {one:,} a principal"
    yield f"a request of one {shape} item: {print_us:.0f} us its fingerprint, {look_us:.0f} us the look-up"


def quick() -> Iterator[str]:
    """Run it all on the tests' tiny bundle: no figures to quote."""
    from tests.serve import tiny_bundle

    with tempfile.TemporaryDirectory() as name:
        runtime = Runtime.open(tiny_bundle.make(Path(name) / "bundle"), threads=1)
        images = snapped(tiny_bundle.clean(4, seed=70))
        labels = answers_of(runtime)(images).argmax(axis=1)
        options = argparse.Namespace(queries=60, distance=0.1)
        yield from attacks(options, answers_of(runtime), images, labels, snapped(tiny_bundle.clean(2000, seed=71)))
    generator = np.random.default_rng(4)
    yield from streams(60, 2, snapped(np.stack([scene(generator, size=32) for _ in range(80)])))
    yield from price((3, 32, 32), principals=200, requests=100)


def answers_of(runtime: Runtime) -> Callable[[Floats], Floats]:
    """The logits of a bundle's model for pictures in [0, 1]."""
    spec = runtime.spec
    return lambda images: np.asarray(runtime.read(spec.box.from_unit(images)).logits, dtype=np.float32)


def open_answers(file: Path) -> tuple[Callable[[Floats], Floats], Callable[[Any], Floats]]:
    """The logits of a bundle's model or of an ONNX model, and how a data file's images become pictures in [0, 1]."""
    if file.is_dir():
        runtime = Runtime.open(Bundle.open(file), threads=1)
        spec = runtime.spec
        return answers_of(runtime), lambda examples: spec.box.to_unit(to_wire(examples.images, spec))
    session = Session(file, device="cpu", threads=1)
    (output,) = [one.name for one in session.session.get_outputs()]

    def pictures(examples: Any) -> Floats:
        images = np.asarray(examples.images[:], dtype=np.float32) / np.float32(255)
        return images if images.shape[1] in (1, 3) else np.ascontiguousarray(np.moveaxis(images, -1, 1))

    return lambda images: np.asarray(session.run((output,), images)[0], dtype=np.float32), pictures


def main(arguments: Sequence[str]) -> None:
    reach("attacks")
    torch.set_num_threads(1)
    if list(arguments) == ["--quick"]:
        print("\n".join(quick()))
        return
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bundle", type=Path, help="or an .onnx file")
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--items", type=int, default=60)
    parser.add_argument("--queries", type=int, default=300)
    parser.add_argument("--distance", type=float, default=0.02, help="within which an attack without a budget succeeds")
    parser.add_argument("--frames", type=int, default=1000)
    parser.add_argument("--only", default="streams,price,attacks")
    options = parser.parse_args(arguments)
    answers, pictures = open_answers(options.bundle)
    examples, parts = read_examples(options.data), options.only.split(",")
    images = pictures(examples)
    if "streams" in parts:
        print("\n".join(streams(options.frames, 20, images)), flush=True)
    if "price" in parts:
        print("\n".join(price(images.shape[1:], principals=MAX_PRINCIPALS, requests=1000)), flush=True)
    if "attacks" in parts:
        some = images[: 2 * options.items]
        right = np.flatnonzero(answers(some).argmax(axis=1) == examples.labels[: len(some)])[: options.items]
        for line in attacks(options, answers, images[right], examples.labels[right], images[2 * options.items :]):
            print(line, flush=True)


if __name__ == "__main__":
    main(sys.argv[1:])
