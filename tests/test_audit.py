"""`make audit`: what pip-audit says of a lock is read, and what it did not audit does not count as clean."""

from __future__ import annotations

import json
from typing import Any

import pytest

from tests.audit import UNANSWERED, VULNERABLE, main, verdict

CLEAN: dict[str, Any] = {"name": "h11", "version": "0.16.0", "vulns": []}
FLAWED: dict[str, Any] = {
    "name": "pip",
    "version": "9.0",
    "vulns": [{"id": "PYSEC-2023-228", "fix_versions": ["23.3"], "aliases": ["CVE-2023-5752"], "description": "x"}],
}
# As pip-audit 2.10.1 wrote it where a mirror stood for PyPI; its exit code was 0.
SKIPPED = {"name": "setuptools", "skip_reason": "Dependency not found on PyPI and could not be audited: setuptools"}


@pytest.mark.parametrize(
    ("packages", "code", "told"),
    [
        ([CLEAN], 0, "cpu: 1 packages, no vulnerability is known"),
        ([CLEAN, FLAWED], VULNERABLE, "cpu: pip 9.0 has PYSEC-2023-228, mended in 23.3"),
        ([CLEAN, SKIPPED], UNANSWERED, "cpu: 1 of 2 packages not audited, since the database has no answer"),
        ([FLAWED, SKIPPED], UNANSWERED, "cpu: pip 9.0 has PYSEC-2023-228"),
    ],
)
def test_what_was_found_is_told(packages: list[Any], code: int, told: str) -> None:
    found, lines = verdict("cpu", json.dumps({"dependencies": packages, "fixes": []}), "")
    assert found == code
    assert lines[0].startswith(told)


def test_a_database_that_is_not_reached_is_no_clean_answer() -> None:
    code, lines = verdict("cpu", "", "Traceback\nConnectionError: Failed to resolve 'api.osv.dev'\n")
    assert code == UNANSWERED
    assert lines == ["cpu: not audited, since pip-audit failed: ConnectionError: Failed to resolve 'api.osv.dev'"]


def test_an_unknown_lock_is_an_error(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["gpu"]) == UNANSWERED
    assert "no lock is called 'gpu'; there are cpu, cuda" in capsys.readouterr().err
