"""The rules that hold for every test can themselves fail."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest

NO_ENVOY = "no Envoy; build it, 107 MB, once: python -m tests.side envoy"
BESIDE = ["-p", "xdist.plugin", "-n", "1"]  # a process of pytest-xdist, whose skips the controller has to be told of
NO_RAY = "no Ray; build it, 250 MB, once: python -m tests.side ray"


def skips_a_test(reason: str) -> str:
    """A file with a skipped test and another."""
    return f'import pytest\n\n@pytest.mark.skip(reason="{reason}")\ndef test_one(): pass\n\ndef test_two(): pass\n'


def skips_a_file(reason: str) -> str:
    return f'import pytest\n\npytest.skip("{reason}", allow_module_level=True)\n'


NO_GPU = (skips_a_test("no GPU"), skips_a_file("no GPU"))
NO_TIME = (skips_a_test("no time"), skips_a_file("no time"))
NO_LARGE = (skips_a_test(NO_ENVOY), skips_a_file(NO_RAY))  # side environments


@pytest.mark.slow
@pytest.mark.parametrize(
    ("ci", "texts", "passes", "beside"),
    [
        ("true", (*NO_GPU, *NO_LARGE), True, []),
        ("", NO_TIME, True, []),
        ("true", NO_TIME[:1], False, []),
        ("true", NO_TIME[1:], False, []),
        ("long", NO_LARGE[:1], False, []),
        ("true", NO_GPU, True, BESIDE),
        ("true", NO_TIME[:1], False, BESIDE),
        ("true", NO_TIME[1:], False, BESIDE),
    ],
    ids=[
        "no-gpu-and-no-large",
        "at-home",
        "in-ci-test",
        "in-ci-file",
        "large-in-long",
        "no-gpu-beside",
        "in-ci-test-beside",
        "in-ci-file-beside",
    ],
)
def test_ci_accepts_no_skip_but_for_want_of_a_gpu(
    *, root: Path, tmp_path: Path, texts: tuple[str, ...], ci: str, passes: bool, beside: list[str]
) -> None:
    (tmp_path / "conftest.py").write_text((root / "tests/conftest.py").read_text("utf-8"), encoding="utf-8")
    for number, text in enumerate(texts):
        (tmp_path / f"test_made_up_{number}.py").write_text(text, encoding="utf-8")
    (tmp_path / "test_other.py").write_text("def test_three(): pass\n", encoding="utf-8")
    environment = {"CI": ci, "PYTHONPATH": str(root), "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"}  # plugins take a second
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", *beside, str(tmp_path)],
        cwd=tmp_path,
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == (0 if passes else 1), done.stdout + done.stderr
    assert ("skips that CI does not accept" in done.stdout) is not passes


@pytest.mark.parametrize(("family", "host"), [(socket.AF_INET, "192.0.2.1"), (socket.AF_INET6, "2001:db8::1")])
def test_no_socket_leaves_this_machine(family: socket.AddressFamily, host: str) -> None:
    with socket.socket(family) as mine, pytest.raises(PermissionError, match="loopback only"):
        mine.connect((host, 80))
