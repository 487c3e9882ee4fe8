"""How an evaluation's findings read, on the terminal and on the page, and what they say against themselves."""

from __future__ import annotations

import math

from guard.offline.findings import (
    FEWEST,
    NOISE,
    OFF_GRID,
    PROOF_SHARE,
    AdaptiveRow,
    Area,
    AttackRow,
    Caught,
    Evaluation,
    Promise,
    Rate,
)

BEYOND_LUCK = 1.5  # times the promised rate
MEANING = {
    OFF_GRID: "some detector reads the file format",
    NOISE: "a part of what is caught is that anything was changed at all",
}
NONE = "–"


def percent(value: float, decimals: int = 0) -> str:
    return NONE if math.isnan(value) else f"{100 * value:.{decimals}f}%"


def bracket(rate: Rate, decimals: int = 0) -> str:
    """The interval, in per cent."""
    return f"[{100 * rate.low:.{decimals}f}, {100 * rate.high:.{decimals}f}]"


def rate_text(rate: Rate | None, decimals: int = 0) -> str:
    """A share and its interval; a dash where it was not promised, or of nothing."""
    return NONE if rate is None or rate.items == 0 else f"{percent(rate.value, decimals)} {bracket(rate, decimals)}"


def decimal(value: float) -> str:
    """Three places, no leading zero."""
    return NONE if math.isnan(value) else "1.00" if value >= 0.9995 else f"{value:.3f}".lstrip("0")


def area_text(area: Area) -> str:
    return NONE if math.isnan(area.value) else f"{decimal(area.value)} [{decimal(area.low)}, {decimal(area.high)}]"


def promise_notes(evaluation: Evaluation) -> list[str]:
    """Why a rate has no numbers, and what few items make of a promise."""
    return [f"At {percent(p.rate)} nothing is stated: {p.reason}." for p in evaluation.promises if p.reason is not None]


def promise_text(promise: Promise) -> str:
    return f"{100 * promise.rate:g}%"


def proof_text(row: AdaptiveRow) -> str:
    """What the attack does to detectors known to be broken."""
    return ", ".join(f"{p.detector} {percent(p.success.value)}" for p in row.proof) or "none of them is in the bundle"


def setting_text(row: AttackRow) -> str:
    """Of the attack, in the served bundle's training."""
    return "" if row.setting == "seen" else f", {row.setting}"


def red_flags(e: Evaluation) -> list[str]:
    """What the report says against itself."""
    return [*adaptive_flags(e), *promise_flags(e), *attack_flags(e)]


def adaptive_flags(e: Evaluation) -> list[str]:
    flags = []
    static = {row.label: row.rejected.value for row in e.attacks if row.success.count}
    for row in e.adaptive:
        if not row.proven:
            flags.append(
                f"{row.label}: attack unproven, since it did not first defeat detectors known to be weak on "
                f"{PROOF_SHARE:.0%} of the items ({proof_text(row)}); its row says nothing about the guard."
            )
        fooled = row.fooled.count
        caught = 1 - row.passed_reject.count / fooled if fooled else 0.0
        if fooled and static and caught > max(static.values()) + 0.05:
            flags.append(f"{row.label}: caught more often than any static attack; it is too weak to be believed.")
    return flags


def promise_flags(e: Evaluation) -> list[str]:
    flags = []
    for row in e.clean:
        own = (("rejected", row.rejected, row.reject_band), ("flagged", row.flagged, row.flag_band))
        for what, found, band in own:
            if band and not band[0] <= found.count <= band[1]:
                flags.append(f"{row.name}: {found.count} {what}, outside the promised band {band[0]} to {band[1]}.")
        for name, (low, high) in row.bands.items():
            alarms = row.alarms.get(name)
            if alarms is not None and not low <= alarms.count <= high:
                band_text = f"outside the promised band {low} to {high}"
                flags.append(f"{row.name}: {alarms.count} alarms at {float(name):.0%}, {band_text}.")
        if row.name in MEANING:
            flags += unattacked_flags(row.name, row.alarms, MEANING[row.name])
    return flags


def unattacked_flags(name: str, alarms: Caught, meaning: str) -> list[str]:
    """More alarms than chance and bad luck explain, on inputs that the promise does not cover but that are harmless."""
    return [
        f"{name}: {percent(rate.value, 1)} taken for attacked at {float(at):.0%}; {meaning}."
        for at, rate in alarms.items()
        if rate is not None and rate.low > BEYOND_LUCK * float(at)
    ]


def attack_flags(e: Evaluation) -> list[str]:
    flags = [
        f"{row.label}: it does not fool the bare model; its row says nothing."
        for row in e.attacks
        if row.success.count == 0
    ]
    thin = [f"{row.label} ({row.success.count})" for row in e.attacks if row.thin and row.success.count]
    if thin:
        flags.append(f"Fewer than {FEWEST} verified items, an indication only: {', '.join(thin)}.")
    return flags
