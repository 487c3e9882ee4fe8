"""The runbook, held against what it speaks of: alerts, commands, settings, metrics."""

from __future__ import annotations

import re
import shlex
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import typer

from guard.cli import app
from guard.config import load_config

FENCE = re.compile(r"^ *```(\w*)\n(.*?)^ *```$", re.DOTALL | re.MULTILINE)
SPAN = re.compile(r"`([^`\n]+)`")


@pytest.fixture(scope="module")
def runbook(root: Path) -> str:
    return (root / "deploy/RUNBOOK.md").read_text("utf-8")


def commands(text: str) -> Iterator[list[str]]:
    """Yield the words of each command line in the page's shell blocks."""
    for language, block in FENCE.findall(text):
        if language == "sh":
            yield from (shlex.split(line, comments=True) for line in block.splitlines() if line.strip())


def sections(text: str) -> dict[str, str]:
    """The sections of the alerts by their names."""
    alerts = text.partition("\n## Alerts\n")[2].partition("\n## ")[0]
    found = re.split(r"^### (\w+)$", alerts, flags=re.MULTILINE)
    return dict(zip(found[1::2], found[2::2], strict=True))


def test_every_alert_has_its_section_and_no_other_is_there(root: Path, runbook: str) -> None:
    rules = root / "deploy/monitoring/rules.yaml"
    assert len(sections(runbook)) >= 18
    if rules.exists():
        text = rules.read_text("utf-8")
        assert set(re.findall(r"- alert: (\w+)", text)) == set(sections(runbook))
        assert {f"#{name.lower()}" for name in sections(runbook)} == set(re.findall(r"RUNBOOK\.md(#\w+)", text))


def test_every_section_says_what_it_means_where_to_look_and_what_to_do(runbook: str) -> None:
    for name, section in sections(runbook).items():
        assert re.findall(r"^\*\*(\w+):\*\*", section, re.MULTILINE) == ["Means", "Look", "Do"], name


def test_guard_s_commands_are_as_its_parser_has_them(
    runbook: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    group = typer.main.get_command(app)
    seen = set()
    for words in commands(runbook):
        inner = words[words.index("--") + 1 :] if words[0] == "kubectl" and "--" in words else words
        if inner[0] != "guard":
            continue
        command = group.commands[inner[1]]  # type: ignore[attr-defined]
        for word in inner[2:]:
            if "." in word or word in ("bundle", "recalibrated") or word.startswith(("./", "/audit")):
                Path(word.lstrip("/")).parent.mkdir(parents=True, exist_ok=True)
                Path(word.lstrip("/")).touch()
        command.make_context(inner[1], inner[2:])
        seen.add(inner[1])
    assert {"doctor", "train", "calibrate", "conformance", "bench", "audit", "sign", "inspect"} <= seen


def test_kubectl_s_commands_have_these_flags(runbook: str, side: Callable[[str], Path]) -> None:
    seen = set()
    for words in commands(runbook):
        if words[0] != "kubectl":
            continue
        own = words[1 : words.index("--")] if "--" in words else words[1:]
        names = [word for word in own if not word.startswith("--") and word != "models"]
        verb = names[:2] if names[0] == "rollout" else names[:1]
        if tuple(verb) in seen:
            continue
        seen.add(tuple(verb))
        program = [side("kubectl") / "kubectl", *verb, "--help"]
        said = subprocess.run(program, capture_output=True, text=True, check=True).stdout
        flags = {word.partition("=")[0] for word in own if word.startswith("--")} - {"--namespace"}
        assert {flag for flag in flags if f"{flag}=" not in said} == set(), verb
    assert len(seen) >= 6


def test_settings_are_settings(runbook: str, tmp_path: Path) -> None:
    """Each that is written as `name = value`, and each block of them."""
    written = [span for span in SPAN.findall(FENCE.sub("", runbook)) if re.fullmatch(r"[a-z_]+ = \S+", span)]
    blocks = [block for language, block in FENCE.findall(runbook) if language == "toml"]
    assert len(written) > 15
    for text in [*written, *blocks]:
        (tmp_path / "guard.toml").write_text(text, "utf-8")
        load_config(tmp_path / "guard.toml", {}, {})


def test_metrics_are_metrics(root: Path, runbook: str) -> None:
    source = "".join(file.read_text("utf-8") for file in (root / "guard").rglob("*.py"))
    for name in set(re.findall(r"\bguard_[a-z_]+", runbook)):
        assert f'"{name}"' in source or f'"{name.removesuffix("_total")}"' in source, name


def test_it_is_read_at_night(runbook: str) -> None:
    """Short: a section fits a screen."""
    for name, section in sections(runbook).items():
        assert len(section.split()) < 160, name
