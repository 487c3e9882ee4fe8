"""The values that `guard bench` finds; nothing here measures."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass

from guard.offline.bench.profile import Profile
from guard.offline.bench.stopwatch import Spread
from guard.session import Device

# Interquartile range of a plain forward, over its median, at which its microseconds tell little
BUSY_SPREAD_SHARE = 0.25
MODEL, READ = "model alone", "guard, whole read"


@dataclass(frozen=True)
class ProgramCost:
    """The cost of one program of the cascade, in a call of some items."""

    name: str
    floor: float  # the least it can cost, in forwards: 1 + backwards + rows + second networks
    microseconds: Spread
    forwards: Spread
    over_floor: Spread
    added: float  # microseconds over a plain forward, the median
    aim: str
    met: bool


@dataclass(frozen=True)
class DetectorCost:
    """The cost that a program would save without a detector; evidence that another one needs too is not counted."""

    name: str
    program: str
    microseconds: Spread
    forwards: Spread
    at_least: bool  # its variant rows run in one pass with another detector's, and could not be taken out


@dataclass(frozen=True)
class BatchCost:
    """The costs of a call of `items` items."""

    items: int
    rounds: int
    model: Spread  # microseconds of a plain forward
    programs: tuple[ProgramCost, ...]
    detectors: tuple[DetectorCost, ...]
    cascade_microseconds: Spread  # on clean traffic: each program times the share of items that reaches it
    cascade_forwards: Spread
    read_microseconds: Spread  # the runtime's whole answer on clean samples: programs, fusion, ranks
    read_forwards: Spread

    @property
    def busy(self) -> bool:
        return self.model.relative > BUSY_SPREAD_SHARE

    def per_second(self, microseconds: Spread) -> float:
        """Return the items a second at this time for a call."""
        return self.items * 1e6 / microseconds.median


@dataclass(frozen=True)
class BenchResult:
    """The result of `guard bench` on one bundle."""

    model: str
    device: Device
    threads: int | None
    reached: tuple[float, ...]  # of each program, the share of clean calibration items that it sees
    batches: tuple[BatchCost, ...]
    profiles: tuple[Profile, ...]  # of programs that missed their aim, or of all where asked for
    limit: float | None = None  # forwards on clean traffic that the recipe is made for, or was chosen within

    @property
    def missed(self) -> tuple[tuple[int, ProgramCost], ...]:
        """The (items, program) of each aim that was missed."""
        return tuple((batch.items, cost) for batch in self.batches for cost in batch.programs if not cost.met)

    def within(self, batch: BatchCost) -> bool:
        """Return whether clean traffic costs no more than it may; at any cost where there is no limit."""
        return self.limit is None or batch.cascade_forwards.median <= self.limit

    def to_json(self) -> str:
        return json.dumps(asdict(self), indent=2) + "\n"
