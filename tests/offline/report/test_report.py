"""A report stands by itself, says what speaks against it, and without the adaptive row is none."""

from __future__ import annotations

import base64
import json
import re
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from jinja2 import UndefinedError

from guard.bundle import Bundle
from guard.calibration import auroc
from guard.errors import DataError
from guard.offline.findings.evaluation import (
    AdaptiveRow,
    AnsweredRow,
    AttackRow,
    BudgetPart,
    ClassRow,
    CleanRow,
    Detection,
    DetectorRow,
    Evaluation,
    LeftOutRow,
    OutcomeRow,
    ProofRow,
    StrengthRow,
    SuiteRows,
    UnrunRow,
    Worst,
)
from guard.offline.findings.figures import Exhibit, Specimen
from guard.offline.findings.intervals import Area, Promise, Rate
from guard.offline.report.page import to_html, to_json
from guard.offline.report.plots import MAX_PANEL_CURVES, budgets_in, curve_plot, in_parts, roc, ticks_between
from guard.offline.report.red_flags import red_flags
from guard.offline.report.template import environment
from guard.offline.report.terminal import lines_of

pytestmark = pytest.mark.slow

NASTY = "<script>alert('x')</script> & \"co\""


def rate(count: int, items: int) -> Rate:
    return Rate.of(np.arange(items) < count)


def proof(name: str, count: int) -> ProofRow:
    return ProofRow(name, 0.1, rate(count, 10))


def detection(caught: int, items: int) -> Detection:
    return Detection(Area(0.9, 0.85, 0.94), {0.01: None, 0.05: rate(caught, items)})


def adaptive(**changes: Any) -> AdaptiveRow:
    row = AdaptiveRow(
        budget=0.1,
        label="adaptive L∞ 0.1",
        steps=9,
        methods=("selective",),
        target=0.05,
        fooled=rate(10, 10),
        detection=detection(4, 10),
        passed={0.01: None, 0.05: rate(6, 10)},
        passed_reject=rate(6, 10),
        passed_flag=rate(4, 10),
        disagreement=0.0,
        proof=(proof("kernel_density", 10), proof("feature_squeezing", 9)),
    )
    return replace(row, **changes)


def attacked(**changes: Any) -> AttackRow:
    row = AttackRow(
        attack=f"pgd({NASTY})",
        label=f"pgd {NASTY}",
        family="high-confidence",
        norm="linf",
        budget=0.1,
        setting="seen",
        tried=300,
        success=rate(250, 300),
        served=detection(200, 250),
        left_out=detection(150, 250),
        rejected=rate(200, 250),
        flagged=rate(220, 250),
        robust_accuracy=rate(250, 300),
        detector_auroc={"mahalanobis": 0.8, NASTY: 0.3},
        detector_surprise={"mahalanobis": 0.7, NASTY: 0.6},
    )
    return replace(row, **changes)


def evaluation(**changes: Any) -> Evaluation:
    made = Evaluation(
        model=NASTY,
        guard="d" * 64,
        data=NASTY,
        seed=0,
        grid=255,
        reject_rate=0.05,
        flag_rate=0.1,
        calibration_items=60,
        promises=(Promise.of(0.01, 60), Promise.of(0.05, 60)),
        accuracy=rate(290, 300),
        clean=(
            CleanRow(
                "clean",
                rate(15, 300),
                rate(30, 300),
                (3, 33),
                (12, 52),
                {0.01: None, 0.05: rate(15, 300)},
                {0.05: (3, 33)},
            ),
            CleanRow("noise", rate(1, 9), rate(2, 9), alarms={0.01: None, 0.05: rate(1, 9)}),
        ),
        attacks=(
            attacked(),
            attacked(
                attack="fgsm()",
                label="fgsm()",
                setting="never seen",
                success=rate(0, 300),
                served=Detection(Area(float("nan"), 0.0, 1.0), {0.01: None, 0.05: rate(0, 0)}),
                left_out=None,
                rejected=rate(0, 0),
                flagged=rate(0, 0),
                detector_auroc={},
                detector_surprise={},
            ),
        ),
        left_out=(LeftOutRow("high-confidence", ("fgsm()",), "e" * 64, {0.01: None, 0.05: rate(14, 300)}),),
        adaptive=(adaptive(),),
        detectors=(DetectorRow("mahalanobis", "screen", 0, 0, 0), DetectorRow(NASTY, "interpret", 2, 1, 3)),
    )
    return replace(made, **changes)


def exhibit(**changes: Any) -> Exhibit:
    generator = np.random.default_rng(5)

    def specimen(channels: int) -> Specimen:
        clean, attacked = generator.random((2, channels, 8, 8), dtype=np.float32)
        maps = generator.random((2, 8, 8), dtype=np.float32)
        seen = Specimen(f"pgd {NASTY}", clean, attacked, maps[0], maps[1], "cat", "dog", 0.4, 0.01)
        return replace(seen, clean_looked=maps[1], attacked_looked=maps[0], nearest=clean, nearest_class="dog")

    made = Exhibit(
        thresholds={0.05: 1.8},
        clean=generator.normal(size=300),
        noise=generator.normal(size=200),
        attacks={f"pgd {NASTY}": generator.normal(2, size=250), "fgsm()": np.zeros(0)},
        specimens=(specimen(3), specimen(1)),
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
        if tag not in ("meta", "img"):
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
    content = re.sub(r'src="data:image/[a-z+]+;base64,[A-Za-z0-9+/=]+"', "", to_html(evaluation(exhibit=exhibit())))
    assert not re.search(r"https?:|//[a-z]|@import|url\(|src=", content)
    page = parsed(evaluation())
    assert not {"script", "link", "iframe"} & set(page.tags)
    assert not {"href"} & {name for name, _ in page.attributes}


def test_names_are_escaped() -> None:
    page = parsed(evaluation())
    assert page.text.count(NASTY) >= 6, "model, title, data, attack twice and detector"
    assert "<script" not in to_html(evaluation())


@pytest.mark.slow
def test_every_row_has_as_many_cells_as_its_head() -> None:
    pages = to_html(evaluation()) + to_html(full()) + to_html(replace(full(), left_out=()))
    for table in re.findall(r"<table>.*?</table>", pages, flags=re.DOTALL):
        rows = re.findall(r"<tr>.*?</tr>", table, flags=re.DOTALL)
        spans = [re.findall(r'<t[hd](?: colspan="(\d+)")?[ >]', row) for row in rows]
        widths = {sum(int(span or 1) for span in one) for one in spans}
        assert len(widths) == 1
        assert len(rows) > 1


def test_a_group_without_columns_is_left_out() -> None:
    page = parsed(evaluation(promises=(Promise.of(0.01, 60),)))
    assert {"1", "2", "3"} & {value for name, value in page.attributes if name == "colspan"}
    assert ("colspan", "0") not in page.attributes
    assert "handled by the guard at" not in page.text


def test_a_template_escapes_what_it_shows_and_has_no_gap_where_a_name_is_misspelt() -> None:
    assert "<script" not in environment().from_string("{{ name }}").render(name=NASTY)
    for misspelt in ("{{ naem }}", "{{ e.modle }}", "{% if e.modle %}{% endif %}"):
        with pytest.raises(UndefinedError):
            environment().from_string(misspelt).render(e=evaluation())


def strict(text: str) -> Any:
    def refuse(name: str) -> Any:
        raise AssertionError(f"{name} is no JSON")

    return json.loads(text, parse_constant=refuse)


def test_json_has_no_nan_and_keeps_every_word() -> None:
    made = evaluation(model="NaN-Net", data="Infinity NaN")
    raw = strict(to_json(made))
    assert raw["model"] == "NaN-Net"
    assert raw["data"] == "Infinity NaN"
    assert raw["attacks"][1]["served"]["auroc"]["value"] is None
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


def test_a_good_report_flags_what_rests_on_little_and_the_attack_that_never_fooled_and_nothing_else() -> None:
    thin, flag = red_flags(evaluation())
    assert "At 5% the promise is thin" in thin
    assert "rests on 3 of 60 clean items" in thin
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
    assert adaptive(proof=()).doubts == (
        "there was none to prove it on: the guard has no detector that is known to be weak",
    )
    assert "did not first defeat detectors known to be weak" in weak.doubts[0]


def test_a_second_network_that_hides_makes_the_attack_unproven_and_is_named() -> None:
    network = replace(proof("second network small at 4/16", 9), network=True)
    good, hidden = adaptive(proof=(*adaptive().proof, network)), replace(network, success=rate(8, 10))
    assert good.proven
    row = adaptive(proof=(*adaptive().proof, hidden))
    assert not row.proven
    made = evaluation(adaptive=(row,))
    (flag,) = [flag for flag in red_flags(made) if "attack unproven" in flag]
    assert "it did not first defeat the second network small at 4/16, where none can hold" in flag
    assert "known to be weak" not in flag
    assert strict(to_json(made))["adaptive"][0]["doubts"] == list(row.doubts)
    assert "attack unproven" in parsed(made).text
    assert not adaptive(proof=(network,)).proven, "a network alone is no detector known to be weak"


def stronger(gained: int, lost: int, **changes: Any) -> StrengthRow:
    made = StrengthRow("10 times the steps", rate(5, 10), rate(5 + gained - lost, 10), rate(gained, 10), rate(lost, 10))
    return replace(made, **changes)


@pytest.mark.parametrize(
    ("row", "doubt"),
    [
        (stronger(0, 0), None),
        (stronger(2, 2), None),
        (stronger(5, 0), "it has not come to its end (10 times the steps: through on 10 of 10 items, not 5)"),
        (stronger(5, 0, wider=True), None),
        (stronger(0, 5, wider=True), "it weakens when it should not"),
    ],
)
def test_an_attack_that_changes_when_it_is_stronger_is_unproven(row: StrengthRow, doubt: str | None) -> None:
    made = evaluation(adaptive=(adaptive(strength=(row,)),))
    assert made.adaptive[0].proven is (doubt is None)
    flags = [flag for flag in red_flags(made) if "attack unproven" in flag]
    assert bool(flags) is (doubt is not None)
    printed, page = " ".join(" ".join(lines_of(made)).split()), parsed(made).text
    for text in (printed, page, *flags):
        assert doubt is None or doubt in text
    for text in (printed, " ".join(page.split())):
        assert "stronger at 5%: 10 times the steps" in text
        assert ("Attack unproven: adaptive L∞ 0.1" in text) is (doubt is not None)
        assert "was not asked" not in text


def test_who_knows_nothing_stands_beside_who_knows_everything() -> None:
    share, none = {0.01: None, 0.05: rate(1, 10)}, rate(0, 10)
    row = adaptive(static=OutcomeRow(rate(7, 10), share, none, none, none), sr50=rate(3, 10))
    for second in ((), ("small: natural",)):
        made = evaluation(adaptive=(row,), second=second)
        printed, page = " ".join(" ".join(lines_of(made)).split()), " ".join(parsed(made).text.split())
        assert "knows nothing 70% 10% [2, 40]" in printed
        assert "knows nothing" in page
        for text in (printed, page):
            assert ("of another seed was not measured" in text) is bool(second)
        assert strict(to_json(made))["adaptive"][0]["static"]["fooled"]["count"] == 7


def test_who_has_other_second_weights_stands_between_them() -> None:
    share, none = {0.01: None, 0.05: rate(2, 10)}, rate(0, 10)
    less = OutcomeRow(rate(8, 10), share, none, none, rate(1, 10))
    made = evaluation(adaptive=(adaptive(static=less, grey=less, sr50=rate(3, 10)),), second=("small: natural",))
    printed, page = " ".join(" ".join(lines_of(made)).split()), " ".join(parsed(made).text.split())
    assert "other second weights 80% 20%" in printed
    assert "other second weights" in page
    for text in (printed, page):
        assert "those of another training in their place" in text
        assert "was not measured" not in text
    assert strict(to_json(made))["adaptive"][0]["grey"]["fooled"]["count"] == 8


def test_what_was_not_asked_of_the_attack_is_said() -> None:
    made = evaluation()
    for text in (" ".join(" ".join(lines_of(made)).split()), " ".join(parsed(made).text.split())):
        assert "The attack counts. Whether more steps, restarts or budget get further was not asked." in text


def test_an_adaptive_attack_weaker_than_static_ones_is_not_believed() -> None:
    caught = adaptive(passed_reject=rate(0, 10), passed_flag=rate(0, 10))
    assert any("too weak to be believed" in flag for flag in red_flags(evaluation(adaptive=(caught,))))


def test_a_broken_promise_is_said() -> None:
    broken = CleanRow("clean", rate(60, 300), rate(70, 300), (3, 33), (12, 52))
    assert any("60 rejected" in flag for flag in red_flags(evaluation(clean=(broken,))))
    too_few = CleanRow("clean", rate(0, 300), rate(2, 300), (3, 33), (12, 52))
    assert any("0 rejected" in flag for flag in red_flags(evaluation(clean=(too_few,))))


def test_what_flags_an_evaluation_is_on_its_page() -> None:
    made = evaluation(adaptive=(adaptive(proof=()),))
    text = parsed(made).text
    assert red_flags(made)
    assert all(flag in text for flag in red_flags(made))
    assert strict(to_json(made))["against"] == red_flags(made)
    printed = " ".join(line.strip() for line in lines_of(made))
    assert all(flag in printed for flag in red_flags(made))


def noisy(count: int) -> Evaluation:
    return evaluation(clean=(CleanRow("off-grid clean", rate(1, 300), rate(9, 300), alarms={0.05: rate(count, 300)}),))


def test_a_guard_that_reads_the_file_format_is_told() -> None:
    assert any("reads the file format" in flag for flag in red_flags(noisy(60)))
    assert not any("reads the file format" in flag for flag in red_flags(noisy(15)))


def test_few_items_are_an_indication_only() -> None:
    few = attacked(success=rate(199, 300))
    assert few.thin
    assert not attacked(success=rate(200, 300)).thin
    *_, flag = red_flags(evaluation(attacks=(few,)))
    assert "indication" in flag
    assert "199" in flag
    assert strict(to_json(evaluation(attacks=(few,))))["attacks"][0]["thin"] is True


def test_a_static_attack_that_does_better_is_held_against_the_knowing_one() -> None:
    """PGD, which knows nothing, lets 17 of 100 through; the knowing attacker must not do worse."""
    served = replace(detection(200, 250), handled={0.05: rate(249, 300)})
    static = attacked(served=served, robust_accuracy=rate(250, 300))
    for passed, flagged in ((rate(1, 10), True), (rate(6, 10), False)):
        made = evaluation(attacks=(static,), adaptive=(adaptive(passed={0.05: passed}, passed_reject=passed),))
        assert any("too weak to be believed" in flag for flag in red_flags(made)) is flagged
    smaller = adaptive(budget=0.05, passed={0.05: rate(1, 10)}, passed_reject=rate(1, 10))
    assert not any("too weak" in flag for flag in red_flags(evaluation(attacks=(static,), adaptive=(smaller,))))


@pytest.mark.parametrize(
    ("budget", "passed", "expected"),
    [
        (16 / 255, 0, "robust at half of it (Tramer 2022); RobustBench's best on CIFAR-10 at 8/255 is 73.7%"),
        (8 / 255, 0, "exceeds RobustBench's best on CIFAR-10 at 8/255, 73.7%"),
        (2 / 255, 0, None),  # nothing is published for so little
        (16 / 255, 5, None),  # 48 % is possible
    ],
)
def test_a_claim_beyond_what_is_known_to_be_possible(budget: float, passed: int, expected: str | None) -> None:
    row = adaptive(budget=budget, passed={0.05: rate(passed, 10)}, passed_reject=rate(passed, 10))
    made = evaluation(adaptive=(row,), item_shape=(3, 32, 32), class_count=10, attacks=())
    flags = [flag for flag in red_flags(made) if "RobustBench" in flag]
    assert bool(flags) is (expected is not None)
    if expected is not None:
        assert expected in flags[0]
        assert "RobustBench" in parsed(made).text
    assert not any("RobustBench" in flag for flag in red_flags(replace(made, item_shape=(1, 28, 28))))


def test_what_was_attacked_must_be_what_is_served() -> None:
    for row in (adaptive(disagreement=0.1), adaptive(risk_gap=0.5), adaptive(without_gradient=("lid",))):
        flags = red_flags(evaluation(adaptive=(row,)))
        assert any("what is served" in flag or "no gradient comes from lid" in flag for flag in flags)
    assert not adaptive(without_gradient=("lid",)).proven, "it counts only if it could see"


def test_the_class_that_is_bothered_most_is_named() -> None:
    made = evaluation(classes=bothered())
    (flag,) = [flag for flag in red_flags(made) if "bothered most" in flag]
    assert flag == f"{NASTY} is bothered most, 60 clean items: taken for attacked 33.3% [22.7, 45.9] at 5%."
    assert parsed(made).text.count("above 5%") == 1


def test_an_attack_that_hardly_fools_the_model_says_little() -> None:
    feeble = attacked(success=rate(9, 300))
    assert any("fools the bare model on 3.0%" in flag for flag in red_flags(evaluation(attacks=(feeble,))))


def test_an_attack_that_asks_for_answers_alone_needs_fewer_items() -> None:
    few = attacked(family="query", success=rate(60, 80))
    assert not few.thin
    assert attacked(family="query", success=rate(59, 80)).thin
    flags = red_flags(evaluation(attacks=(replace(few, success=rate(59, 80)),)))
    assert any(flag.startswith("Fewer than 60 verified items") for flag in flags)


def test_a_small_rate_takes_many_items_to_promise_and_many_to_show() -> None:
    assert Promise.of(0.001, 999, 3000).reason is None
    few = Promise.of(0.001, 998, 2999)
    assert few.reason is not None
    assert "it takes 999" in few.reason
    assert "it takes 3000" in few.reason
    assert Promise.of(0.01, 99, 20).reason is None


def test_few_test_items_are_said_against_a_rate() -> None:
    thin = Promise.of(0.05, 2000, 40)
    flags = red_flags(evaluation(promises=(thin,)))
    assert any("on 40 clean test items say little: it takes 60" in flag for flag in flags)
    assert not any("say little: it takes" in flag for flag in red_flags(evaluation()))


# The suite and the pictures.


def bothered() -> tuple[ClassRow, ...]:
    rows = {"the model is right": (12, 280), "the model is wrong": (1, 20), NASTY: (20, 60), "dog": (3, 60)}
    true_class = {NASTY: 0, "dog": 1}
    return tuple(
        ClassRow(name, rate(n, n), {0.01: None, 0.05: rate(k, n)}, true_class.get(name))
        for name, (k, n) in rows.items()
    )


def suite() -> SuiteRows:
    unrun = UnrunRow(f"hsj({NASTY})", f"hsj {NASTY}", "query", f"it needs {NASTY}")
    return SuiteRows(f"mine {NASTY}", NASTY, 20.0, (attacked(), unrun, attacked(attack="pgd(other)", label="other")))


def ranged(**changes: Any) -> AttackRow:
    """An attack whose items drew 1 to 16/255, of which 3 of 10 are caught below 4/255 and 9 of 10 from there on."""
    parts = tuple(
        BudgetPart(low / 255, high / 255, rate(10, 40), {0.01: None, 0.05: rate(caught, 10)})
        for low, high, caught in ((1, 3, 3), (4, 16, 9))
    )
    return attacked(
        **{"attack": "pgd(r)", "label": "pgd L∞ 1 to 16/255", "budget": 16 / 255, "curve": parts, **changes}
    )


def full() -> Evaluation:
    """Everything that a report may hold."""
    row = adaptive(by_method={"weighted": rate(5, 10)}, sr50=rate(3, 10), surrogates=("softplus",), risk_gap=0.01)
    shifted = CleanRow("blur 1 px", rate(1, 9), rate(2, 9), alarms={0.05: rate(1, 9)}, accuracy=rate(5, 9))
    size = CleanRow("as large as pgd", rate(1, 9), rate(2, 9), alarms={0.05: rate(1, 9)}, part=True)
    three = (Promise.of(0.001, 999, 3000), Promise.of(0.01, 999, 3000), Promise.of(0.05, 999, 3000))
    whole = {p.rate: rate(9, 10) for p in three}
    worst = Worst(("a", "b"), rate(1, 10), whole, rate(8, 10))
    found = Detection(Area(0.9, 0.85, 0.94), whole, whole, whole, {"mahalanobis": whole})
    return evaluation(
        promises=three,
        attacks=(
            attacked(served=found, left_out=found),
            attacked(attack="x", label="x", norm="l2", budget=0.2),
            ranged(),
        ),
        clean=(*evaluation().clean, size, shifted),
        adaptive=(row,),
        classes=bothered(),
        worst=worst,
        suite=suite(),
        forwards=4,
        item_shape=(3, 32, 32),
        class_count=10,
        exhibit=exhibit(),
    )


def test_an_attack_that_cannot_be_run_counts_as_failed() -> None:
    made = evaluation(suite=suite())
    assert any("1 of 3 attacks of the suite" in flag for flag in red_flags(made))
    printed = re.sub(r"\s+", " ", "\n".join(lines_of(made)))
    for text in (printed, parsed(made).text):
        assert f"it needs {NASTY}" in text
        assert "failed" in text
    raw = strict(to_json(made))
    assert raw["suite"]["rows"][1]["reason"] == f"it needs {NASTY}"


@pytest.mark.slow
def test_pictures_are_on_the_page_and_not_in_the_file() -> None:
    made = full()
    content = to_html(made)
    assert "exhibit" not in strict(to_json(made))
    assert content.count("data:image/png") == 1
    assert content.count("data:image/svg+xml") >= 3
    assert len(content) < 3_000_000
    assert to_html(full()) == content, "the same bytes"
    figures = [value for name, value in parsed(made).attributes if name == "src"]
    assert all(value is not None and value.startswith("data:image/") for value in figures)
    for value in figures:
        drawn = base64.b64decode((value or "").split(",")[1])
        assert b"<script" not in drawn
        assert moment_in(drawn[:600]) is None


def moment_in(drawn: bytes) -> bytes | None:
    """A date of any year, or the field that a picture keeps one in; None where there is neither."""
    plain = re.sub(rb"https?://[^\"'>\s]+", b"", drawn)  # the names of formats have dates in them
    found = re.search(rb"\b[12]\d{3}[-:/]\d\d[-:/]\d\d|<dc:date>|CreationDate|Creation Time", plain)
    return None if found is None else found.group()


@pytest.mark.parametrize("year", [1999, 2026, 2027, 2150])
def test_a_date_of_any_year_is_found(year: int) -> None:
    assert moment_in(b"<metadata> %d-07-14T10:00:00 </metadata>" % year)
    assert moment_in(b"tEXtCreation Time\0today")
    assert moment_in(b"<path d='M 2026 10 L 2027 11'/>") is None


def test_a_page_without_pictures_says_why() -> None:
    made = evaluation(exhibit=exhibit(specimens=(), reason="vectors cannot be seen"), shift_note="they are vectors")
    text = parsed(made).text
    assert "No pictures: vectors cannot be seen" in text
    assert "they are vectors" in text


@pytest.mark.parametrize("count", [1, MAX_PANEL_CURVES, MAX_PANEL_CURVES + 1, 3 * MAX_PANEL_CURVES - 1])
def test_a_crowded_family_gets_several_panels_and_loses_no_curve(count: int) -> None:
    labels = [str(number) for number in range(count)]
    parts = in_parts("family", labels)
    assert [label for _, part in parts for label in part] == labels
    assert all(0 < len(part) <= MAX_PANEL_CURVES for _, part in parts)
    assert len(parts) == -(-count // MAX_PANEL_CURVES)
    assert parts[0][0] == ("family" if len(parts) == 1 else f"family, 1 of {len(parts)}")


def test_a_roc_curve_meets_its_ends_and_its_area() -> None:
    generator = np.random.default_rng(1)
    clean, bad = generator.normal(size=400), generator.normal(1, size=300)
    alarms, caught = roc(clean, bad)
    assert (alarms[0], alarms[-1]) == (0.0, 1.0)
    assert (np.diff(caught) >= 0).all()
    area = float((np.diff(alarms) * (caught[1:] + caught[:-1]) / 2).sum())
    assert area == pytest.approx(auroc(clean, bad), abs=0.01)
    np.testing.assert_allclose(roc(np.arange(5.0), np.asarray([9.0, 9.0]))[1], 1.0)


# What is printed.


def test_the_terminal_has_eighty_columns() -> None:
    many = tuple(attacked(label=f"a very long name of an attack {i}") for i in range(20))
    wide = "x" * 100
    for made in (evaluation(), evaluation(attacks=many, left_out=()), full(), replace(full(), model=wide)):
        lines = lines_of(made)
        assert max(map(len, lines)) <= 80
        assert all(line == line.rstrip() for line in lines)


def test_no_name_and_no_figure_is_cut_and_no_attack_left_out() -> None:
    labels = [f"attack [{'x' * 40}] {number}" for number in range(30)]
    attacks = tuple(attacked(attack=label, label=label) for label in labels)
    three = tuple(Promise.of(rate, 999, 3000) for rate in (0.001, 0.01, 0.05))
    caught = dict.fromkeys((0.001, 0.01, 0.05), rate(100, 100))
    served = Detection(Area(0.9, 0.85, 0.94), caught, caught, caught)
    for made in (evaluation(attacks=attacks), full(), evaluation(promises=three, attacks=(attacked(served=served),))):
        lines = lines_of(made)
        assert "…" not in "".join(lines)
        assert max(map(len, lines)) <= 80
    assert sum("100% [96, 100] 100% [96, 100] 100% [96, 100]" in line for line in lines) == 1
    printed = lines_of(evaluation(attacks=attacks))
    assert sum(line.startswith(("Z attack", "AA attack", "AD attack")) for line in printed) == 2 * 3
    assert any(line.split()[-3:] == ["AB", "AC", "AD"] for line in printed), "among the detectors too"


def test_each_column_of_a_single_rate_has_its_heading() -> None:
    (heads,) = [line.split() for line in lines_of(evaluation()) if "tried" in line.split()]
    assert heads == ["tried", "bare", "at", "5%", "at", "5%"]


def test_a_rate_that_cannot_be_promised_is_a_dash_and_a_reason() -> None:
    """60 items promise 5 % and not 1 %."""
    for text in ("\n".join(lines_of(evaluation())), parsed(evaluation()).text):
        assert "it takes 99" in re.sub(r"\s+", " ", text)
        assert "–" in text
    raw = strict(to_json(evaluation()))
    assert raw["attacks"][0]["served"]["caught"]["0.01"] is None
    assert "it takes 99" in raw["promises"][0]["reason"]
    assert raw["promises"][1]["reason"] is None


def test_terminal_and_page_say_the_same_figures() -> None:
    printed, page = "\n".join(lines_of(evaluation())), parsed(evaluation()).text
    for figure in (".900", "80%", "60%", "never seen", "adaptive L∞ 0.1", "feature_squeezing 90%"):
        assert figure in printed, figure
        assert figure in page, figure


# Detection over the budget.


def test_the_curve_over_the_budget_stands_on_the_page_in_the_terminal_and_in_the_file() -> None:
    made = evaluation(attacks=(attacked(), ranged()))
    printed, page = [" ".join(line.split()) for line in lines_of(made)], " ".join(parsed(made).text.split())
    start = printed.index("DETECTION OVER THE BUDGET")
    assert printed[start + 3 : start + 6] == [
        "pgd L∞ 1 to 16/255",
        "1 to 3/255 10 25% 30% [11, 60]",
        "4 to 16/255 10 25% 90% [60, 98]",
    ]
    assert "Detection over the budget" in page
    assert "1 to 3/255" in page
    parts = strict(to_json(made))["attacks"][1]["curve"]
    assert [part["caught"]["0.05"]["count"] for part in parts] == [3, 9]
    assert parts[0]["success"]["count"] == 10
    assert parts[0]["caught"]["0.01"] is None


def test_an_attack_with_a_curve_is_no_point_at_its_largest_budget() -> None:
    made = evaluation(attacks=(attacked(), ranged()), adaptive=(adaptive(),))
    assert budgets_in(made, "linf") == [0.1]
    assert curve_plot(made) is not None


def test_without_ranges_there_is_no_curve() -> None:
    assert curve_plot(evaluation()) is None
    assert "OVER THE BUDGET" not in "\n".join(lines_of(evaluation()))
    assert "Detection over the budget" not in to_html(evaluation())


@pytest.mark.parametrize(
    ("low", "high", "grid", "texts"),
    [
        (1 / 255, 16 / 255, 255, ["1/255", "2/255", "4/255", "8/255", "16/255"]),
        (0.25, 1.0, None, ["0.25", "0.354", "0.5", "0.707", "1"]),
        (5 / 255, 7 / 255, 255, ["5/255", "0.0213", "0.0232", "0.0252", "7/255"]),
    ],
)
def test_the_axis_of_budgets_is_told_in_steps_where_it_can_be(
    low: float, high: float, grid: int | None, texts: list[str]
) -> None:
    places, found = ticks_between(low, high, grid)
    assert found == texts
    assert low * 0.99 <= min(places) < max(places) <= high * 1.01


# A real one.


def test_the_bundles_own_report(tiny_bundle: Bundle) -> None:
    raw = strict((tiny_bundle.path / "report.json").read_text("utf-8"))
    assert raw["adaptive"]
    assert [row["name"] for row in raw["clean"]][:1] == ["clean"]
    assert {row["setting"] for row in raw["attacks"]} == {"seen", "never seen"}
    page = Page()
    page.feed((tiny_bundle.path / "report.html").read_text("utf-8"))
    page.close()
    assert page.open == []
    assert str(Path.cwd()) not in page.text


def answered(name: str, alone: int, held: int, before: int, **changes: Any) -> AnsweredRow:
    caught = {0.01: None, 0.05: rate(held, 40)}
    row = AnsweredRow(name, rate(alone, 40), rate(held, 40), rate(before, 40), caught, caught)
    return replace(row, **changes)


def test_what_a_held_answer_finds_stands_on_the_page_and_in_the_terminal() -> None:
    made = evaluation(
        answered=(answered("clean", 2, 3, 1, band=(0, 9)), answered(NASTY, 20, 31, 17)),
        adaptive=(adaptive(answered=answered("adaptive L∞ 0.1", 4, 5, 3)),),
    )
    printed, page = " ".join("\n".join(lines_of(made)).split()), parsed(made).text
    assert "clean 40 5.0% 7.5% 2.5% as many, if the promise holds 0 to 9" in printed
    assert "adaptive L∞ 0.1 40 10.0% 12.5% 7.5%" in printed
    for text in (printed, page):
        assert all(share in text for share in ("50.0%", "77.5%", "42.5%"))
    assert all(len(line) <= 80 for line in lines_of(made))
    assert "rejected before the model sees them" in page
    assert json.loads(to_json(made))["answered"][1]["held"]["count"] == 31


def test_a_report_of_an_opened_model_says_nothing_of_answers() -> None:
    made = evaluation()
    assert "ANSWER HELD" not in "\n".join(lines_of(made))
    assert "answer held" not in to_html(made)
