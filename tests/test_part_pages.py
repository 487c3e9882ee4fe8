"""The pages name every detector, attack and denoiser that is listed, in the table of its kind."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import pytest

from guard.offline.attacks.table import ATTACKS, MAP_ATTACKS
from guard.offline.denoisers.table import DENOISERS
from guard.offline.detectors.table import DETECTORS
from tests.layering import ROOT

OFFLINE = "guard/offline/README.md"
# kind of part -> those that are listed, and the headings of the pages whose tables must name them
PARTS: Mapping[str, tuple[Iterable[str], Mapping[str, str]]] = {
    "attack": ((*ATTACKS, *MAP_ATTACKS), {OFFLINE: "## Attacks"}),
    "denoiser": (DENOISERS, {OFFLINE: "## Denoisers"}),
    # a detector of a preset stands in the table of presets
    "detector": (
        DETECTORS,
        {OFFLINE: "## Detectors that a recipe may name", "README.md": "## Guard a model of your own"},
    ),
}


def rows(text: str, heading: str) -> str:
    """The rows of the tables below a heading, up to the next one."""
    _, found, below = f"\n{text}".partition(f"\n{heading}\n")
    assert found, f"no heading {heading!r}"
    return "\n".join(line for line in below.partition("\n## ")[0].splitlines() if line.startswith("|"))


def unnamed(parts: Iterable[str], text: str) -> list[str]:
    return [name for name in parts if f"`{name}`" not in text]


@pytest.mark.parametrize("kind", PARTS)
def test_every_listed_part_stands_in_a_table_of_its_page(kind: str) -> None:
    parts, places = PARTS[kind]
    text = "\n".join(rows((ROOT / page).read_text("utf-8"), heading) for page, heading in places.items())
    assert unnamed(parts, text) == [], f"{OFFLINE}, {places[OFFLINE]!r}, wants a row for each {kind} that is left here"


def test_a_part_without_a_row_is_found() -> None:
    page = "# Top\n\n| `third` | |\n\n## Parts\n\n`fourth`\n\n| `first` | does it |\n\n## Next\n\n| `second` | |\n"
    assert unnamed(["first", "second", "third", "fourth"], rows(page, "## Parts")) == ["second", "third", "fourth"]
