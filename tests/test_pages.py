"""The project's pages: each link leads to a file and a heading that are there, and README.md stays short."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.layering import ROOT

MAX_README_WORDS = 9_000  # what can be read in one sitting; reference matter stands on the pages beside the code
FENCE = re.compile(r"^ *```\w*\n.*?^ *```$", re.DOTALL | re.MULTILINE)
LINK = re.compile(r"\]\(([^)#\s]*)(#[^)\s]*)?\)")
HEADING = re.compile(r"^#+ (.+)$", re.MULTILINE)
BESIDE_CODE = [page for top in ("guard", "deploy", "tests") for page in sorted((ROOT / top).rglob("*.md"))]
PAGES = [page.relative_to(ROOT).as_posix() for page in (ROOT / "README.md", *BESIDE_CODE)]


def anchors(text: str) -> set[str]:
    """The anchors of a page's headings, as GitHub makes them; of headings that are alike, also those with a number."""
    found: list[str] = []
    for heading in HEADING.findall(FENCE.sub("", text)):
        anchor = re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-")
        found.append(f"{anchor}-{found.count(anchor)}" if anchor in found else anchor)
    return set(found)


def broken_links(page: Path) -> Iterator[str]:
    """Yield the relative links of a page that lead to no file, or to no heading of one."""
    for target, anchor in LINK.findall(FENCE.sub("", page.read_text("utf-8"))):
        if "://" in target:
            continue
        aim = page.parent / target if target else page
        headed = not anchor or aim.suffix != ".md"
        if not aim.exists() or not (headed or anchor[1:] in anchors(aim.read_text("utf-8"))):
            yield target + anchor


def test_the_pages_that_belong_together_are_among_them() -> None:
    assert {"README.md", "guard/offline/README.md", "guard/serve/README.md", "deploy/README.md"} <= set(PAGES)
    assert {"deploy/RUNBOOK.md", "tests/bench/README.md"} <= set(PAGES)


@pytest.mark.parametrize("name", PAGES)
def test_links_lead_to_files_and_headings_that_are_there(name: str) -> None:
    assert list(broken_links(ROOT / name)) == []


@pytest.mark.parametrize("link", ["#no-such-heading", "gone.md", "other.md#no-such-heading", "gone.md#a-heading"])
def test_a_link_that_leads_nowhere_is_found(tmp_path: Path, link: str) -> None:
    page, other = tmp_path / "page.md", tmp_path / "other.md"
    other.write_text("# A `heading`, once\n\n# A `heading`, once\n", "utf-8")
    good = "[up](#top) [there](other.md) [once](other.md#a-heading-once) [twice](other.md#a-heading-once-1)"
    fenced = "```\n[no](link.md)\n```\n"
    page.write_text(f"# Top\n\n{good} [far](https://example.org/#x) [planted]({link})\n\n{fenced}", "utf-8")
    assert list(broken_links(page)) == [link]


def test_readme_can_be_read_in_one_sitting() -> None:
    words = len((ROOT / "README.md").read_text("utf-8").split())
    assert words <= MAX_README_WORDS, "details belong to guard/offline/README.md, guard/serve/README.md or deploy/"
