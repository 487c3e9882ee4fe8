"""The page of an audit log: counts are right, strangers' names are harmless, and odd lines are no end of it."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from guard import cli
from guard.offline.audit.explained import explain_riskiest
from guard.offline.audit.figure import png
from guard.offline.audit.page import facts, html
from guard.offline.audit.summary import MAX_KEPT_IMAGES, QUERIES, AuditSummary
from guard.serve.audit.events import tensor_fields
from tests.serve import tiny_bundle
from tests.serve.guarded import guarding

START = 1_790_000_000.0


def line(at_s: float, action: str = "reject", **facts: Any) -> dict[str, Any]:
    from datetime import UTC, datetime

    time = datetime.fromtimestamp(START + at_s, UTC).isoformat().replace("+00:00", "Z")
    return {"time": time, "action": action, "model": "digits", "atlas": ["AML.T0015"], **facts}


def log(folder: Path, lines: list[Any]) -> Path:
    folder.mkdir()
    text = "".join(json.dumps(one) + "\n" for one in lines)
    (folder / "audit-00000001.jsonl").write_text(text, encoding="utf-8")
    return folder


def wave() -> list[dict[str, Any]]:
    """A day of noise from many clients, and a wave of one within ten minutes."""
    generator = np.random.default_rng(0)
    noise = [
        line(at, "flag", principal=f"shop-{number % 7}", detectors={"lid": 0.02, "fgsm": 0.5})
        for number, at in enumerate(generator.uniform(0, 86400, 60))
    ]
    image = generator.random((3, 16, 16)).astype(np.float32)
    attack = [
        line(
            50_000 + at,
            principal="mallory",
            detectors={"lid": 0.3, "saliency": 0.0005},
            p_value=0.0005 + number / 1e5,
            prediction=3,
            input=tensor_fields(image),
        )
        for number, at in enumerate(generator.uniform(0, 600, 300))
    ]
    return [*noise, *attack]


def test_a_wave_is_seen() -> None:
    summary = AuditSummary.of(wave())
    assert summary.events == 360
    assert summary.principals.most_common(1) == [("mallory", 300)]
    assert summary.detectors == {"saliency": 300, "lid": 60}
    assert summary.peak is not None
    assert 50_000 - 1500 < summary.peak[0] - START < 50_600
    assert summary.peak[2] >= 150
    edges, counts = summary.waves()
    assert sum(float(count.sum()) for count in counts.values()) == 360
    assert np.all(np.diff(edges) > 0)
    assert [kept.p_value for kept in summary.riskiest] == [0.0005 + n / 1e5 for n in range(MAX_KEPT_IMAGES)]
    assert any("mallory, with 300 (83 %)" in fact for fact in facts(summary))


def test_what_was_held_back_counts() -> None:
    lines = [line(0, "refused", reason="overloaded", held_back=0), line(1, "refused", reason="overloaded", held_back=9)]
    summary = AuditSummary.of(lines)
    assert summary.events == summary.reasons["overloaded"] == 11
    assert summary.peak is not None


def test_odd_lines_are_counted_and_end_nothing(tmp_path: Path) -> None:
    odd = [
        {"action": "reject"},
        line(0, detectors={"a": None}, input={"base64": "!"}),
        line(0, detectors=[1], input={"dtype": "<f4", "shape": [3], "base64": "AAAA"}),
        {**line(0), "time": "yesterday", "held_back": "many"},
        line(0, "query_attack"),
        line(0, input=tensor_fields(np.full((1, 4, 4), np.nan, np.float32)), p_value=0.1),
        line(0, input=tensor_fields(np.zeros(9, np.float32)), p_value=0.1),
    ]
    folder = log(tmp_path / "log", [*odd, 7, "text", {"event": "none"}])
    assert cli.run(["audit", str(folder), "--out", str(tmp_path / "page.html")]) == 0
    assert (tmp_path / "page.png").read_bytes().startswith(b"\x89PNG")
    assert "7 requests of note" in (tmp_path / "page.html").read_text("utf-8")


def test_names_of_strangers_are_text(tmp_path: Path) -> None:
    evil = "<script>alert(1)</script>$\\frac{$\n\x00" + "x" * 500
    folder = log(tmp_path / "log", [line(0, principal=evil, model=evil), line(5, principal=evil)])
    assert cli.run(["audit", str(folder), "--out", str(tmp_path / "page.html")]) == 0
    page = (tmp_path / "page.html").read_text("utf-8")
    assert "<script" not in page
    assert "&lt;script&gt;" in page


def test_a_served_guards_log_becomes_a_page(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    bundle, folder, page = tiny_bundle.make(tmp_path / "bundle").path, tmp_path / "audit", tmp_path / "page.html"

    async def served() -> None:
        async with guarding(bundle, audit_dir=str(folder), audit_inputs=True) as guarded:
            for number in range(12):
                await guarded.client.infer(tiny_bundle.striped(), id=str(number))

    asyncio.run(served())
    assert cli.run(["audit", str(folder), "--out", str(page)]) == 0
    said = capsys.readouterr().out
    assert "12 requests of note" in said
    assert f"{page}, {page.with_suffix('.png')}" in said


def test_kept_inputs_are_explained_by_their_bundle(tmp_path: Path) -> None:
    """Where the model looked, and what it answered otherwise: for inputs that a bundle judged which is given."""
    explaining = tiny_bundle.make(tmp_path / "explains", explains=True)
    other = tiny_bundle.make(tmp_path / "other")
    kept = tensor_fields(tiny_bundle.striped(1)[0])
    facts = {"input": kept, "p_value": 0.001, "prediction": 1}
    lines = [line(0, id="own", bundle=explaining.digest, **facts), line(1, id="foreign", bundle="f" * 64, **facts)]
    lines.append(line(2, id="before", **facts))
    lines.append(line(3, id="table", bundle=explaining.digest, **{**facts, "input": tensor_fields(np.ones(3))}))
    folder = log(tmp_path / "log", lines)
    found = {one.kept.name: one.found for one in explain_riskiest(AuditSummary.of(lines), [explaining.path])}
    assert found["own"] is not None
    assert found["own"].saliency is not None
    assert found["before"] is not None
    assert (found["foreign"], found["table"]) == (None, None)
    both = explain_riskiest(AuditSummary.of(lines), [explaining.path, other.path])
    assert [one.kept.name for one in both if one.found is not None] == ["own"]
    pages = {}
    for name, given in {"without": [], "with": ["--bundle", str(explaining.path)]}.items():
        assert cli.run(["audit", str(folder), "--out", str(tmp_path / f"{name}.html"), *given]) == 0
        pages[name] = (tmp_path / f"{name}.html").read_text("utf-8")
    assert "second: tiny: " in pages["with"]
    assert "second: tiny: " not in pages["without"]
    assert "ffffffffffff was not given" in pages["with"]
    assert (tmp_path / "with.png").read_bytes() != (tmp_path / "without.png").read_bytes()
    assert cli.run(["audit", str(folder), "--out", str(tmp_path / "page.html"), "--bundle", str(folder)]) == 5


def test_long_names_and_many_inputs_have_room() -> None:
    """The picture is laid out without a warning, which would mean that its parts lie over each other."""
    lines = [{**one, "detectors": {"a_detector_of_a_long_name": 0.001, "b": 0.5}} for one in wave()]
    summary = AuditSummary.of(lines)
    assert len(summary.riskiest) == MAX_KEPT_IMAGES
    assert png(summary, explain_riskiest(summary, [])).startswith(b"\x89PNG")


def test_query_attacks_are_a_kind_of_their_own() -> None:
    lines = [line(at, "pass", reason="query_attack", principal="mallory", atlas=["AML.T0040"]) for at in range(5)]
    summary = AuditSummary.of([*lines, line(9, reason="query_attack")])
    assert len(summary.times[QUERIES]) == 6
    assert summary.reasons == {"query_attack": 6}
    assert "Model Inference API" in html(summary, b"", "log")


@pytest.mark.parametrize("arguments", [["absent"], [".", "--out", "page.png"], [".", "--out", "absent/page.html"]])
def test_what_cannot_be_done_is_told(
    arguments: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    log(tmp_path / "log", [line(0)])
    monkeypatch.chdir(tmp_path / "log")
    assert cli.run(["audit", *arguments]) == 3
    assert capsys.readouterr().err.startswith("guard: ")


def test_the_same_log_is_the_same_page() -> None:
    assert html(AuditSummary.of(wave()), b"", "log") == html(AuditSummary.of(wave()), b"", "log")
