"""An evaluation as plain tables of 80 columns: the page's figures, with fewer words."""

from __future__ import annotations

import textwrap
from collections.abc import Iterator, Sequence

from guard.offline.findings.evaluation import AttackRow, CleanRow, Detection, DetectorRow, Evaluation, UnrunRow
from guard.offline.findings.intervals import Area, Caught, Rate
from guard.offline.report.red_flags import red_flags
from guard.offline.report.wording import (
    NONE,
    area_text,
    decimal,
    gap_text,
    percent,
    promise_notes,
    promise_text,
    proof_text,
    rate_text,
    thin_text,
)
from guard.offline.work.text import short

WIDTH_COLUMNS = 80
MAX_ATTACK_COLUMNS = 9  # attacks beside each other in the tables of detectors
MAX_LISTED_CLASSES = 10  # that are bothered most
LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"
NOWHERE = Area(float("nan"), 0.0, 1.0)
WIDE_CELL_COLUMNS, NARROW_CELL_COLUMNS = (
    19,
    15,
)  # columns of a cell with an interval, where two rates are stated and where three are


def lines_of(e: Evaluation) -> list[str]:
    """Return everything that the page says, but for its pictures, as lines."""
    parts = (
        clean_lines(e),
        class_lines(e),
        attack_lines(e),
        suite_lines(e),
        adaptive_lines(e),
        system_lines(e),
        detector_lines(e),
        flag_lines(e),
    )
    return [line for part in parts for line in part]


def heads(e: Evaluation, width: int) -> str:
    return "".join(f"{promise_text(p):<{width}}" for p in e.stated).rstrip()


def cells(found: Caught, e: Evaluation, decimals: int = 0) -> str:
    """Return a share and its interval at each stated rate."""
    return "".join(f"{rate_text(found.get(p.rate), decimals):<{width_of(e)}}" for p in e.stated).rstrip()


def width_of(e: Evaluation) -> int:
    """Return the width of a cell in the tables of attacks."""
    return NARROW_CELL_COLUMNS if len(e.stated) > 2 else NARROW_CELL_COLUMNS + 1


def clean_lines(e: Evaluation) -> Iterator[str]:
    width = NARROW_CELL_COLUMNS - 2 if len(e.stated) > 2 else WIDE_CELL_COLUMNS
    yield ""
    yield f"{'INPUTS THAT NOBODY ATTACKED':<34}{'items':>6}  {'taken for attacked, promised':<35}".rstrip()
    yield f"{'':<40}  " + heads(e, width)
    for row in e.clean:
        yield f"{short('  ' * row.part + row.name, 33):<34}{row.rejected.items:>6}  " + alarms(row, e, width)
        if row.bands:
            bands = (row.bands.get(p.rate) for p in e.stated)
            yield (
                f"{'  as many, if the promise holds':<42}"
                + "".join(f"{f'{band[0]} to {band[1]}' if band else NONE:<{width}}" for band in bands).rstrip()
            )
    if any(row.accuracy for row in e.clean):
        right = ", ".join(f"{row.name} {percent(row.accuracy.value)}" for row in e.clean if row.accuracy)
        yield from wrapped(f"Shift is measured, not promised. The bare model is right on: {right}.")
    if e.shift_note:
        yield from wrapped(f"No shifted data: {e.shift_note}.")


def alarms(row: CleanRow, e: Evaluation, width: int) -> str:
    found = []
    for promise in e.stated:
        rate = row.alarms.get(promise.rate)
        if width < WIDE_CELL_COLUMNS or (rate is not None and row.bands):
            text = NONE if rate is None else f"{rate.count}: {percent(rate.value, 1)}"
        else:
            text = rate_text(rate, 1)
        found.append(f"{text:<{width}}")
    return "".join(found).rstrip()


def class_lines(e: Evaluation) -> Iterator[str]:
    """Yield false alarms on items that the model has right and wrong, and in the classes with the most of them."""
    if not e.classes or not e.stated:
        return
    width = NARROW_CELL_COLUMNS - 2 if len(e.stated) > 2 else WIDE_CELL_COLUMNS
    loudest = e.stated[-1].rate
    classes = sorted(e.by_class, key=lambda row: -value(row.alarms.get(loudest)))
    yield ""
    yield f"{'WHOM IT BOTHERS: CLEAN ITEMS':<27}{'items':>6}{'right':>7}  taken for attacked, promised"
    yield f"{'':<42}" + heads(e, width)
    for row in (*e.by_answer, *classes[:MAX_LISTED_CLASSES]):
        rates = [row.alarms.get(promise.rate) for promise in e.stated]
        texts = (rate_text(rate, 1) if width == WIDE_CELL_COLUMNS else percent(value(rate), 1) for rate in rates)
        found = "".join(f"{text:<{width}}" for text in texts)
        yield f"{short(row.name, 26):<28}{row.accuracy.items:>5}{percent(row.accuracy.value):>7}  {found}".rstrip()
    if len(classes) > MAX_LISTED_CLASSES:
        yield from wrapped(f"The {MAX_LISTED_CLASSES} of {len(classes)} classes that are bothered most.")


def value(rate: Rate | None) -> float:
    return float("nan") if rate is None else rate.value


def attack_lines(e: Evaluation) -> Iterator[str]:
    yield from attack_heads("ATTACKED INPUTS", e)
    for letter, row in zip(LETTERS, e.attacks, strict=False):
        yield from one_attack(f"{letter} ", row, e)
    for adaptive in e.adaptive:
        few = f"  {short(adaptive.label, 21):<21}{adaptive.fooled.count:>5}"
        yield f"{few}  {detected(adaptive.detection, e)}"
    star = f" *: {thin_text(row.family for row in e.attacks)}." if any(row.thin for row in e.attacks) else ""
    yield from wrapped(
        "An item counts once the model, right before, is wrong after, on the grid of the data. In brackets: 95 % "
        "intervals." + star
    )
    for note in promise_notes(e):
        yield from wrapped(note)
    yield from left_out_lines(e)


def attack_heads(title: str, e: Evaluation) -> Iterator[str]:
    yield ""
    yield f"{short(title, 22):<23}{'items':>5}  {'AUROC':<{area_width(e)}}caught, promised"
    yield f"{'':<{30 + area_width(e)}}" + heads(e, width_of(e))


def area_width(e: Evaluation) -> int:
    return 6 if len(e.stated) > 2 else 19


def one_attack(mark: str, row: AttackRow, e: Evaluation) -> Iterator[str]:
    thin = "*" if row.thin else " "
    yield f"{mark}{short(row.label, 21):<21}{row.success.count:>5}{thin} {detected(row.served, e)}"
    if row.setting != "seen":
        yield f"    {row.setting}"
    if row.left_out:
        yield f"    {'family left out':<19}{'':>5}  {detected(row.left_out, e)}"


def detected(detection: Detection, e: Evaluation) -> str:
    area = decimal(detection.auroc.value) if len(e.stated) > 2 else area_text(detection.auroc)
    return f"{area:<{area_width(e)}}{cells(detection.caught, e)}".rstrip()


def left_out_lines(e: Evaluation) -> Iterator[str]:
    if not e.left_out:
        yield from wrapped("No family was left out, so these rows say little of attacks that nobody thought of.")
        return
    for row in e.left_out:
        found = ", ".join(f"{rate_text(row.alarms.get(p.rate), 1)} at {promise_text(p)}" for p in e.stated)
        yield from wrapped(
            f"Without {row.family}: fitted on {', '.join(row.fitted_on)}; false alarms on clean {found}."
        )


def suite_lines(e: Evaluation) -> Iterator[str]:
    if e.suite is None:
        return
    yield from attack_heads(f"SUITE {e.suite.name}", e)
    for row in e.suite.rows:
        if isinstance(row, UnrunRow):
            yield f"  {short(row.label, 60)}"
            yield from wrapped(f"cannot be run, so it counts as failed: {row.reason}", 4)
        else:
            yield from one_attack("  ", row, e)
    star = f" *: {thin_text(row.family for row in e.suite.run)}." if any(row.thin for row in e.suite.run) else ""
    yield from wrapped(
        f"{e.suite.description.rstrip('.')}. In {e.suite.minutes:g} minutes of its own.{star}".lstrip(". ")
    )


def adaptive_lines(e: Evaluation) -> Iterator[str]:
    wide = 33 if len(e.stated) <= 2 else 30
    yield ""
    yield f"{short('AN ATTACKER WHO KNOWS THE GUARD', wide - 1):<{wide}}{'fools':>6}  gets through, promised"
    yield f"{'':<{wide + 8}}" + "".join(f"{promise_text(p):<{width_of(e) - 1}}" for p in e.stated).rstrip()
    for row in e.adaptive:
        name = f"{row.label}, {row.fooled.items} x {row.steps} steps"
        found = "".join(f"{rate_text(row.passed.get(p.rate)):<{width_of(e) - 1}}" for p in e.stated)
        yield f"{short(name, wide - 1):<{wide}}{percent(row.fooled.value):>6}  {found}".rstrip()
        if row.sr50 is not None:
            yield f"    {'where half of the clean are lost':<{wide + 4}}{rate_text(row.sr50)}"
        for method, rate in row.by_method.items():
            yield f"    {short(f'{method} alone', 36):<{wide + 4}}{rate_text(rate)}"
    for row in e.adaptive[:1]:
        yield from wrapped(
            f"Proof of strength, success against detectors known to be weak, each alone, at the largest budget: "
            f"{proof_text(row)}" + ("; it counts." if row.proven else ": attack unproven.")
        )
        named = f" Stand-ins for what has no gradient: {len(row.surrogates)}; the page names them."
        yield from wrapped(gap_text(row) + (named if row.surrogates else ""))


def system_lines(e: Evaluation) -> Iterator[str]:
    """Yield what is handled (rejected, or still right), and of what passes the share that is right."""
    names, few = e.stated, handled_width(e)
    yield ""
    title = f"{'THE WHOLE SYSTEM':<22}{'tried':>6}{'bare':>6}  "
    yield title + f"{'right or rejected':<{few * len(names)}}right of passed"
    shares = "".join(f"{promise_text(p):<{few}}" for p in names) + "".join(f"{promise_text(p):<6}" for p in names)
    yield f"{'':<36}{shares}".rstrip()
    for letter, row in zip(LETTERS, e.attacks, strict=False):
        yield system_line(f"{letter} {short(row.label, 19)}", row.tried, row.bare, row.served, e)
        if row.left_out:
            yield system_line("    family left out", None, None, row.left_out, e)
    for attack in e.every_attack[len(e.attacks) :]:
        yield system_line(f"  {short(attack.label, 19)}", attack.tried, attack.bare, attack.served, e)
    for adaptive in e.adaptive:
        name, bare = f"  {short(adaptive.label, 19)}", adaptive.fooled.complement()
        yield system_line(name, adaptive.fooled.items, bare, adaptive.detection, e)
    if e.worst is not None:
        bare = e.worst.bare
        yield system_line("the worst of A, B, ...", bare.items, bare, Detection(NOWHERE, {}, e.worst.handled), e)
    yield from wrapped(
        "Of items that the model has right; bare: it still has them right without a guard. The worst: each item meets "
        "the attack of the recipe that is worst for it."
    )


def handled_width(e: Evaluation) -> int:
    """Return the width of a handled share, with an interval where two rates are stated, without for three."""
    return 6 if len(e.stated) > 2 else NARROW_CELL_COLUMNS


def system_line(name: str, tried: int | None, bare: Rate | None, found: Detection, e: Evaluation) -> str:
    few = handled_width(e)
    rates = [found.handled.get(p.rate) for p in e.stated]
    handled = "".join(
        f"{rate_text(one) if few == NARROW_CELL_COLUMNS else percent(value(one)):<{few}}" for one in rates
    )
    passing = "".join(f"{percent(value(found.passing[p.rate])):<6}" for p in e.stated if p.rate in found.passing)
    count, share = "" if tried is None else str(tried), "" if bare is None else percent(bare.value)
    return f"{name:<22}{count:>6}{share:>6}  {handled}{passing}".rstrip()


def detector_lines(e: Evaluation) -> Iterator[str]:
    attacks = list(zip(LETTERS, e.attacks, strict=False))
    for start in range(0, len(attacks), MAX_ATTACK_COLUMNS):
        some = attacks[start : start + MAX_ATTACK_COLUMNS]
        letters = "".join(f"{letter:<5}" for letter, _ in some).rstrip()
        yield ""
        yield f"{'EACH DETECTOR ALONE':<24}{'forwards':>8}  AUROC of attack"
        yield f"{'':<24}{'all own':>8}  {letters}"
        for detector in e.detectors:
            yield from one_detector(detector, [row for _, row in some])
        for promise in e.stated[-1:]:
            yield f"{'':<24}{'':>8}  caught at {promise_text(promise)} alone"
            for detector in e.detectors:
                yield share_line(
                    detector.name, [row.served.alone.get(detector.name, {}).get(promise.rate) for _, row in some]
                )
            yield share_line("all together", [row.served.caught.get(promise.rate) for _, row in some])
    yield from wrapped(
        "Forwards: beside the one that the model needs anyway, a backward counting as one; own: what no other "
        "detector of its program pays for too. AUROC in the direction of the paper: below .5 the attack makes an "
        "input look calmer than clean. Both tails: of the two-sided p-value, which is what the fusion looks at, and "
        "what a detector alone is counted by."
    )


def share_line(name: str, rates: Sequence[Rate | None]) -> str:
    return f"{short(name, 23):<24}{'':>8}  " + "".join(f"{percent(value(rate)):<5}" for rate in rates).rstrip()


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
        yield from textwrap.wrap(flag, WIDTH_COLUMNS, initial_indent="- ", subsequent_indent="  ")


def wrapped(text: str, indent: int = 2) -> list[str]:
    return textwrap.wrap(text, WIDTH_COLUMNS, initial_indent=" " * indent, subsequent_indent=" " * indent)
