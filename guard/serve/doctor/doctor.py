"""The table of checks of `guard doctor`, and their run, one after the other.

Rule 1: a check is one function that yields remarks; what it cannot do because another one failed it leaves out.
Rule 2: nothing is changed and nothing is loaded onto a device: it runs beside a serving guard, in the same container.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

from guard.errors import GuardError, first_line
from guard.serve.doctor.audit_checks import audit, events, reload
from guard.serve.doctor.bundle_checks import bundle, promise, signature
from guard.serve.doctor.bypass_check import bypass
from guard.serve.doctor.certificate_checks import certificates, tokens
from guard.serve.doctor.clock_check import clock
from guard.serve.doctor.container_checks import cpu, device, memory
from guard.serve.doctor.port_checks import admin, ports, running
from guard.serve.doctor.remark import Remark
from guard.serve.doctor.settings_checks import mode, settings
from guard.serve.doctor.setup import Setup
from guard.serve.doctor.upstream_checks import rest_upstream, upstream

Check = Callable[[Setup], Iterator[Remark]]
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
    certificates,
    tokens,
    clock,
    cpu,
    memory,
    device,
    audit,
    events,
    reload,
    running,
)


def examine(setup: Setup) -> Iterator[Remark]:
    """Run every check, and yield what each one finds as it comes."""
    for check in CHECKS:
        try:
            yield from check(setup)
        except (GuardError, OSError) as error:  # a file that went meanwhile, say: the other checks go on
            yield Remark(check.__name__, "wrong", f"it could not be checked: {first_line(error)}")
