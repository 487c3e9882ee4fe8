"""The known vulnerabilities of what the images install, as of today: `make audit`, outside of CI, since answers change.

    python -m tests.audit                all locks of deploy/
    python -m tests.audit cpu cuda       these

Rule: a package about which the database did not answer has not been audited. pip-audit calls that skipped, and ends
      with 0.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any

from tests.lock import DEPLOY, EXTRAS, TOOLS
from tests.side import StaleError, ready

VULNERABLE, UNANSWERED = 1, 2  # exit codes


def main(names: Sequence[str]) -> int:
    """Audit the locks that are named, or all; print what was found, and return the exit code."""
    names = names or (*EXTRAS, *TOOLS)
    if unknown := [name for name in names if not (DEPLOY / f"{name}.txt").is_file()]:
        print(f"no lock is called {unknown[0]!r}; there are {', '.join((*EXTRAS, *TOOLS))}", file=sys.stderr)
        return UNANSWERED
    print(f"audited on {datetime.now(UTC):%Y-%m-%d at %H:%M} UTC")
    worst = 0
    for name in names:
        code, lines = verdict(name, *ask(name))
        print("\n".join(lines))
        worst = max(worst, code)
    return worst


def ask(name: str) -> tuple[str, str]:
    """What pip-audit says of a lock: standard output, JSON, and standard error."""
    try:
        program = ready("audit") / "pip-audit"
    except StaleError as error:
        raise SystemExit(f"{error}; it needs pip-audit: python -m tests.side audit") from error
    command = [program, "--requirement", DEPLOY / f"{name}.txt", "--require-hashes", "--disable-pip"]
    command += ["--progress-spinner", "off", "--format", "json"]
    done = subprocess.run(command, capture_output=True, check=False, text=True)
    return done.stdout, done.stderr


def verdict(name: str, output: str, errors: str) -> tuple[int, list[str]]:
    """The exit code and the lines for what pip-audit said of a lock."""
    try:
        packages: list[dict[str, Any]] = json.loads(output)["dependencies"]
    except (ValueError, KeyError):
        reason = (errors.strip().splitlines() or ["it said nothing"])[-1]
        return UNANSWERED, [f"{name}: not audited, since pip-audit failed: {reason}"]
    known = [one for one in packages if "skip_reason" not in one]
    lines = [
        f"{name}: {one['name']} {one['version']} has {flaw['id']}, mended in "
        + (", ".join(flaw["fix_versions"]) or "none")
        for one in known
        for flaw in one["vulns"]
    ]
    if missing := [one["name"] for one in packages if "skip_reason" in one]:
        lines.append(
            f"{name}: {len(missing)} of {len(packages)} packages not audited, since the database has no answer "
            f"about them ({', '.join(missing[:3])}, ...); it is PyPI's own, which a mirror does not have"
        )
        return UNANSWERED, lines
    return (VULNERABLE, lines) if lines else (0, [f"{name}: {len(packages)} packages, no vulnerability is known"])


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
