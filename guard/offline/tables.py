"""An evaluation as plain tables of 80 columns."""

from __future__ import annotations

import textwrap
from collections.abc import Iterator, Sequence

from guard.offline.findings import AttackRow, CleanRow, Detection, DetectorRow, Evaluation, Promise
from guard.offline.progress import short
from guard.offline.wording import (
    area_text,
    decimal,
    percent,
    promise_notes,
    promise_text,
    proof_text,
    rate_text,
    red_flags,
)

WIDTH = 80
ABREAST = 9  # attacks beside each other in the table of detectors
LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"


def lines_of(e: Evaluation) -> list[str]:
    """Everything that the page says, too."""
    parts = (clean_lines(e), attack_lines(e), left_out_lines(e), adaptive_lines(e), detector_lines(e), flag_lines(e))
    return [line for part in parts for line in part]


def clean_lines(e: Evaluation) -> Iterator[str]:
    yield ""
    yield f"{'INPUTS THAT NOBODY ATTACKED':<34}{'items':>6}  {'taken for attacked, promised':<35}".rstrip()
    yield f"{'':<40}  " + "".join(f"{promise_text(p):<19}" for p in e.promises).rstrip()
    for row in e.clean:
        yield f"{short(row.name, 33):<34}{row.rejected.items:>6}  " + alarms(row, e.promises)
        if row.bands:
            bands = (row.bands.get(p.name) for p in e.promises)
            yield (
                f"{'  as many, if the promise holds':<43}  "
                + "".join(f"{f'{band[0]} to {band[1]}' if band else '–':<18}" for band in bands).rstrip()
            )


def alarms(row: CleanRow, promises: Sequence[Promise]) -> str:
    cells = []
    for promise in promises:
        rate = row.alarms.get(promise.name)
        text = f"{rate.count}: {percent(rate.value, 1)}" if rate is not None and row.bands else rate_text(rate, 1)
        cells.append(f"{text:<19}")
    return "".join(cells).rstrip()


def attack_lines(e: Evaluation) -> Iterator[str]:
    yield ""
    yield f"{'ATTACKED INPUTS':<23}{'items':>5}  {'AUROC':<18} {'caught, promised':<30}".rstrip()
    yield f"{'':<49}" + "".join(f"{promise_text(p):<16}" for p in e.promises).rstrip()
    for letter, row in zip(LETTERS, e.attacks, strict=False):
        thin = "*" if row.thin else " "
        yield f"{letter} {short(row.label, 21):<21}{row.success.count:>5}{thin} {detected(row.served, e.promises)}"
        if row.setting != "seen":
            yield f"    {row.setting}"
        if row.left_out:
            yield f"    {'family left out':<19}{'':>5}  {detected(row.left_out, e.promises)}"
    for adaptive in e.adaptive:
        few = f"  {short(adaptive.label, 21):<21}{adaptive.fooled.count:>5}"
        yield f"{few}  {detected(adaptive.detection, e.promises)}"
    yield from wrapped(
        "An item counts once the model, right before, is wrong after, on the grid of the data. In brackets: 95 % "
        "intervals." + (" *: fewer than 200 items, an indication." if any(row.thin for row in e.attacks) else "")
    )
    for note in promise_notes(e):
        yield from wrapped(note)


def detected(detection: Detection, promises: Sequence[Promise]) -> str:
    cells = "".join(f"{rate_text(detection.caught.get(p.name)):<16}" for p in promises)
    return f"{area_text(detection.auroc):<18} {cells}".rstrip()


def left_out_lines(e: Evaluation) -> Iterator[str]:
    if not e.left_out:
        yield from wrapped("No family was left out, so these rows say little of attacks that nobody thought of.")
        return
    for row in e.left_out:
        alarms = ", ".join(f"{rate_text(row.alarms.get(p.name), 1)} at {promise_text(p)}" for p in e.promises)
        yield from wrapped(
            f"Without {row.family}: fitted on {', '.join(row.fitted_on)}; false alarms on clean {alarms}."
        )


def adaptive_lines(e: Evaluation) -> Iterator[str]:
    yield ""
    yield f"{'AN ATTACKER WHO KNOWS THE GUARD':<33}{'fools':>6}  {'gets through, promised':<32}".rstrip()
    yield f"{'':<41}" + "".join(f"{promise_text(p):<16}" for p in e.promises) + "counts"
    for row in e.adaptive:
        name = f"{row.label}, {row.fooled.items} x {row.steps} steps"
        cells = "".join(f"{rate_text(row.passed.get(p.name)):<16}" for p in e.promises)
        counts = "yes" if row.proven else "no"
        yield f"{short(name, 33):<33}{percent(row.fooled.value):>6}  {cells}{counts}"
    for row in e.adaptive[:1]:
        yield from wrapped(
            f"Proof of strength, success against detectors known to be weak, each alone, at the largest budget: "
            f"{proof_text(row)}" + ("." if row.proven else ": attack unproven.")
        )


def detector_lines(e: Evaluation) -> Iterator[str]:
    attacks = list(zip(LETTERS, e.attacks, strict=False))
    for start in range(0, len(attacks), ABREAST):
        some = attacks[start : start + ABREAST]
        yield ""
        yield f"{'EACH DETECTOR ALONE':<24}{'forwards':>8}  AUROC of attack"
        yield f"{'':<24}{'all own':>8}  " + "".join(f"{letter:<5}" for letter, _ in some).rstrip()
        for detector in e.detectors:
            yield from one_detector(detector, [row for _, row in some])
    yield from wrapped(
        "Forwards: beside the one that the model needs anyway, a backward counting as one; own: what no other "
        "detector of its program pays for too. AUROC in the direction of the paper: below .5 the attack makes an "
        "input look calmer than clean. Both tails: of the two-sided p-value, which is what the fusion looks at."
    )


def one_detector(detector: DetectorRow, rows: Sequence[AttackRow]) -> Iterator[str]:
    one = [row.detector_auroc.get(detector.name, float("nan")) for row in rows]
    two = [row.detector_surprise.get(detector.name, float("nan")) for row in rows]
    costs = f"{detector.forwards:>4}{detector.own:>4}"
    yield f"{short(detector.name, 23):<24}{costs}  " + "".join(f"{decimal(value):<5}" for value in one).rstrip()
    if any(value < 0.5 for value in one):
        yield f"{'  both tails':<24}{'':>8}  " + "".join(f"{decimal(value):<5}" for value in two).rstrip()


def flag_lines(e: Evaluation) -> Iterator[str]:
    flags = red_flags(e)
    yield ""
    if not flags:
        yield "Nothing speaks against these figures that the evaluation itself can see."
        return
    yield "WHAT SPEAKS AGAINST THESE FIGURES"
    for flag in flags:
        yield from textwrap.wrap(flag, WIDTH, initial_indent="- ", subsequent_indent="  ")


def wrapped(text: str) -> list[str]:
    return textwrap.wrap(text, WIDTH, initial_indent="  ", subsequent_indent="  ")
