"""Rows of `tests.bench.detectors`: what a detector catches and costs alone, the tables of them, and published figures.

Rule 1: only figures that were read in their source stand beside ours; what is recalled does not.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from textwrap import wrap
from typing import Any

import numpy as np

FAR_BELOW = 0.10  # a published figure by more than this: then the reason is looked for
WIDTH_COLUMNS = 110
Interval = tuple[float, float, float]  # value, low and high at 95 %


@dataclass(frozen=True)
class Figures:
    """How attacked items are told from clean ones: AUROC, and the share caught at 1 % and at 5 % promised."""

    items: int
    auroc: Interval
    caught: tuple[Interval, Interval]

    @property
    def text(self) -> str:
        shares = (f"{100 * value:3.0f} {100 * low:2.0f}-{100 * high:<3.0f}" for value, low, high in self.caught)
        value, low, high = self.auroc
        return f"{decimals(value)} {decimals(low)}-{decimals(high):<4} {' '.join(shares)}"


@dataclass(frozen=True)
class ByAttack:
    """Figures of one attack by a guard that learned from it, and by one that learned from other families alone."""

    family: str
    seen: Figures
    score_auroc: float  # of the detector's own score, in its paper's direction
    left_out: Figures
    as_published: float | None = None  # its AUROC in the protocol of the papers, where they state one


@dataclass(frozen=True)
class Row:
    """One detector on one data set: figures and costs, or why it does not apply."""

    data: str
    detector: str
    asked: str  # all that the figures follow from: another text is another run
    skipped: str | None = None
    call: str = ""  # that makes the detector
    items: Mapping[str, int] = field(default_factory=dict)  # by what they are for
    forwards: float = math.nan  # the least that its program costs
    measured_forwards: float = math.nan  # at the larger batch, over the bare model
    microseconds: Mapping[str, Interval] = field(default_factory=dict)  # an item beyond the bare model's, by batch
    memory_mib: float = math.nan  # at the peak, beyond the bare model's
    fitting_s: float = math.nan  # of one core, evidence included
    clean: tuple[Interval, Interval] | None = None  # alarms at 1 % and 5 % promised
    seen: Figures | None = None  # of all attacked items
    left_out: Figures | None = None
    attacks: Mapping[str, ByAttack] = field(default_factory=dict)

    @property
    def json(self) -> str:
        return json.dumps(asdict(self))

    @staticmethod
    def read(line: str) -> Row:
        """Return the row that a line of JSON holds."""
        found = json.loads(line)
        for key in ("seen", "left_out"):
            found[key] = None if found[key] is None else figures(found[key])
        found["attacks"] = {
            name: ByAttack(**{**one, "seen": figures(one["seen"]), "left_out": figures(one["left_out"])})
            for name, one in found["attacks"].items()
        }
        return Row(**found)


def figures(found: Mapping[str, Any]) -> Figures:
    return Figures(found["items"], tuple(found["auroc"]), tuple(map(tuple, found["caught"])))  # type: ignore[arg-type]


def decimals(value: float) -> str:
    """Return a share as three decimals without the zero before them: .953, 1.00."""
    return f"{value:.3f}"[1:] if f"{value:.3f}" < "1" else f"{value:.2f}"


def read_rows(file: Path) -> list[Row]:
    """Return the rows of a file of JSON lines; none where there is no file."""
    if not file.exists():
        return []
    return [Row.read(line) for line in file.read_text(encoding="utf-8").splitlines() if line.strip()]


@dataclass(frozen=True)
class Published:
    """A figure that a source states for a method on CIFAR-10, with another network and other attacks than ours."""

    detector: str
    attack: str  # how the name of ours begins that is like it; "mean": over all attacks
    value: float
    source: str
    rate: float | None = None  # of false alarms, where it is a share caught and no AUROC

    @property
    def text(self) -> str:
        attack = self.attack.replace(" L∞", "∞").replace(" L2", "2").replace("deepfool", "DF")
        of = "" if self.rate is None else f" caught at {100 * self.rate:.3g} %"
        return f"{attack} {decimals(self.value)}{of}"


def supplement(detector: str, fgsm: float, cw: float, deepfool: float, pgd: float) -> list[Published]:
    """Return a row of the supplement of ML-LOO [58], AUC on a ResNet of CIFAR-10."""
    values = {"fgsm": fgsm, "cw": cw, "deepfool": deepfool, "pgd L∞": pgd}
    return [Published(detector, attack, value, "Yang 2020") for attack, value in values.items()]


# Source: Yang et al. 2020 (ML-LOO), its supplement; Aldahdooh et al., their detectors review's repository; HLFD, SCN
# 2022/5501035, table 4; arXiv:2012.15386, abstract.
PUBLISHED: tuple[Published, ...] = (
    *supplement("ml_loo", 0.997, 0.995, 0.994, 0.999),
    *supplement("lid", 0.972, 0.990, 0.990, 0.970),
    *supplement("mahalanobis", 0.770, 0.962, 0.981, 0.958),
    *supplement("kernel_density", 0.673, 0.623, 0.618, 0.834),
    Published("mahalanobis", "fgsm", 0.975, "HLFD 2022"),
    Published("mahalanobis", "pgd L∞", 0.986, "HLFD 2022"),
    Published("mahalanobis", "cw", 0.832, "HLFD 2022"),
    Published("mahalanobis", "deepfool", 0.875, "HLFD 2022"),
    Published("kernel_density", "pgd L∞ 8", 0.9227, "Aldahdooh", rate=0.0096),
    Published("feature_squeezing", "pgd L∞ 8", 0.082, "Aldahdooh", rate=0.0507),
    Published("feature_squeezing", "pgd L2", 0.736, "Aldahdooh", rate=0.0507),
    Published("magnet", "pgd L∞", 0.13, "Aldahdooh", rate=0.0077),
    Published("gradient_direction", "mean", 0.979, "arXiv:2012.15386"),
)


@dataclass(frozen=True)
class Beside:
    """Ours beside a published figure: seen, and in the protocol of the papers where that was measured."""

    attack: str
    seen: float
    as_published: float | None

    @property
    def text(self) -> str:
        theirs = "" if self.as_published is None else f", {decimals(self.as_published)} in their protocol"
        return f"{self.attack} {decimals(self.seen)}{theirs}"


def beside(row: Row, published: Published) -> list[Beside]:
    """Return what a row has beside a published figure, for each attack like its own."""
    place = None if published.rate is None else int(published.rate > 0.02)
    found = [
        Beside(name, one.seen.auroc[0], one.as_published)
        if place is None
        else Beside(name, one.seen.caught[place][0], None)
        for name, one in row.attacks.items()
        if published.attack == "mean" or name.startswith(published.attack)
    ]
    if published.attack != "mean" or not found:
        return found
    theirs = [one.as_published for one in found if one.as_published is not None]
    return [Beside("mean", float(np.mean([one.seen for one in found])), float(np.mean(theirs)) if theirs else None)]


def below_published(row: Row) -> list[str]:
    """Return what falls short of a published figure by more than FAR_BELOW, in words."""
    own = [one for one in PUBLISHED if one.detector == row.detector]
    return [
        f"{row.detector} {ours.text}; published {one.text} ({one.source})"
        for one in own
        for ours in beside(row, one)
        if ours.seen < one.value - FAR_BELOW
    ]


def tables(rows: Sequence[Row]) -> Iterator[str]:
    """Yield the tables of all data sets, line by line."""
    for data in dict.fromkeys(row.data for row in rows):
        yield from table(data, [row for row in rows if row.data == data])
        yield ""


def table(data: str, rows: Sequence[Row]) -> Iterator[str]:
    """Yield what each detector catches and costs, then its AUROC by attack beside what was published."""
    found = sorted((row for row in rows if row.skipped is None), key=lambda row: -worth(row))
    if found:
        items = ", ".join(f"{count:,} {what}" for what, count in found[0].items.items())
        yield f"{data}: {items}"
        head = f"{'AUROC':>4} {'at 1 %':>15} {'at 5 %':>9} "
        yield f"{'':20}{'seen':33} {'left out':33} {'for-':>5}{'µs':>7} {'MiB':>4} {'fit':>4}"
        yield f"{'':20}{head:33} {head:33} {'wards':>5}{'b. 1':>7} {'':4} {'s':>4}"
        for row in found:
            yield cells(row)
        yield ""
        yield from by_attack(found, published=data.startswith("cifar10"))
    for row in rows:
        if row.skipped is not None:
            yield from lines_of(f"{row.detector}: not measured: {row.skipped}")
    if data.startswith("cifar10"):
        for row in found:
            for line in below_published(row):
                yield from lines_of(f"{100 * FAR_BELOW:.0f} points below: {line}")


def worth(row: Row) -> float:
    return 0.0 if row.seen is None else row.seen.auroc[0]


def cells(row: Row) -> str:
    """Return a detector's line of the first table."""
    if row.seen is None or row.left_out is None:
        return f"{row.detector:20}"
    first = row.microseconds["1"][0]
    costs = f"{row.forwards:5.3g}{first:7.0f} {row.memory_mib:4.0f} {row.fitting_s:4.0f}"
    return f"{row.detector:20}{row.seen.text:33} {row.left_out.text:33} {costs}"


def by_attack(rows: Sequence[Row], *, published: bool) -> Iterator[str]:
    """Yield the AUROC by attack, seen and left out, and what was published for the method, marked as such."""
    names = list(dict.fromkeys(name for row in rows for name in row.attacks))
    yield f"{'AUROC, seen/left out':20}" + "".join(f"{short(name):>10}" for name in names) + "  published" * published
    for row in rows:
        pairs = [row.attacks[name] for name in names]
        own = [one for one in PUBLISHED if one.detector == row.detector] if published else []
        sources = dict.fromkeys(one.source for one in own)
        texts = [f"{name}: " + ", ".join(one.text for one in own if one.source == name) for name in sources]
        areas = "".join(f"{decimals(p.seen.auroc[0]):>5}/{decimals(p.left_out.auroc[0])}" for p in pairs)
        yield from with_texts(f"{row.detector:20}{areas}", texts)
        if any(one.as_published is not None for one in pairs):
            theirs = ("" if one.as_published is None else decimals(one.as_published) for one in pairs)
            yield f"{'  in their protocol':20}" + "".join(f"{text:>5}     " for text in theirs).rstrip()


def with_texts(line: str, texts: Sequence[str]) -> Iterator[str]:
    """Yield a line with texts to its right, in as many lines as they take."""
    room = max(WIDTH_COLUMNS - len(line) - 2, 20)
    parts = [part for text in texts for part in wrap(text, room, subsequent_indent="  ")] or [""]
    yield f"{line}  {parts[0]}".rstrip()
    yield from (f"{'':{len(line)}}  {part}" for part in parts[1:])


def short(name: str) -> str:
    """Return an attack's name for the head of a column of ten: pgd∞ 4."""
    return name.replace(" L∞", "∞").replace(" L2 ", "2 ").replace("/255", "").replace(" L2", "")


def lines_of(text: str) -> list[str]:
    return wrap(text, WIDTH_COLUMNS, subsequent_indent="  ")
