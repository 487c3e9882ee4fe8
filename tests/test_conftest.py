"""The rules that hold for every test can themselves fail."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest

SKIPPING = 'import pytest\n\n@pytest.mark.skip(reason="{reason}")\ndef test_one(): pass\n\ndef test_two(): pass\n'
NO_ENVOY = "no Envoy; build it, 107 MB, once: python -m tests.side envoy"
BESIDE = ["-n", "1"]  # a process of pytest-xdist, whose skips the controller has to be told of
NO_RAY = "no Ray; build it, 250 MB, once: python -m tests.side ray"
WHOLE_FILE = 'import pytest\n\npytest.skip("{reason}", allow_module_level=True)\n'


@pytest.mark.slow
@pytest.mark.parametrize(
    ("reason", "ci", "texts", "passes", "beside"),
    [
        ("no GPU", "true", (SKIPPING, WHOLE_FILE), True, []),
        ("no time", "", (SKIPPING, WHOLE_FILE), True, []),
        ("no time", "true", (SKIPPING,), False, []),
        ("no time", "true", (WHOLE_FILE,), False, []),
        (NO_ENVOY, "true", (SKIPPING,), True, []),
        (NO_ENVOY, "long", (SKIPPING,), False, []),
        (NO_RAY, "true", (WHOLE_FILE,), True, []),
        ("no GPU", "true", (SKIPPING, WHOLE_FILE), True, BESIDE),
        ("no time", "true", (SKIPPING,), False, BESIDE),
        ("no time", "true", (WHOLE_FILE,), False, BESIDE),
    ],
    ids=[
        "no-gpu",
        "at-home",
        "in-ci-test",
        "in-ci-file",
        "large-in-ci",
        "large-in-long",
        "other-large-in-ci",
        "no-gpu-beside",
        "in-ci-test-beside",
        "in-ci-file-beside",
    ],
)
def test_ci_accepts_no_skip_but_for_want_of_a_gpu(
    *, root: Path, tmp_path: Path, texts: tuple[str, ...], reason: str, ci: str, passes: bool, beside: list[str]
) -> None:
    (tmp_path / "conftest.py").write_text((root / "tests/conftest.py").read_text("utf-8"), encoding="utf-8")
    for number, text in enumerate(texts):
        (tmp_path / f"test_made_up_{number}.py").write_text(text.format(reason=reason), encoding="utf-8")
    (tmp_path / "test_other.py").write_text("def test_three(): pass\n", encoding="utf-8")
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", *beside, str(tmp_path)],
        cwd=tmp_path,
        env={**os.environ, "CI": ci, "PYTHONPATH": str(root)},
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
