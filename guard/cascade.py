"""The cascade: a guard's programs and its calibration, in memory: wire inputs -> readings -> risk -> p-value.

Rule 1: what is calibrated and evaluated is what is served; there is no second path from an image to a p-value.
Rule 2: an item's p-value depends on no other item of its batch.

How it works. The programs run one after another, cheapest first; each but the last decides the items whose risk lies
outside its band and leaves the others to the next. So that one scalar ranks all items, whichever program decided them,
each decision has a level, and a risk is squashed into [level, level + 1). With three programs, from safe to suspicious:

    0 first program, below its band    1 second, below    2 third: it decides whatever is left
    4 first program, above its band    3 second, above
"""

from __future__ import annotations

import math
import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from guard.calibration import Calibration
from guard.errors import BundleError, DataError
from guard.fusion import Floats
from guard.manifest import InputSpec, ProgramSpec
from guard.session import Session

Run = Callable[[NDArray[Any]], Sequence[NDArray[Any]]]  # wire inputs -> logits [item, class], scores [item, detector]
JITTER_RISK = 1e-9  # below float32 tolerance of any score


@dataclass(frozen=True)
class Readings:
    """The results of the cascade for each item: logits, scores, risk and p-value."""

    logits: NDArray[np.float32]  # [item, class]
    scores: Floats  # [item, detector]; NaN where the detector did not run
    risk: Floats  # [item]
    p_value: Floats  # [item]; small is suspicious
    program: NDArray[np.int64]  # [item] index of the program that decided
    detector_p: Floats = field(repr=False)  # [item, detector] two-sided; NaN where the detector did not run

    @property
    def prediction(self) -> NDArray[np.int64]:
        return np.asarray(self.logits.argmax(axis=1), dtype=np.int64)

    def rows(self, start: int, stop: int) -> Readings:
        """The readings of the items from `start` up to, and without, `stop`."""
        part = slice(start, stop)
        return Readings(
            self.logits[part],
            self.scores[part],
            self.risk[part],
            self.p_value[part],
            self.program[part],
            self.detector_p[part],
        )


def joined(parts: list[Readings]) -> Readings:
    """Join the readings of consecutive items into one."""
    return Readings(
        logits=np.concatenate([part.logits for part in parts]),
        scores=np.concatenate([part.scores for part in parts]),
        risk=np.concatenate([part.risk for part in parts]),
        p_value=np.concatenate([part.p_value for part in parts]),
        program=np.concatenate([part.program for part in parts]),
        detector_p=np.concatenate([part.detector_p for part in parts]),
    )


def level_above(program: int, last: int) -> int:
    """The level of an item that a program decides because its risk lies above the band; `last` is the last program."""
    return 2 * last - program


def level_below(program: int) -> int:
    """The level of an item that a program decides because its risk lies below the band, or because it is the last."""
    return program


def cascade_risk(level: int | NDArray[np.int64], risk: Floats) -> Floats:
    """The risk on the scale of the whole cascade: what is decided at a higher level is riskier than all below it.

    The squash is monotone, so ranks survive: a risk of 1 at level 2 becomes 2 + 0.75.
    """
    squashed: Floats = level + 0.5 + 0.5 * risk / (1.0 + np.abs(risk))
    return squashed


def own_risk(place: float) -> float:
    """The risk at a place, 0 to 1, within its level of the cascade: the inverse of the squash of `cascade_risk`."""
    share = min(max(2.0 * (place - 0.5), -1 + 1e-12), 1 - 1e-12)
    return share / (1.0 - abs(share))


def risk_limits(calibration: Calibration, rate: float) -> tuple[float, ...]:
    """The own risk of each program above which the cascade's p-value is at most `rate`; infinite where it never is."""
    last = len(calibration.programs) - 1
    threshold = calibration.threshold(rate)
    found = []
    for program, low in enumerate([band.high for band in calibration.bands] + [-math.inf]):
        level = level_above(program, last)
        if threshold >= level + 1:
            found.append(math.inf)
        else:
            found.append(low if threshold < level else max(low, own_risk(threshold - level)))
    return tuple(found)


def jitter(images: NDArray[Any]) -> Floats:
    """A tie-break in [0, JITTER_RISK) for each item, computed from the item's own bytes and from nothing else."""
    raw = [zlib.crc32(np.ascontiguousarray(image).view(np.uint8).data) for image in images]
    return np.asarray(raw, dtype=np.float64) * (JITTER_RISK / 2**32)


@dataclass(frozen=True, eq=False)
class Cascade:
    """Loaded programs under a calibration, ready to run. Raises BundleError where the two do not fit each other."""

    spec: InputSpec
    classes: int
    programs: tuple[ProgramSpec, ...]
    sessions: tuple[Session, ...]  # one a program
    calibration: Calibration

    def __post_init__(self) -> None:
        for session, program in zip(self.sessions, self.programs, strict=True):
            self.verify_graph(session, program)
        names = tuple(name for program in self.programs for name in program.detectors)
        sizes = tuple(len(program.detectors) for program in self.programs)
        if (names, sizes) != (self.calibration.detectors, self.calibration.programs):
            raise BundleError(
                f"calibration.npz ranks {', '.join(self.calibration.detectors)}, "
                f"the manifest's programs have {', '.join(names)}"
            )

    def verify_graph(self, session: Session, program: ProgramSpec) -> None:
        """Raise BundleError when a graph's input or outputs are not what the manifest says."""
        found = session.session.get_inputs()
        if len(found) != 1 or list(found[0].shape[1:]) != list(self.spec.wire_shape):
            raise BundleError(
                f"{program.file} takes {[list(i.shape) for i in found]}, "
                f"the manifest says [item, {', '.join(map(str, self.spec.wire_shape))}]"
            )
        widths = {o.name: o.shape[-1] for o in session.session.get_outputs()}
        wanted = {"logits": self.classes, "scores": len(program.detectors)}
        for name, width in wanted.items():
            if name not in widths:
                raise BundleError(f"{program.file} gives no {name}")
            if widths[name] != width:
                raise BundleError(f"{program.file} gives {widths[name]} {name} an item, the manifest says {width}")

    def with_calibration(self, calibration: Calibration) -> Cascade:
        """A cascade of the same programs under another calibration."""
        return replace(self, calibration=calibration)

    def read(self, images: NDArray[Any], *, complete: bool = False) -> Readings:
        """Run the cascade over wire inputs [item, ...].

        `complete` runs every program on every item, so that all scores are there; risk and p-value are the same either
        way.

        Raises:
            DataError: the array's shape or type is not the model's input.
        """
        return self.follow(images, [self.runner(place) for place in range(len(self.sessions))], complete=complete)

    def runner(self, place: int) -> Run:
        """The program of this place as a function of wire inputs."""
        return lambda images: self.sessions[place].run(("logits", "scores"), images)

    def follow(self, images: NDArray[Any], runs: Sequence[Run], *, complete: bool) -> Readings:
        """Read wire inputs as `read` does, with these in the place of the programs: the parity check gives torch's."""
        self.check_images(images)
        count, detectors = len(images), len(self.calibration.detectors)
        logits = np.zeros((count, self.classes), dtype=np.float32)
        scores = np.full((count, detectors), np.nan)
        risk = np.zeros(count)
        program = np.zeros(count, dtype=np.int64)
        waiting = np.arange(count)
        first = 0
        for index, run in enumerate(runs):
            last = first + self.calibration.programs[index]
            rows = np.arange(count) if complete else waiting
            if rows.size == 0:
                break
            found, scored = run(images if rows.size == count else images[rows])
            if index == 0:
                logits[rows] = found
            scores[rows, first:last] = scored
            own = self.calibration.fusions[index].risk(scores[waiting, :last])
            decided, level = self.decide(index, own)
            settled = waiting[decided]
            risk[settled] = cascade_risk(level[decided], own[decided])
            program[settled] = index
            waiting, first = waiting[~decided], last
        risk += jitter(images)
        return Readings(
            logits, scores, risk, self.calibration.p_value(risk), program, self.calibration.detector_p_values(scores)
        )

    def decide(self, index: int, risk: Floats) -> tuple[NDArray[np.bool_], NDArray[np.int64]]:
        """Return which items program `index` decides, and at which level of the cascade."""
        last = len(self.programs) - 1
        if index == last:
            return np.ones(risk.size, dtype=bool), np.full(risk.size, level_below(last))
        band = self.calibration.bands[index]
        above, below = risk > band.high, risk < band.low
        return above | below, np.where(above, level_above(index, last), level_below(index))

    def check_images(self, images: NDArray[Any]) -> None:
        if images.shape[1:] != self.spec.wire_shape:
            raise DataError(
                f"inputs have shape {list(images.shape)}; "
                f"the model takes [item, {', '.join(map(str, self.spec.wire_shape))}]"
            )
        if images.dtype != self.spec.dtype:
            raise DataError(f"inputs are {images.dtype}; the model takes {self.spec.dtype} ({self.spec.datatype})")
