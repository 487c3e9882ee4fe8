"""`guard bench`: what a bundle's programs cost over the bare model, and over the least that they could cost.

Rule 1: everything is compared with a plain forward of the same graph, on the same threads, in the same rounds.
Rule 2: an aim that is missed is printed, and with it where the time goes.
Rule 3: a session keeps the memory of its largest batch; beside what is served, one more is loaded at a time.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from rich.console import Console

from guard.bundle import Bundle
from guard.errors import BundleError, ConfigError
from guard.manifest import DetectorSpec, ProgramSpec
from guard.offline.bench.costs import MODEL, READ, BatchCost, BenchResult, DetectorCost, ProgramCost
from guard.offline.bench.excerpt import depthwise, excerpt, read_graph, without_detector, write_graph
from guard.offline.bench.profile import Profile, profile
from guard.offline.bench.stopwatch import Clock, Laps, race, spread
from guard.offline.bench.table import lines_of
from guard.offline.work.tables import print_lines
from guard.runtime import LOGITS_TOLERANCE, Runtime
from guard.session import Device, Session

ROWS = "rows"  # how a need of the shared pass over variants rides
SCREEN_FORWARDS, SCREEN_MICROSECONDS = 1.10, 150.0  # a forward-only program's aim: the larger of the two
OVER_FLOOR_FACTOR, OVER_FLOOR_DEPTHWISE_FACTOR = 1.10, 2.0  # any other program's aim
Report = Callable[[str], None]


def run_bench(
    bundle: Bundle,
    *,
    batches: Sequence[int],
    threads: int | None,
    seconds: float,
    device: Device,
    profile: bool,
    as_json: bool,
    console: Console,
) -> None:
    """Run `guard bench`: measure, and print tables, or one JSON object. Raises GuardError as `bench` does."""
    with console.status("starting") as status:
        result = bench(
            bundle,
            batches=batches,
            threads=threads,
            seconds=seconds,
            device=device,
            profiled=profile,
            report=lambda text: status.update(text),
        )
    if as_json:
        console.out(result.to_json(), end="", highlight=False)
    else:
        print_lines(console, lines_of(result))


def bench(
    bundle: Bundle,
    *,
    batches: Sequence[int] = (1, 8, 32),
    threads: int | None = None,
    seconds: float = 60.0,
    device: Device = "cpu",
    profiled: bool = False,
    clock: Clock = time.perf_counter_ns,
    report: Report = lambda _: None,
) -> BenchResult:
    """Time a bundle's programs on its own clean samples; about `seconds` in all.

    With one thread `clock` may be `time.thread_time_ns`, which a busy machine disturbs less: work instead of latency.

    Raises:
        ConfigError: a batch without items.
        BundleError: it has no samples, or its programs do not fit its manifest.
        DeviceError: the device is not there.
    """
    if not batches or min(batches) < 1:
        raise ConfigError(f"batches {list(batches)} cannot be timed; name sizes of at least 1, e.g. 1,8,32")
    if len(bundle.samples.images) == 0:
        raise BundleError(f"{bundle.path} has no samples to run; train the bundle again")
    with tempfile.TemporaryDirectory(prefix="guard-bench-") as folder:
        subject = OpenedBundle(bundle, Path(folder), device=device, threads=threads)
        found = []
        for items in batches:
            report(f"batch {items}")
            found.append(subject.measure(items, seconds / len(batches), clock))
        wanted = [(batch.items, cost) for batch in found for cost in batch.programs if profiled or not cost.met]
        profiles = []
        for items, cost in worst(wanted):
            report(f"profile of {cost.name} at batch {items}")
            profiles.append(subject.profile(cost.name, items))
    name, shares, limit = bundle.manifest.model.name, reached(bundle), limit_of(bundle)
    return BenchResult(name, device, threads, shares, tuple(found), tuple(profiles), limit)


def limit_of(bundle: Bundle) -> float | None:
    """Return the forwards on clean traffic that detectors were chosen within, or that the recipe is made for."""
    chosen = bundle.manifest.provenance.get("choice") or {}
    limit = chosen.get("limit", bundle.manifest.recipe.get("cost"))
    return None if limit is None else float(limit)


def worst(costs: Sequence[tuple[int, ProgramCost]]) -> Iterator[tuple[int, ProgramCost]]:
    """Yield for each program the batch at which it is farthest from its floor, missed aims before others."""
    for name in dict.fromkeys(cost.name for _, cost in costs):
        yield max(
            ((items, cost) for items, cost in costs if cost.name == name),
            key=lambda found: (not found[1].met, found[1].over_floor.median),
        )


def reached(bundle: Bundle) -> tuple[float, ...]:
    """Return for each program the share of the clean calibration items that no earlier program decides."""
    calibration, shares = bundle.calibration, [1.0]
    waiting = np.ones(calibration.items, dtype=bool)
    ends = np.cumsum(calibration.programs)
    for fusion, band, end in zip(calibration.fusions[:-1], calibration.bands, ends[:-1], strict=True):
        risk = fusion.risk(calibration.clean_scores[:, :end])
        waiting &= (risk >= band.low) & (risk <= band.high)
        shares.append(float(waiting.mean()))
    return tuple(shares)


class OpenedBundle:
    """A bundle's programs and its bare model, and in turn each program without each of its detectors."""

    def __init__(self, bundle: Bundle, folder: Path, *, device: Device, threads: int | None) -> None:
        self.bundle, self.folder, self.device, self.threads = bundle, folder, device, threads
        self.runtime = Runtime.open(bundle, device=device, threads=threads)
        self.served = {p.name: session for p, session in zip(self.runtime.programs, self.runtime.sessions, strict=True)}
        self.shares = reached(bundle)
        self.graphs = {program.name: read_graph(bundle.path / program.file) for program in self.runtime.programs}
        first = self.graphs[self.runtime.programs[0].name]
        self.limit = OVER_FLOOR_DEPTHWISE_FACTOR if depthwise(first) else OVER_FLOOR_FACTOR
        self.model = self.load("model", excerpt(first, ("logits",)))
        self.check_model()

    def load(self, name: str, graph: Any) -> Session:
        file = write_graph(graph, self.folder / f"{name}.onnx", self.bundle.path)
        return Session(file, device=self.device, threads=self.threads)

    def check_model(self) -> None:
        """Check that the bare model gives the logits of the bundle's samples. Raises BundleError where it does not."""
        samples = self.bundle.samples
        (logits,) = self.model.run(("logits",), samples.images)
        error = np.linalg.norm(logits - samples.logits, axis=1) / np.maximum(
            np.linalg.norm(samples.logits, axis=1), 1e-12
        )
        if error.max() > LOGITS_TOLERANCE:
            raise BundleError(f"the model alone differs from the bundle's samples by {error.max():.1e}; train it again")

    def images(self, items: int) -> NDArray[Any]:
        """Return clean wire inputs: the bundle's samples, over and over."""
        samples = self.bundle.samples.images
        return np.ascontiguousarray(samples[np.arange(items) % len(samples)])

    def measure(self, items: int, seconds: float, clock: Clock) -> BatchCost:
        """Measure one batch size: half of the time for what is served, half for its detectors, a race for each."""
        images = self.images(items)
        contenders: dict[str, Callable[[], object]] = {
            MODEL: running(self.model, images),
            **{name: running(session, images) for name, session in self.served.items()},
            READ: lambda: self.runtime.read(images),
        }
        laps = race(contenders, seconds=seconds / 2, clock=clock)
        forward, read = laps.of(MODEL), laps.of(READ)
        cascade = sum(share * laps.of(p.name) for share, p in zip(self.shares, self.runtime.programs, strict=True))
        each = seconds / 2 / len(self.bundle.manifest.detectors)
        return BatchCost(
            items=items,
            rounds=laps.rounds,
            model=spread(forward),
            programs=tuple(program_cost(program, laps, self.limit) for program in self.runtime.programs),
            detectors=tuple(
                self.detector(program, name, images, each, clock)
                for program in self.runtime.programs
                for name in program.detectors
            ),
            cascade_microseconds=spread(np.asarray(cascade)),
            cascade_forwards=spread(np.asarray(cascade / forward)),
            read_microseconds=spread(read),
            read_forwards=spread(read / forward),
        )

    def detector(
        self, program: ProgramSpec, name: str, images: NDArray[Any], seconds: float, clock: Clock
    ) -> DetectorCost:
        """Measure what the program costs more than without this detector, beside the bare model."""
        lean = leaner(program.name, name)
        graph = without_detector(self.graphs[program.name], program.detectors, name)
        sessions = {MODEL: self.model, program.name: self.served[program.name], lean: self.load(lean, graph)}
        laps = race({who: running(session, images) for who, session in sessions.items()}, seconds=seconds, clock=clock)
        specs = {detector.name: detector for detector in self.bundle.manifest.detectors}
        return detector_cost(specs[name], program, specs, laps)

    def profile(self, name: str, items: int) -> Profile:
        (program,) = [program for program in self.runtime.programs if program.name == name]
        return profile(
            self.bundle.path / program.file,
            self.images(items),
            program=name,
            detectors=program.detectors,
            device=self.device,
            threads=self.threads,
            folder=self.folder,
        )


def running(session: Session, images: NDArray[Any]) -> Callable[[], object]:
    """Return a call that computes a program's logits and scores, or of an excerpt those that it has."""
    names = {output.name for output in session.session.get_outputs()}
    wanted = tuple(name for name in ("logits", "scores") if name in names)
    return lambda: session.run(wanted, images)


def leaner(program: str, detector: str) -> str:
    return f"{program} without {detector}"


def program_cost(program: ProgramSpec, laps: Laps, limit: float) -> ProgramCost:
    """Judge a forward-only program by what it adds to a forward, any other by its floor; medians decide."""
    forward, own = laps.of(MODEL), laps.of(program.name)
    forwards, added = spread(own / forward), spread(own - forward).median
    over = spread(own / forward / program.floor)
    if program.floor == 1:
        met = forwards.median <= SCREEN_FORWARDS or added <= SCREEN_MICROSECONDS
        aim = f"≤ {SCREEN_FORWARDS:.2f} forwards or +{SCREEN_MICROSECONDS:.0f} µs"
    else:
        met, aim = over.median <= limit, f"≤ {limit:g} × floor"
    return ProgramCost(program.name, program.floor, spread(own), forwards, over, added, aim, met)


def detector_cost(
    detector: DetectorSpec, program: ProgramSpec, specs: Mapping[str, DetectorSpec], laps: Laps
) -> DetectorCost:
    saved = laps.of(program.name) - laps.of(leaner(program.name, detector.name))
    others = {need for name in program.detectors if name != detector.name for need in specs[name].needs}
    own = set(detector.needs) - others
    return DetectorCost(
        name=detector.name,
        program=program.name,
        microseconds=spread(saved),
        forwards=spread(saved / laps.of(MODEL)),
        at_least=any(need.rides == ROWS for need in own) and any(need.rides == ROWS for need in others),
    )
