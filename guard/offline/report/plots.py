"""The page's plots: ROC curves, detection by budget, risks, and cost against detection."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.ticker import FuncFormatter

from guard.offline.findings.attack_names import spoken_budget
from guard.offline.findings.evaluation import AttackRow, Evaluation
from guard.offline.findings.figures import Floats
from guard.offline.findings.intervals import Promise, Rate
from guard.offline.report.drawing import BLACK, BLUE, CYCLE, GREY, MARKERS, PALE, VERMILION, Plot, panels, plain, svg
from guard.offline.report.wording import promise_text

NORMS = {"linf": "L∞", "l2": "L2", "l1": "L1", "l0": "L0"}
PER_CENT = FuncFormatter(lambda value, _: f"{100 * value:g}%")
HISTOGRAM_BINS = 60
MAX_PANEL_CURVES = 6  # curves in one panel, at most
LETTER_SHARE = 0.125  # of the room for a point that has a short name
SIDESTEP_FACTOR = 1.03  # of the budget: curves stand beside each other where intervals would overlap
MIN_TICK_POINTS, FREE_TICK_POINTS = 2, 5
MIN_SHOWN_RATE = 1e-3  # of the false alarm rates shown


def roc_plot(e: Evaluation) -> Plot | None:
    """Draw ROC curves, one panel a family or several: many lines in one could not be told apart."""
    if e.exhibit is None or not e.exhibit.attacks:
        return None
    risks, clean = e.exhibit.attacks, e.exhibit.clean
    families: dict[str, list[str]] = {}
    for row in e.every_attack:
        if row.label in risks and len(risks[row.label]):
            families.setdefault(row.family, []).append(row.label)
    if not families:
        return None
    parts = [part for family, labels in families.items() for part in in_parts(family, labels)]
    columns = min(3, len(parts))
    rows = -(-len(parts) // columns)
    drawn, axes = panels(columns, rows, width=3.6 * columns + 0.4, height=3.1 * rows)
    for ax, (title, labels) in zip(axes, parts, strict=False):
        one_roc(ax, title, {label: risks[label] for label in labels}, clean, e.stated)
    for ax in axes[len(parts) :]:
        ax.set_visible(False)
    for ax in axes[::columns]:
        ax.set_ylabel("caught of the attacked", fontsize=9, color=GREY)
    text = (
        "ROC curves by family: the share of attacked items caught against the share of held-out clean items taken for "
        "attacked, on a logarithmic axis. Upright lines: the promised rates. Dots: chance."
    )
    return Plot(svg(drawn), "ROC curves of every attack, by family", text)


def in_parts(family: str, labels: Sequence[str]) -> list[tuple[str, Sequence[str]]]:
    """Return titles and labels of panels that are about equally full."""
    count = -(-len(labels) // MAX_PANEL_CURVES)
    size = -(-len(labels) // count)
    titles = [family] if count == 1 else [f"{family}, {part + 1} of {count}" for part in range(count)]
    return [(title, labels[part * size : (part + 1) * size]) for part, title in enumerate(titles)]


def one_roc(ax: Axes, title: str, risks: dict[str, Floats], clean: Floats, promises: Sequence[Promise]) -> None:
    least = max(MIN_SHOWN_RATE, 1 / len(clean))
    chance = np.geomspace(least, 1, 50)
    ax.plot(chance, chance, color=GREY, linewidth=1, linestyle=":")
    for promise in promises:
        ax.axvline(promise.rate, color=PALE, linewidth=1.2)
    for number, (label, attacked) in enumerate(risks.items()):
        alarms, caught = roc(clean, attacked)
        ax.step(alarms, caught, where="post", color=CYCLE[number], linewidth=1.6, label=label)
    plain(ax)
    ax.set_xscale("log")
    ax.set_xlim(least, 1)
    ax.set_ylim(0, 1.02)
    ax.xaxis.set_major_formatter(PER_CENT)
    ax.yaxis.set_major_formatter(PER_CENT)
    ax.set_title(title, fontsize=10, loc="left")
    ax.set_xlabel("clean items taken for attacked", fontsize=9, color=GREY)
    ax.legend(fontsize=7.5, loc="lower right", frameon=True, framealpha=0.85, edgecolor="none")


def roc(clean: Floats, attacked: Floats) -> tuple[Floats, Floats]:
    """Return false alarms and detection at each threshold that a clean item sets, rising."""
    falling = np.sort(clean)[::-1]
    alarms = np.concatenate([[0.0], np.arange(1, len(clean) + 1) / len(clean)])
    bad = np.sort(attacked)
    above = 1 - np.searchsorted(bad, falling, side="left") / len(bad)
    first = 1 - np.searchsorted(bad, falling[0], side="right") / len(bad)
    return alarms, np.concatenate([[first], above])


def budget_plot(e: Evaluation) -> Plot | None:
    """Draw detection against budget, one panel for each norm in which there are several budgets."""
    made = e.stated
    if not made:
        return None
    promise = made[-1]
    norms = [norm for norm in NORMS if len(budgets_in(e, norm)) > 1]
    if not norms:
        return None
    drawn, axes = panels(len(norms), 1, width=5.2 * len(norms), height=3.4)
    for ax, norm in zip(axes, norms, strict=True):
        one_norm(ax, e, norm, promise)
    axes[0].set_ylabel(f"caught at {promise_text(promise)}", fontsize=9, color=GREY)
    text = (
        f"Detection at {promise_text(promise)} against the attacks' budget, with 95 % intervals. Dashed: an attacker "
        "who knows the guard."
    )
    return Plot(svg(drawn), "Detection of attacks by their budget", text)


def budgets_in(e: Evaluation, norm: str) -> list[float]:
    found = {row.budget for row in fixed(e, norm) if row.budget is not None and row.success.count}
    return sorted(found | ({row.budget for row in e.adaptive} if norm == "linf" else set()))


def fixed(e: Evaluation, norm: str) -> list[AttackRow]:
    """Return the attacks of a norm that have one budget for all items; those with a range have a curve of their own."""
    return [row for row in e.every_attack if row.norm == norm and not row.curve]


def one_norm(ax: Axes, e: Evaluation, norm: str, promise: Promise) -> None:
    kinds: dict[str, list[tuple[float, Rate]]] = {}
    for row in fixed(e, norm):
        share = row.served.caught.get(promise.rate)
        if row.budget is not None and share is not None and share.items:
            kinds.setdefault(row.attack.split("(")[0], []).append((row.budget, share))
    if norm == "linf":
        found = [(row.budget, row.detection.caught.get(promise.rate)) for row in e.adaptive]
        kinds["knows the guard"] = [(budget, share) for budget, share in found if share is not None and share.items]
    places = {budget: place for place, budget in enumerate(budgets_in(e, norm))}
    for number, (kind, points) in enumerate((kind, points) for kind, points in kinds.items() if points):
        knowing = kind == "knows the guard"
        colour, mark = (BLACK, "s") if knowing else (CYCLE[number % 6], MARKERS[number % len(MARKERS)])
        nudge = 0.05 * (number - (len(kinds) - 1) / 2)  # beside each other where intervals would overlap
        points = sorted(points, key=lambda point: point[0])
        x = [places[budget] + nudge for budget, _ in points]
        y = [share.value for _, share in points]
        errors = [[max(0.0, s.value - s.low) for _, s in points], [max(0.0, s.high - s.value) for _, s in points]]
        style = "--" if knowing else "-"
        ax.errorbar(x, y, errors, color=colour, marker=mark, linestyle=style, capsize=2, markersize=5, label=kind)
    plain(ax)
    grid = e.grid if norm == "linf" else None
    ax.set_xticks(list(places.values()), [spoken_budget(budget, grid) for budget in places])
    ax.set_xlim(-0.4, len(places) - 0.6)
    ax.set_ylim(-0.03, 1.03)
    ax.yaxis.set_major_formatter(PER_CENT)
    ax.set_title(NORMS[norm], fontsize=10, loc="left")
    ax.set_xlabel("budget", fontsize=9, color=GREY)
    ax.legend(fontsize=8, loc="center left", bbox_to_anchor=(1.01, 0.5), frameon=False)


def curve_plot(e: Evaluation) -> Plot | None:
    """Draw detection over the budgets that items drew, one panel for each norm with an attack whose budget is a range.

    A point stands in the middle of its part of the range, which the line through it spans.
    """
    norms = [norm for norm in NORMS if any(row.norm == norm for row in e.curves)]
    if not e.stated or not norms:
        return None
    promise = e.stated[-1]
    drawn, axes = panels(len(norms), 1, width=5.2 * len(norms), height=3.4)
    for ax, norm in zip(axes, norms, strict=True):
        one_curve_panel(ax, [row for row in e.curves if row.norm == norm], e, promise)
    axes[0].set_ylabel(f"caught at {promise_text(promise)}", fontsize=9, color=GREY)
    text = (
        f"Detection at {promise_text(promise)} over the budget, of attacks in which each item drew its own: one point "
        "for each part of the range, with its 95 % interval."
    )
    return Plot(svg(drawn), "Detection over the budgets that items drew", text)


def one_curve_panel(ax: Axes, rows: Sequence[AttackRow], e: Evaluation, promise: Promise) -> None:
    norm = rows[0].norm
    for number, row in enumerate(rows):
        found = [(part, part.caught.get(promise.rate)) for part in row.curve]
        points = [(part, share) for part, share in found if share is not None and share.items]
        x = np.asarray([np.sqrt(part.low * part.high) for part, _ in points]) * SIDESTEP_FACTOR**number
        y = np.asarray([share.value for _, share in points])
        spans = np.abs(np.asarray([(part.low, part.high) for part, _ in points]).reshape(-1, 2).T - x)
        errors = np.abs(np.asarray([(share.low, share.high) for _, share in points]).reshape(-1, 2).T - y)
        colour, mark = CYCLE[number % len(CYCLE)], MARKERS[number % len(MARKERS)]
        ax.errorbar(x, y, errors, spans, color=colour, marker=mark, capsize=2, markersize=5, lw=1.4, label=row.label)
    plain(ax)
    ax.set_xscale("log")
    low, high = min(row.curve[0].low for row in rows), max(row.curve[-1].high for row in rows)
    ax.set_xticks(*ticks_between(low, high, e.grid if norm == "linf" else None))
    ax.minorticks_off()
    ax.set_ylim(-0.03, 1.03)
    ax.yaxis.set_major_formatter(PER_CENT)
    ax.set_title(NORMS[norm], fontsize=10, loc="left")
    ax.set_xlabel("budget that the item drew", fontsize=9, color=GREY)
    ax.legend(fontsize=8, loc="center left", bbox_to_anchor=(1.01, 0.5), frameon=False)


def ticks_between(low: float, high: float, grid: int | None) -> tuple[list[float], list[str]]:
    """Return places on a logarithmic axis and their texts: doubled steps of the grid, or five numbers without one."""
    doubled = [] if grid is None else [2**power / grid for power in range(int(grid).bit_length())]
    places = [place for place in doubled if low * 0.999 <= place <= high * 1.001]
    if len(places) < MIN_TICK_POINTS:
        places = np.geomspace(low, high, FREE_TICK_POINTS).tolist()
    return places, [spoken_budget(place, grid) for place in places]


def risk_plot(e: Evaluation) -> Plot | None:
    """Draw the risks of clean items, noise and each attack, one above the other."""
    if e.exhibit is None or len(e.exhibit.clean) == 0:
        return None
    kinds = {"clean": e.exhibit.clean, "noise": e.exhibit.noise, **e.exhibit.attacks}
    kinds = {name: risk for name, risk in kinds.items() if len(risk)}
    made = e.stated
    limits = [e.exhibit.thresholds[p.rate] for p in made if p.rate in e.exhibit.thresholds]
    low, high = min(float(risk.min()) for risk in kinds.values()), max(float(risk.max()) for risk in kinds.values())
    edges = np.linspace(low, high + 1e-6, HISTOGRAM_BINS + 1)
    drawn, (ax,) = panels(1, 1, width=9.0, height=1.2 + 0.42 * len(kinds))
    for place, (_, risk) in enumerate(kinds.items()):
        ridge(ax, -place, risk, edges, limits[-1] if limits else high)
    plain(ax)
    ax.grid(visible=False)
    for promise, limit in zip(made, limits, strict=False):
        ax.axvline(limit, color=GREY, linewidth=1, linestyle="--")
        ax.annotate(
            promise_text(promise),
            (limit, 1.0),
            (2, 1),
            ("data", "axes fraction"),
            "offset points",
            fontsize=8,
            color=GREY,
        )
    ax.set_yticks([-place for place in range(len(kinds))], list(kinds), fontsize=8.5)
    ax.set_xticks([])
    ax.set_ylim(-len(kinds) + 0.85, 0.95)
    ax.set_xlabel("risk: calm on the left, suspicious on the right", fontsize=9, color=GREY)
    text = (
        "How risky the guard takes each kind of input to be; every row has its own height. Dashed: beyond these risks "
        f"lie {' and '.join(promise_text(p) for p in made)} of the clean calibration items. Orange: what is caught at "
        f"the last of these rates.{early(e)}"
    )
    return Plot(svg(drawn), "Distribution of the risk of clean, noisy and attacked inputs", text)


def early(e: Evaluation) -> str:
    """Return a sentence that explains a group of risks far on the right, where there is one."""
    top = (
        max((float(risk.max()) for risk in e.exhibit.attacks.values() if len(risk)), default=0.0) if e.exhibit else 0.0
    )
    several = len({row.program for row in e.detectors}) > 1
    return " The group far on the right was rejected by the first program alone." if several and top > 2 else ""


def ridge(ax: Axes, base: float, risk: Floats, edges: Floats, limit: float) -> None:
    """Draw a histogram standing on `base`, what lies beyond the limit in another colour."""
    counts, _ = np.histogram(risk, edges)
    heights = 0.85 * counts / max(int(counts.max()), 1)
    for colour, kept in ((BLUE, edges[:-1] < limit), (VERMILION, edges[:-1] >= limit)):
        ax.bar(
            edges[:-1][kept], heights[kept], np.diff(edges)[kept], bottom=base, align="edge", color=colour, linewidth=0
        )
    ax.axhline(base, color=PALE, linewidth=0.8)


def cost_plot(e: Evaluation) -> Plot | None:
    """Draw each detector, and all together: forwards an item, and the mean, least and most caught of the attacks."""
    made = e.stated
    rows = [row for row in e.attacks if row.success.count]
    if not made or not rows:
        return None
    promise = made[-1]
    points: list[tuple[str, float, list[float]]] = []
    for detector in e.detectors:
        shares = shares_of([row.served.alone.get(detector.name, {}).get(promise.rate) for row in rows])
        if shares:
            points.append((detector.name, detector.forwards, shares))
    together = shares_of([row.served.caught.get(promise.rate) for row in rows])
    if not points or not together:
        return None
    points.append(("all together", e.forwards, together))
    drawn, (ax,) = panels(1, 1, width=8.4, height=4.0)
    plain(ax)
    place_points(ax, points)
    ax.set_xlabel("forwards an item, beside the model's own", fontsize=9, color=GREY)
    ax.set_ylabel(f"caught at {promise_text(promise)}, mean of the attacks", fontsize=9, color=GREY)
    ax.yaxis.set_major_formatter(PER_CENT)
    text = (
        f"Cost against detection at {promise_text(promise)}, over the attacks of the recipe. The dot is the mean over "
        "the attacks, the line reaches from the least to the most caught."
    )
    return Plot(svg(drawn), "Cost of each detector against what it catches", text)


def shares_of(rates: Sequence[Rate | None]) -> list[float]:
    return [rate.value for rate in rates if rate is not None and rate.items]


def place_points(ax: Axes, points: Sequence[tuple[str, float, list[float]]]) -> None:
    """Place points of equal cost beside each other, the most caught first, so that names have room."""
    columns: dict[float, list[tuple[str, list[float]]]] = {}
    for name, cost, shares in points:
        columns.setdefault(cost, []).append((name, shares))
    x, ticks = 0.0, []
    for cost in sorted(columns):
        places = []
        for name, shares in sorted(columns[cost], key=lambda one: -float(np.mean(one[1]))):
            colour = BLACK if name == "all together" else BLUE
            mean = float(np.mean(shares))
            ax.vlines(x, min(shares), max(shares), color=colour, linewidth=1.4, alpha=0.6)
            ax.plot([x], [mean], "o" if colour == BLUE else "s", color=colour, markersize=6)
            lines = name.split("_")
            ax.annotate("\n".join(lines), (x, mean), (6, 0), textcoords="offset points", fontsize=8, va="center")
            places.append(x)
            x += max(1.0, LETTER_SHARE * max(len(line) for line in lines))
        ticks.append((float(np.mean(places)), str(cost)))
        x += 0.3
        if cost != max(columns):
            ax.axvline(x - 0.35, color=PALE, linewidth=0.8)
    ax.set_xticks([place for place, _ in ticks], [text for _, text in ticks])
    ax.set_xlim(-0.4, x - 0.1)
    ax.set_ylim(-0.03, 1.03)
    ax.grid(visible=False, axis="x")
