"""A report stands by itself, says what speaks against it, and without the adaptive row is none."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from guard.bundle import Bundle
from guard.errors import DataError
from guard.offline.evaluate import AdaptiveRow, AttackRow, CleanRow, Evaluation, ProofRow, Rate
from guard.offline.report import red_flags, to_html, to_json

NASTY = "<script>alert('x')</script> & \"co\""


def rate(count: int, items: int) -> Rate:
    return Rate.of(np.arange(items) < count)


def proof(name: str, count: int) -> ProofRow:
    return ProofRow(name, 0.1, rate(count, 10))


def adaptive(**changes: Any) -> AdaptiveRow:
    row = AdaptiveRow(
        budget=0.1,
        steps=9,
        methods=("selective",),
        fooled=rate(10, 10),
        passed_reject=rate(6, 10),
        passed_flag=rate(4, 10),
        disagreement=0.0,
        proof=(proof("kernel_density", 10), proof("feature_squeezing", 9)),
    )
    return replace(row, **changes)


def attacked(**changes: Any) -> AttackRow:
    row = AttackRow(
        attack=f"pgd({NASTY})",
        setting="seen",
        tried=300,
        success=rate(250, 300),
        auroc=0.9,
        rejected=rate(200, 250),
        flagged=rate(220, 250),
        robust_accuracy=rate(250, 300),
        detector_auroc={"mahalanobis": 0.8},
        thin=False,
    )
    return replace(row, **changes)


def evaluation(**changes: Any) -> Evaluation:
    made = Evaluation(
        model=NASTY,
        bundle="d" * 64,
        data=NASTY,
        seed=0,
        grid=255,
        reject_rate=0.05,
        flag_rate=0.1,
        calibration_items=500,
        accuracy=rate(290, 300),
        clean=(
            CleanRow("clean", rate(15, 300), rate(30, 300), (3, 33), (12, 52)),
            CleanRow("noise", rate(1, 9), rate(2, 9)),
        ),
        attacks=(
            attacked(),
            attacked(
                attack="fgsm()",
                success=rate(0, 300),
                auroc=float("nan"),
                rejected=rate(0, 0),
                flagged=rate(0, 0),
                detector_auroc={},
            ),
        ),
        adaptive=(adaptive(),),
        detectors=("mahalanobis", NASTY),
    )
    return replace(made, **changes)


class Page(HTMLParser):
    """Tags, their attributes and the text of a page; every tag is closed in order."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.attributes: list[tuple[str, str | None]] = []
        self.tags: list[str] = []
        self.text = ""

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += attrs
        if tag != "meta":
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text += data


def parsed(made: Evaluation) -> Page:
    page = Page()
    page.feed(to_html(made))
    page.close()
    assert page.open == []
    return page


@pytest.mark.parametrize("write", [to_json, to_html])
def test_without_the_adaptive_row_it_is_refused(write: Any) -> None:
    assert write(evaluation())
    with pytest.raises(DataError, match="no adaptive row"):
        write(evaluation(adaptive=()))


def test_the_page_needs_nothing_from_elsewhere() -> None:
    content = to_html(evaluation())
    assert not re.search(r"https?:|//[a-z]|@import|url\(", content)
    page = parsed(evaluation())
    assert not {"script", "link", "img", "iframe"} & set(page.tags)
    assert not {"src", "href"} & {name for name, _ in page.attributes}


def test_names_are_escaped() -> None:
    page = parsed(evaluation())
    assert page.text.count(NASTY) >= 5, "model, title, data, attack and detector"
    assert "<script" not in to_html(evaluation())


def test_every_row_has_as_many_cells_as_its_head() -> None:
    for table in re.findall(r"<table>.*?</table>", to_html(evaluation()), flags=re.DOTALL):
        rows = re.findall(r"<tr>.*?</tr>", table, flags=re.DOTALL)
        widths = {len(re.findall(r"<t[hd][ >]", row)) for row in rows}
        assert len(widths) == 1
        assert len(rows) > 1


def strict(text: str) -> Any:
    def refuse(name: str) -> Any:
        raise AssertionError(f"{name} is no JSON")

    return json.loads(text, parse_constant=refuse)


def test_json_has_no_nan_and_keeps_every_word() -> None:
    made = evaluation(model="NaN-Net", data="Infinity NaN")
    raw = strict(to_json(made))
    assert raw["model"] == "NaN-Net"
    assert raw["data"] == "Infinity NaN"
    assert raw["attacks"][1]["auroc"] is None
    assert raw["attacks"][1]["rejected"]["value"] is None
    assert raw["adaptive"][0]["proven"] is True


def test_json_says_what_was_measured() -> None:
    raw = strict(to_json(evaluation()))
    assert raw["attacks"][0]["rejected"]["count"] == 200
    assert raw["clean"][0]["reject_band"] == [3, 33]
    assert raw["reject_rate"] == 0.05


def test_the_same_evaluation_is_the_same_report() -> None:
    assert to_json(evaluation()) == to_json(evaluation())
    assert to_html(evaluation()) == to_html(evaluation())


# What it says against itself.


def test_a_good_report_flags_the_attack_that_never_fooled_and_nothing_else() -> None:
    (flag,) = red_flags(evaluation())
    assert flag.startswith("fgsm()")
    assert "does not fool the bare model" in flag


def test_an_attack_that_proves_nothing_is_unproven() -> None:
    weak = adaptive(proof=(proof("kernel_density", 10), proof("feature_squeezing", 8)))
    for row in (weak, adaptive(proof=())):
        assert not row.proven
        made = evaluation(adaptive=(row,))
        assert any("attack unproven" in flag for flag in red_flags(made))
        assert "attack unproven" in parsed(made).text
        assert strict(to_json(made))["adaptive"][0]["proven"] is False
    assert adaptive().proven


def test_an_adaptive_attack_weaker_than_static_ones_is_not_believed() -> None:
    caught = adaptive(passed_reject=rate(0, 10), passed_flag=rate(0, 10))
    assert any("too weak to be believed" in flag for flag in red_flags(evaluation(adaptive=(caught,))))


def test_a_broken_promise_is_said() -> None:
    broken = CleanRow("clean", rate(60, 300), rate(70, 300), (3, 33), (12, 52))
    assert any("60 rejections" in flag for flag in red_flags(evaluation(clean=(broken,))))
    too_few = CleanRow("clean", rate(0, 300), rate(2, 300), (3, 33), (12, 52))
    assert any("0 rejections" in flag for flag in red_flags(evaluation(clean=(too_few,))))


def test_what_flags_an_evaluation_is_on_its_page() -> None:
    made = evaluation(adaptive=(adaptive(proof=()),))
    text = parsed(made).text
    assert all(flag in text for flag in red_flags(made))


# A real one.


def test_the_bundles_own_report(tiny_bundle: Bundle) -> None:
    raw = strict((tiny_bundle.path / "report.json").read_text("utf-8"))
    assert raw["adaptive"]
    assert [row["name"] for row in raw["clean"]][:1] == ["clean"]
    assert {row["setting"] for row in raw["attacks"]} == {"seen", "left out"}
    page = Page()
    page.feed((tiny_bundle.path / "report.html").read_text("utf-8"))
    page.close()
    assert page.open == []
    assert str(Path.cwd()) not in page.text
