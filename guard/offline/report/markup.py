"""Pieces of HTML that every part of the page is made of."""

from __future__ import annotations

import html
import math
from collections.abc import Iterable, Sequence

from guard.offline.findings.intervals import Area, Caught, Promise, Rate
from guard.offline.report.wording import NONE, decimal, percent, promise_text

MIN_DENSE_COLUMNS = 12  # columns that are drawn closer together
SHADE_SHARES = ((0.95, "full"), (0.8, "most"), (0.5, "some"), (0.0, "few"))


def heading(text: str) -> str:
    return f"<h2>{html.escape(text)}</h2>"


def note(text: str) -> str:
    """Return a paragraph of explanation; `text` is plain."""
    return f'<p class="note">{html.escape(text)}</p>'


def folded(summary: str, content: str) -> str:
    """Return a section that shows its content when it is clicked on; `content` is HTML."""
    return f"<details><summary>{html.escape(summary)}</summary>\n{content}\n</details>"


def table(
    head: Sequence[str],
    rows: Iterable[Sequence[str]],
    *,
    groups: Sequence[tuple[str, int]] = (),
    firsts: Sequence[int] = (),
) -> str:
    """Return a table; `groups` stand over so many columns each, and a rule is drawn before the columns `firsts`."""
    over = "".join(f'<th colspan="{width}">{html.escape(name)}</th>' for name, width in groups)
    above = f'<tr class="groups">{over}</tr>\n' if groups else ""
    rule = ' class="first"'
    names = (f"<th{rule if i in firsts else ''}>{html.escape(cell)}</th>" for i, cell in enumerate(head))
    body = "\n".join("<tr>" + "".join(row) + "</tr>" for row in rows)
    close = ' class="close"' if len(head) > MIN_DENSE_COLUMNS else ""
    return f'<div class="wide"><table{close}>\n{above}<tr>{"".join(names)}</tr>\n{body}\n</table></div>'


def td(content: str, *, first: bool = False, shade: str = "") -> str:
    names = " ".join(name for name in ("first" if first else "", shade) if name)
    return f'<td class="{names}">{content}</td>' if names else f"<td>{content}</td>"


def named(name: str, about: str = "", title: str = "") -> str:
    """Return the first cell of a row; all three arguments are plain text."""
    small = f"<small>{html.escape(about)}</small>" if about else ""
    hover = f' title="{html.escape(title)}"' if title else ""
    return f"<td{hover}>{html.escape(name)}{small}</td>"


def shade(found: Rate | None) -> str:
    """Return the CSS class of a colour by how much is caught, or handled."""
    if found is None or found.items == 0:
        return ""
    return next(name for least, name in SHADE_SHARES if found.value >= least)


def rate(value: Rate | None, decimals: int = 0) -> str:
    if value is None or value.items == 0:
        return NONE
    low, high = 100 * value.low, 100 * value.high
    return f"{percent(value.value, decimals)}<small>{low:.{decimals}f} to {high:.{decimals}f}</small>"


def plain_rate(value: Rate | None) -> str:
    return NONE if value is None else percent(value.value, 1)


def area(value: Area) -> str:
    if math.isnan(value.value):
        return NONE
    return f"{decimal(value.value)}<small>{decimal(value.low)} to {decimal(value.high)}</small>"


def rates(found: Caught | None, promises: Sequence[Promise], *, first: bool = True, shaded: bool = True) -> list[str]:
    """Return a cell for each promise, with a rule before the first of them."""
    cells = []
    for promise in promises:
        share = found.get(promise.rate) if found else None
        colour = shade(share) if shaded else ""
        cells.append(td(rate(share), first=first and promise is promises[0], shade=colour))
    return cells


def heads(promises: Sequence[Promise], before: str = "") -> list[str]:
    return [f"{before}{promise_text(promise)}" for promise in promises]


def figure(picture: str, alternative: str, caption: str) -> str:
    """Return a figure with its caption; `picture` is a data URI, the rest is plain text."""
    return (
        f'<figure><img src="{picture}" alt="{html.escape(alternative)}">'
        f"<figcaption>{html.escape(caption)}</figcaption></figure>"
    )
