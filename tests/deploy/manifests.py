"""Own assertions about rendered Kubernetes objects: what validators by schema do not see.

    objects = read(text, side("kubectl"))     # or kustomize(folder, side("kubectl")) first
    assert faults(objects) == []

Each check returns a sentence a fault, and each is shown to fail on a planted one in `test_manifests.py`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from tests.deploy.drain_faults import drain_faults
from tests.deploy.enum_faults import enum_faults
from tests.deploy.kubernetes_versions import lowest_version, schema_faults, stated_version, version_faults
from tests.deploy.port_faults import port_faults, probe_faults, route_faults
from tests.deploy.reference_faults import reference_faults
from tests.deploy.rendered import Object, Pod, kustomize, pods, read, read_all
from tests.deploy.settings_faults import settings_faults

CHECKS: tuple[Callable[[Sequence[Object]], list[str]], ...] = (
    settings_faults,
    port_faults,
    route_faults,
    probe_faults,
    drain_faults,
    reference_faults,
    enum_faults,
)

__all__ = [
    "CHECKS",
    "Object",
    "Pod",
    "drain_faults",
    "enum_faults",
    "faults",
    "kustomize",
    "lowest_version",
    "pods",
    "port_faults",
    "probe_faults",
    "read",
    "read_all",
    "reference_faults",
    "route_faults",
    "schema_faults",
    "settings_faults",
    "stated_version",
    "version_faults",
]


def faults(objects: Sequence[Object]) -> list[str]:
    """All that is wrong with rendered objects, a sentence each; none is right."""
    return [fault for check in CHECKS for fault in check(objects)]
