"""The table of checks of `guard doctor`, and their run, one after the other.

Rule 1: a check is one function that yields findings; what it cannot do because another one failed it leaves out.
Rule 2: nothing is changed and nothing is loaded onto a device: it runs beside a serving guard, in the same container.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

from guard.serve.doctor.bundle_checks import bundle, promise, signature
from guard.serve.doctor.bypass_check import bypass
from guard.serve.doctor.finding import Finding
from guard.serve.doctor.port_checks import admin, ports, running
from guard.serve.doctor.settings_checks import mode, settings
from guard.serve.doctor.setup import Setup
from guard.serve.doctor.upstream_checks import rest_upstream, upstream

Check = Callable[[Setup], Iterator[Finding]]
CHECKS: tuple[Check, ...] = (
    settings,
    mode,
    bundle,
    signature,
    promise,
    upstream,
    rest_upstream,
    bypass,
    ports,
    admin,
    running,
)


def examine(setup: Setup) -> Iterator[Finding]:
    """Run every check, and yield what each one finds as it comes."""
    for check in CHECKS:
        yield from check(setup)
