"""Red flags: sentences in which a report says what speaks against its own figures.

Rule 1: no flag rests on a figure whose source was not read.
"""

from __future__ import annotations

import math

from guard.calibration import check_promise
from guard.offline.findings.attack_names import spoken_budget
from guard.offline.findings.evaluation import (
    HARMLESS,
    NOISE,
    OFF_GRID,
    PROOF_SHARE,
    AdaptiveRow,
    AttackRow,
    Evaluation,
    UnrunRow,
    fewest,
)
from guard.offline.findings.intervals import MIN_EXPECTED_ALARMS, Caught, Rate
from guard.offline.report.published import best_within, data_like
from guard.offline.report.wording import bracket, percent, promise_text, proof_text

ALARM_RATE_FACTOR = 1.5  # times the promised rate
FEEBLE_ATTACK_SHARE = 0.1  # success on the bare model below which an attack says little
MIN_AGREED_SHARE = 0.8  # of attacked items, below which a student's evidence says little of its model
MEANING = {
    OFF_GRID: "some detector reads the file format",
    NOISE: "a part of what is caught is that anything was changed at all",
    HARMLESS: "inputs that a sensor, a file or resizing has changed are taken for attacked",
}


def red_flags(e: Evaluation) -> list[str]:
    """Return everything that the report says against itself."""
    return [
        *closed_flags(e),
        *adaptive_flags(e),
        *claim_flags(e),
        *promise_flags(e),
        *class_flags(e),
        *attack_flags(e),
        *suite_flags(e),
    ]


def closed_flags(e: Evaluation) -> list[str]:
    """Return what speaks against figures of a closed model: an attack need not go through the student."""
    if e.closed is None:
        return []
    flags = [
        "The model is closed, so every attack, the adaptive one too, climbed a student's gradient; who asks the model "
        f"itself is not measured. Of what misled the student, {percent(e.closed.transfer.value)} fooled the model."
    ]
    if e.closed.attacked.value < MIN_AGREED_SHARE:
        flags.append(
            f"On attacked items student and model agree on {percent(e.closed.attacked.value)} only: what the guard "
            "reads there is not what the model does."
        )
    return flags


def adaptive_flags(e: Evaluation) -> list[str]:
    flags = []
    for row in e.adaptive:
        if not row.proven:
            flags.append(
                f"{row.label}: attack unproven, since {'; '.join(row.doubts)} ({proof_text(row)}); what gets "
                "through is a lower bound, no more."
            )
        if (better := stronger_static(row, e)) is not None:
            label, static, own = better
            flags.append(
                f"{row.label}: gets through on {percent(own.value)} of the items, {label}, which knows nothing of the "
                f"guard, on {percent(static.value)}; the knowing attack is too weak to be believed."
            )
        if not row.agrees:
            flags.append(
                f"{row.label}: what was attacked is not what is served: the verdicts differ on "
                f"{percent(row.disagreement, 1)} of the items, the risks by up to {row.risk_gap:.2g}."
            )
    return flags


def stronger_static(row: AdaptiveRow, e: Evaluation) -> tuple[str, Rate, Rate] | None:
    """Return a static attack within the budget that gets through as often, its share, and the adaptive one's."""
    rate = row.target
    for attack in e.every_attack:
        if attack.norm != "linf" or attack.budget is None or attack.budget > row.budget + 1e-9:
            continue
        handled = attack.served.handled.get(rate)
        pairs = [(attack.robust_accuracy.complement(), row.passed_reject)]
        if handled is not None and (own := row.passed.get(rate)) is not None:
            pairs.append((handled.complement(), own))
        for static, own in pairs:
            if static.items and own.items and own.value <= static.value and own.value < PROOF_SHARE:
                return attack.label, static, own
    return None


def claim_flags(e: Evaluation) -> list[str]:
    """Flag claims beyond what is known to be possible, over all items, also those the model had wrong before."""
    flags, data = [], data_like(e.item_shape, e.class_count)
    for row in e.adaptive:
        claim = e.accuracy.value * row.passed_reject.complement().value
        half, whole = best_within(data, "linf", row.budget / 2), best_within(data, "linf", row.budget)
        size = spoken_budget(row.budget, e.grid)
        if half is not None and claim > half.accuracy:
            flags.append(
                f"{row.label}: robust accuracy with rejection of {percent(claim, 1)} at {size} would imply a "
                f"classifier that is as robust at half of it (Tramer 2022); RobustBench's best on {half.data} at "
                f"{half.spoken} is {percent(half.accuracy, 1)}. The attack is probably too weak."
            )
        elif half is None and whole is not None and claim > whole.accuracy:
            flags.append(
                f"{row.label}: robust accuracy with rejection of {percent(claim, 1)} at {size} exceeds RobustBench's "
                f"best on {whole.data} at {whole.spoken}, {percent(whole.accuracy, 1)}, which takes robust training. "
                "The attack is probably too weak."
            )
    return flags


def promise_flags(e: Evaluation) -> list[str]:
    flags = []
    for row in e.clean:
        own = (("rejected", row.rejected, row.reject_band), ("flagged", row.flagged, row.flag_band))
        for what, found, band in own:
            if band and not band[0] <= found.count <= band[1]:
                flags.append(f"{row.name}: {found.count} {what}, outside the promised band {band[0]} to {band[1]}.")
        for rate, (low, high) in row.bands.items():
            alarms = row.alarms.get(rate)
            if alarms is not None and not low <= alarms.count <= high:
                band_text = f"outside the promised band {low} to {high}"
                flags.append(f"{row.name}: {alarms.count} alarms at {100 * rate:g}%, {band_text}.")
        if row.name in MEANING:
            flags += unattacked_flags(row.name, row.alarms, MEANING[row.name])
    return [*flags, *few_flags(e)]


def few_flags(e: Evaluation) -> list[str]:
    """Flag rates that are stated, and rest on few items."""
    flags = []
    for promise in e.promises:
        if promise.reason is not None:
            continue
        tested = promise.tested
        if tested is not None and tested * promise.rate < MIN_EXPECTED_ALARMS:
            flags.append(
                f"At {promise_text(promise)} the false alarms on {tested} clean test items say little: "
                f"it takes {math.ceil(MIN_EXPECTED_ALARMS / promise.rate)}."
            )
        if thin := check_promise(promise.rate, promise.items, name="rate"):
            flags.append(f"At {promise_text(promise)} the promise is thin: {thin}.")
    return flags


def unattacked_flags(name: str, alarms: Caught, meaning: str) -> list[str]:
    """Flag more alarms than chance and bad luck explain, on harmless inputs that the promise does not cover."""
    return [
        f"{name}: {percent(rate.value, 1)} taken for attacked at {100 * at:g}%; {meaning}."
        for at, rate in alarms.items()
        if rate is not None and rate.low > ALARM_RATE_FACTOR * at
    ]


def class_flags(e: Evaluation) -> list[str]:
    """Flag the class with the most false alarms at each rate, if chance hardly explains it."""
    told: dict[str, list[str]] = {}
    for promise in e.stated:
        over = [row for row in e.by_class if row.bothered(promise.rate, len(e.by_class))]
        worst = max(over, key=lambda row: alarm_value(row.alarms.get(promise.rate)), default=None)
        if worst is not None and (found := worst.alarms[promise.rate]) is not None:
            text = f"{percent(found.value, 1)} {bracket(found, 1)} at {promise_text(promise)}"
            told.setdefault(
                f"{worst.name} is bothered most, {found.items} clean items: taken for attacked ", []
            ).append(text)
    return [f"{name}{', '.join(texts)}." for name, texts in told.items()]


def alarm_value(rate: Rate | None) -> float:
    return -1.0 if rate is None else rate.value


def attack_flags(e: Evaluation) -> list[str]:
    flags = []
    for row in e.every_attack:
        if row.success.count == 0:
            flags.append(f"{row.label}: it does not fool the bare model; its row says nothing.")
        elif row.success.high < FEEBLE_ATTACK_SHARE:
            flags.append(
                f"{row.label}: it fools the bare model on {percent(row.success.value, 1)} of the items; "
                "its row says little."
            )
    thin = [row for row in e.every_attack if row.thin and row.success.count]
    for least in sorted({fewest(row.family) for row in thin}, reverse=True):
        names = ", ".join(count_text(row) for row in thin if fewest(row.family) == least)
        flags.append(f"Fewer than {least} verified items, an indication only: {names}.")
    return flags


def count_text(row: AttackRow) -> str:
    return f"{row.label} ({row.success.count})"


def suite_flags(e: Evaluation) -> list[str]:
    if e.suite is None or len(e.suite.run) == len(e.suite.rows):
        return []
    unrun = sum(isinstance(row, UnrunRow) and row.applies for row in e.suite.rows)
    return [
        f"{unrun} of {len(e.suite.rows)} attacks of the suite {e.suite.name} could not be run; they count as failed."
    ]
