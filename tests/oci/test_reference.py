"""References to images: what names a place in a registry, and what does not."""

from __future__ import annotations

from pathlib import Path

import pytest

from guard import cli
from guard.errors import ConfigError
from guard.oci.registry import Reference
from tests.serve import tiny_bundle

DIGEST = "sha256:" + "ab" * 32


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("oci://registry.example/guards/digits:1", Reference("registry.example", "guards/digits", "1", None)),
        ("oci://registry.example/digits", Reference("registry.example", "digits", "latest", None)),
        ("oci://127.0.0.1:5000/a/b-c__d:V1.2_x", Reference("127.0.0.1:5000", "a/b-c__d", "V1.2_x", None)),
        ("oci://localhost:5000/a/b", Reference("localhost:5000", "a/b", "latest", None)),
        ("oci://[::1]:5000/a", Reference("[::1]:5000", "a", "latest", None)),
        (f"oci://h.example/a@{DIGEST}", Reference("h.example", "a", "latest", DIGEST)),
        (f"oci://h.example/a:1@{DIGEST}", Reference("h.example", "a", "1", DIGEST)),
    ],
)
def test_a_reference_is_read(text: str, wanted: Reference) -> None:
    assert Reference.read(text) == wanted


@pytest.mark.parametrize(
    "text",
    [
        "oci://",
        "oci://digits",
        "oci://guards/digits:1",
        "oci://registry.example/",
        "oci://registry.example/Digits",
        "oci://registry.example/a//b",
        "oci://registry.example/../b",
        "oci://registry.example/a:",
        "oci://registry.example/a:-1",
        "oci://registry.example/a:" + "x" * 129,
        "oci://registry.example/a@sha256:12",
        "oci://user:secret@registry.example/a",
        "oci://registry.example/a?x=1",
        "oci://https://registry.example/a",
        "oci://registry.example/a\n",
    ],
)
def test_what_is_no_reference_is_refused(text: str) -> None:
    with pytest.raises(ConfigError, match="no place in a registry"):
        Reference.read(text)


@pytest.mark.parametrize("text", ["oci://localhost/a", "oci://localhost/a/b:1"])
def test_localhost_without_a_port_is_refused_with_what_to_write(text: str) -> None:
    with pytest.raises(ConfigError, match=r"localhost needs its port; wanted oci://localhost:PORT/NAME"):
        Reference.read(text)


@pytest.mark.parametrize(
    ("host", "local"),
    [("localhost:5", True), ("127.3.0.1", True), ("[::1]:5", True), ("10.0.0.1", False), ("a.b", False)],
)
def test_only_registries_of_this_machine_are_asked_without_tls(host: str, local: bool) -> None:  # noqa: FBT001
    assert Reference(host, "a", "1", None).is_local == local


def test_a_missing_extra_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    bundle = tiny_bundle.make(tmp_path / "bundle")
    code = cli.run(["pack", str(bundle.path), "--out", "oci://127.0.0.1:1/guards/digits:1"])
    said = capsys.readouterr().err
    assert said.count("\n") == 1
    assert (code, "registry]" in said) in ((2, True), (10, False))  # where the extra is installed, nobody answers
