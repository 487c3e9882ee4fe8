"""An evaluation as plain tables of 80 columns: the page's figures, with fewer words."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from itertools import islice, product
from string import ascii_uppercase

from rich.console import RenderableType
from rich.table import Column, Table
from rich.text import Text

from guard.offline.findings.evaluation import AttackRow, CleanRow, Detection, DetectorRow, Evaluation, UnrunRow
from guard.offline.findings.intervals import Caught, Rate
from guard.offline.report.red_flags import red_flags
from guard.offline.report.rows import classes_by_alarms, system_rows
from guard.offline.report.wording import (
    NONE,
    area_text,
    counting_text,
    decimal,
    gap_text,
    knowledge_text,
    part_text,
    percent,
    promise_notes,
    promise_text,
    proof_text,
    rate_text,
    strength_text,
    thin_text,
)
from guard.offline.work.tables import counts, indented, marked, new_table, plain_lines, shares

MAX_ATTACK_COLUMNS = 9  # attacks beside each other in the tables of detectors
MAX_LISTED_CLASSES = 10  # that are bothered most
MAX_WIDE_RATES = 2  # rates stated, up to which every share has its interval and an AUROC too
Parts = Iterator[RenderableType]


def lines_of(e: Evaluation) -> list[str]:
    """Return everything that the page says, but for its pictures, as lines."""
    parts = (
        cut_part,
        closed_part,
        clean_part,
        class_part,
        attack_part,
        suite_part,
        curve_part,
        adaptive_part,
        answered_part,
        system_part,
        detector_part,
        flag_part,
    )
    return plain_lines(one for part in parts for one in part(e))


def cut_part(e: Evaluation) -> Parts:
    """Yield what was cut of guard and report, first of all."""
    if e.cuts:
        yield from titled("WHAT WAS CUT", *(indented(f"{text}.") for text in e.cuts))


def closed_part(e: Evaluation) -> Parts:
    """Yield whose gradient was used, where the model cannot be opened, and how far its student agrees with it."""
    if e.closed is None:
        return
    table = new_table("student and model name the same class", [counts("items"), shares("share")])
    for name, rate in (
        ("held-out clean items", e.closed.clean),
        ("attacked items", e.closed.attacked),
        ("of what misleads the student, fools the model", e.closed.transfer),
    ):
        table.add_row(name, str(rate.items), rate_text(rate, 1))
    yield from titled("WHOSE GRADIENT WAS USED", table)
    yield indented(
        f"The model is closed: {e.closed.model} answered ({e.closed.by}); gradient and layers are those of a student "
        f"distilled from {e.closed.questions:,} answers. Answers that count are the model's own."
    )


def is_wide(e: Evaluation) -> bool:
    return len(e.stated) <= MAX_WIDE_RATES


def table_of(e: Evaluation, names: str, columns: Sequence[Column]) -> Table:
    return new_table(names, columns, gap_columns=2 if is_wide(e) else 1)


def at_rates(what: str, e: Evaluation) -> list[Column]:
    """Return a column for each stated rate."""
    return [shares(f"{what} at {promise_text(p)}") for p in e.stated]


def cells(found: Caught, e: Evaluation) -> list[str]:
    """Return a share and its interval at each stated rate."""
    return [rate_text(found.get(p.rate)) for p in e.stated]


def value(rate: Rate | None) -> float:
    return math.nan if rate is None else rate.value


def letters() -> Iterator[str]:
    """Yield A to Z, then AA to ZZ: what the attacks of the recipe are called where their names have no room."""
    yield from ascii_uppercase
    yield from map("".join, product(ascii_uppercase, repeat=2))


def titled(title: str, *parts: RenderableType) -> Parts:
    yield Text()
    yield Text(title)
    yield from parts


def clean_part(e: Evaluation) -> Parts:
    table = table_of(e, "taken for attacked all the same", [counts("items"), *at_rates("alarms", e)])
    for row in e.clean:
        name = "  " * row.part + row.name
        table.add_row(name, str(row.rejected.items), *alarm_cells(row, e))
        if row.bands:
            bands = (row.bands.get(p.rate) for p in e.stated)
            texts = (f"{band[0]} to {band[1]}" if band else NONE for band in bands)
            table.add_row("  as many, if the promise holds", "", *texts)
    yield from titled("INPUTS THAT NOBODY ATTACKED", table)
    if any(row.accuracy for row in e.clean):
        right = ", ".join(f"{row.name} {percent(row.accuracy.value)}" for row in e.clean if row.accuracy)
        yield indented(f"Shift is measured, not promised. The bare model is right on: {right}.")
    if e.shift_note:
        yield indented(f"No shifted data: {e.shift_note}.")


def alarm_cells(row: CleanRow, e: Evaluation) -> Iterator[str]:
    for promise in e.stated:
        rate = row.alarms.get(promise.rate)
        if rate is not None and (row.bands or not is_wide(e)):
            yield f"{rate.count}: {percent(rate.value, 1)}"
        else:
            yield rate_text(rate, 1)


def class_part(e: Evaluation) -> Parts:
    """Yield false alarms on items that the model has right and wrong, and in the classes with the most of them."""
    if not e.classes or not e.stated:
        return
    classes = classes_by_alarms(e)
    table = table_of(e, "clean items", [counts("items"), counts("right"), *at_rates("alarms", e)])
    for row in (*e.by_answer, *classes[:MAX_LISTED_CLASSES]):
        rates = [row.alarms.get(promise.rate) for promise in e.stated]
        texts = (rate_text(rate, 1) if is_wide(e) else percent(value(rate), 1) for rate in rates)
        table.add_row(row.name, str(row.accuracy.items), percent(row.accuracy.value), *texts)
    yield from titled("WHOM IT BOTHERS", table)
    if len(classes) > MAX_LISTED_CLASSES:
        yield indented(f"The {MAX_LISTED_CLASSES} of {len(classes)} classes that are bothered most.")


def attack_part(e: Evaluation) -> Parts:
    table = attack_table(e)
    for letter, row in zip(letters(), e.attacks, strict=False):
        add_attack(table, letter, row, e)
    for adaptive in e.adaptive:
        table.add_row(marked(" ", adaptive.label), str(adaptive.fooled.count), *detected(adaptive.detection, e))
    yield from titled("ATTACKED INPUTS", table)
    yield indented(
        "An item counts once the model, right before, is wrong after, on the grid of the data. In brackets: 95 % "
        f"intervals.{star(e.attacks)}"
    )
    yield from map(indented, promise_notes(e))
    yield from map(indented, left_out_notes(e))
    yield from (indented(f"Skipped: {text}.") for text in e.skipped)


def attack_table(e: Evaluation) -> Table:
    return table_of(e, "", [counts("items"), shares("AUROC"), *at_rates("caught", e)])


def add_attack(table: Table, mark: str, row: AttackRow, e: Evaluation) -> None:
    setting = "" if row.setting == "seen" else f"\n  {row.setting}"
    name = f"{row.label}{'*' if row.thin else ''}{setting}"
    table.add_row(marked(mark, name), str(row.success.count), *detected(row.served, e))
    if row.left_out:
        table.add_row("    family left out", "", *detected(row.left_out, e))


def detected(detection: Detection, e: Evaluation) -> list[str]:
    area = area_text(detection.auroc) if is_wide(e) else decimal(detection.auroc.value)
    return [area, *cells(detection.caught, e)]


def star(rows: Sequence[AttackRow]) -> str:
    """Return what a star behind a name means, where there is one."""
    return f" *: {thin_text(row.family for row in rows)}." if any(row.thin for row in rows) else ""


def left_out_notes(e: Evaluation) -> Iterator[str]:
    if not e.left_out:
        yield "No family was left out, so these rows say little of attacks that nobody thought of."
    for row in e.left_out:
        found = ", ".join(f"{rate_text(row.alarms.get(p.rate), 1)} at {promise_text(p)}" for p in e.stated)
        note = f"; {row.note}" if row.note else ""
        yield f"Without {row.family}: fitted on {', '.join(row.fitted_on)}{note}; false alarms on clean {found}."


def suite_part(e: Evaluation) -> Parts:
    if e.suite is None:
        return
    table, notes = attack_table(e), []
    for row in e.suite.rows:
        if isinstance(row, UnrunRow):
            table.add_row(marked(" ", row.label), "failed" if row.applies else "skipped")
            what = "cannot be run, so it counts as failed" if row.applies else "does not apply"
            notes.append(f"{row.label} {what}: {row.reason}")
        else:
            add_attack(table, " ", row, e)
    yield from titled(f"SUITE {e.suite.name}", table)
    yield from map(indented, notes)
    about = f"{e.suite.description.rstrip('.')}. " if e.suite.description else ""
    yield indented(f"{about}In {e.suite.minutes:g} minutes of its own.{star(e.suite.run)}")


def curve_part(e: Evaluation) -> Parts:
    """Yield detection over the budget, for the attacks whose budget is a range."""
    if not e.curves:
        return
    table = table_of(e, "budget of the item", [counts("items"), counts("fools"), *at_rates("caught", e)])
    for row in e.curves:
        table.add_row(row.label)
        for part in row.curve:
            figures = (str(part.success.count), percent(part.success.value), *cells(part.caught, e))
            table.add_row(f"  {part_text(row, part, e.grid)}", *figures)
    yield from titled("DETECTION OVER THE BUDGET", table)
    yield indented("Each item drew a budget of its own; items are those that fool the model.")


def adaptive_part(e: Evaluation) -> Parts:
    table = table_of(e, "", [counts("items x steps"), counts("fools"), *at_rates("through", e)])
    for row in e.adaptive:
        table.add_row(row.label, f"{row.fooled.items} x {row.steps}", percent(row.fooled.value), *cells(row.passed, e))
        if row.grey is not None:
            table.add_row("  other second weights", "", percent(row.grey.fooled.value), *cells(row.grey.passed, e))
        if row.static is not None:
            table.add_row("  knows nothing", "", percent(row.static.fooled.value), *cells(row.static.passed, e))
    yield from titled("AN ATTACKER WHO KNOWS THE GUARD", table)
    if any(row.static for row in e.adaptive):
        yield indented(knowledge_text(e))
    for row in e.adaptive:
        if row.sr50 is not None:
            others = (("knows nothing", row.static), ("other second weights", row.grey))
            more = "".join(f"; {who} {rate_text(less.sr50)}" for who, less in others if less is not None)
            yield indented(f"{row.label}, where half of the clean are lost: {rate_text(row.sr50)}{more}.")
        if row.by_method:
            alone = ", ".join(f"{method} {rate_text(rate)}" for method, rate in row.by_method.items())
            yield indented(f"{row.label}, each method alone at {percent(row.target)}: {alone}.")
    for row in e.adaptive[:1]:
        yield indented(
            "Proof of strength, success against detectors known to be weak and second networks, each alone, at the "
            f"largest budget unless another is named: "
            f"{proof_text(row)}."
        )
        named = f" Stand-ins for what has no gradient: {len(row.surrogates)}; the page names them."
        yield indented(gap_text(row) + (named if row.surrogates else ""))
    for row in e.adaptive:
        if row.strength:
            yield indented(strength_text(row))
    yield indented(counting_text(e))


def answered_part(e: Evaluation) -> Parts:
    """Yield what a closed model's answers find beside the programs, where they are held until the verdict."""
    if not e.every_answered:
        return
    columns = [counts("\nitems"), *map(shares, ("programs\nalone", "with\nanswer", "before\nit"))]
    table = table_of(e, "rejected", columns)
    for row in e.every_answered:
        found = (percent(rate.value, 1) for rate in (row.alone, row.held, row.before))
        table.add_row(row.name, str(row.held.items), *found)
        if row.band is not None:
            table.add_row("  as many, if the promise holds", "", "", f"{row.band[0]} to {row.band[1]}", "")
    yield from titled('WITH THE MODEL\'S ANSWER HELD (forward = "before")', table)
    yield indented(
        f"At the bundle's own {percent(e.reject_rate, 1)}, of items that fool the model; the model sees all but those "
        "rejected before it. These attacks go through the student and mostly mislead it as well; who asks the model "
        "itself is not measured. The knowing attacker sends what is minded least."
    )


def system_part(e: Evaluation) -> Parts:
    """Yield what is handled (rejected, or still right), and of what passes the share that is right."""
    handled = [shares(f"handled\nat {promise_text(p)}") for p in e.stated]
    passing = [counts(f"passed\nat {promise_text(p)}") for p in e.stated]
    table = table_of(e, "", [counts("\ntried"), counts("\nbare"), *handled, *passing])
    marks = islice(letters(), len(e.attacks))  # the recipe's attacks come first
    for row in system_rows(e):
        few = [str(row.tried), percent(row.bare.value)]
        table.add_row(marked(next(marks, " "), row.label), *few, *handled_cells(row.served, e))
        if row.left_out:
            table.add_row("    family left out", "", "", *handled_cells(row.left_out, e))
    yield from titled("THE WHOLE SYSTEM", table)
    yield indented(
        "Of items that the model has right; bare: it still has them right without a guard; handled: right or rejected; "
        "passed: of what passes the guard, right. The worst: each item meets the attack of the recipe that is worst "
        "for it."
    )


def handled_cells(found: Detection, e: Evaluation) -> list[str]:
    handled = [found.handled.get(p.rate) for p in e.stated]
    passing = [percent(value(found.passing[p.rate])) if p.rate in found.passing else "" for p in e.stated]
    return [*(rate_text(one) if is_wide(e) else percent(value(one)) for one in handled), *passing]


def detector_part(e: Evaluation) -> Parts:
    attacks = list(zip(letters(), e.attacks, strict=False))
    for start in range(0, len(attacks), MAX_ATTACK_COLUMNS):
        some = attacks[start : start + MAX_ATTACK_COLUMNS]
        rows = [row for _, row in some]
        columns = [counts("forwards (own)"), *(shares(f"{letter:<4}") for letter, _ in some)]
        table = new_table("AUROC of each attack", columns, gap_columns=1)
        for detector in e.detectors:
            add_detector(table, detector, rows)
        for promise in e.stated[-1:]:
            table.add_section()
            table.add_row(f"caught at {promise_text(promise)} alone")
            for detector in e.detectors:
                alone = [row.served.alone.get(detector.name, {}).get(promise.rate) for row in rows]
                table.add_row(detector.name, "", *(percent(value(rate)) for rate in alone))
            together = [row.served.caught.get(promise.rate) for row in rows]
            table.add_row("all together", "", *(percent(value(rate)) for rate in together))
        yield from titled("EACH DETECTOR ALONE", table)
    yield indented(
        "Forwards: beside the one that the model needs anyway, a backward counting as one; own: what no other "
        "detector of its program pays for too. AUROC in the direction of the paper: below .5 the attack makes an "
        "input look calmer than clean. Both tails: of the two-sided p-value, which is what the fusion looks at, and "
        "what a detector alone is counted by."
    )
    yield from (indented(f"Second network {text}.") for text in e.second)


def add_detector(table: Table, detector: DetectorRow, rows: Sequence[AttackRow]) -> None:
    one = [row.detector_auroc.get(detector.name, math.nan) for row in rows]
    two = [row.detector_surprise.get(detector.name, math.nan) for row in rows]
    table.add_row(detector.name, f"{detector.forwards:.3g} ({detector.own:.3g})", *map(decimal, one))
    if any(value < 0.5 for value in one):
        table.add_row("  both tails", "", *map(decimal, two))


def flag_part(e: Evaluation) -> Parts:
    flags = red_flags(e)
    if flags:
        yield from titled("WHAT SPEAKS AGAINST THESE FIGURES", *(marked("-", flag) for flag in flags))
    else:
        yield from titled("Nothing speaks against these figures that the evaluation itself can see.")
