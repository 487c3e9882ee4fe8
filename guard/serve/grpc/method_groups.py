"""The remote procedures that the operator opens: by name, or by a group that holds what reads and changes nothing.

The groups have Triton's names (`--grpc-restricted-protocol`), without the methods of a group that change something.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterator, Mapping, Sequence

from guard.errors import ConfigError
from guard.serve.grpc.upstream import path

GROUP = "@"
REPOSITORY_INDEX = "/inference.model_repository.ModelRepositoryService/RepositoryIndex"  # where MLServer has it
GROUPS: Mapping[str, tuple[str, ...]] = {
    "health": ("ServerLive", "ServerReady", "ModelReady"),  # open in any case, as is the next
    "metadata": ("ServerMetadata", "ModelMetadata"),
    "model-config": ("ModelConfig",),
    "model-repository": ("RepositoryIndex", REPOSITORY_INDEX),
    "statistics": ("ModelStatistics",),
    "shared-memory": ("SystemSharedMemoryStatus", "CudaSharedMemoryStatus"),
}
ALL_GROUPS = "read"
CHANGING = {  # groups of Triton's that cannot be opened as a whole, and their methods
    "trace": "TraceSetting",
    "logging": "LogSettings",
    "inference": "ModelStreamInfer",
}


def opened_methods(names: Sequence[str]) -> frozenset[str]:
    """Full paths of the methods that the operator opened; a bare name is one of the inference service's.

    Raises:
        ConfigError: a name is that of the method that is inspected, or of a group that there is not.
    """
    found = frozenset(full_path(name) for given in names for name in spelled_out(given))
    if path("ModelInfer") in found:
        raise ConfigError(
            "allow_methods names ModelInfer, which is always inspected; to let everything through, set mode = 'off'"
        )
    return found


def spelled_out(name: str) -> Iterator[str]:
    """Yield the methods of a group, or the name itself. Raises ConfigError."""
    if not name.startswith(GROUP):
        yield name
        return
    group = name.removeprefix(GROUP)
    if group in GROUPS or group == ALL_GROUPS:
        for known, methods in GROUPS.items():
            if group in (known, ALL_GROUPS):
                yield from methods
        return
    if group in CHANGING:
        raise ConfigError(
            f"allow_methods names {name!r}, whose methods do not only read; "
            f"name a method itself where you want that, such as {CHANGING[group]!r}"
        )
    known_groups = [f"{GROUP}{known}" for known in (ALL_GROUPS, *GROUPS)]
    near = difflib.get_close_matches(name, known_groups, n=1)
    hint = f"did you mean {near[0]!r}? " if near else ""
    raise ConfigError(f"allow_methods names {name!r}, which is no group; {hint}groups: {', '.join(known_groups)}")


def full_path(name: str) -> str:
    if name.startswith("/"):
        return name
    return f"/{name}" if "/" in name else path(name)
