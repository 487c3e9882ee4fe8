"""The extensions of the protocol that a server says it has, reduced to those that work through the guard.

Clients ask for them first: a tool that is told of `statistics` calls ModelStatistics, and fails where that is refused.
"""

from __future__ import annotations

from collections.abc import Set

from google.protobuf.message import DecodeError

from guard.policy import Mode
from guard.serve.grpc.upstream import path
from guard.serve.grpc.wire.inference_pb2 import ServerMetadataResponse

IN_REQUESTS = frozenset({"classification", "sequence", "schedule_policy", "parameters", "binary_tensor_data"})
NEEDED_METHODS = {
    "model_configuration": ("ModelConfig",),
    "model_repository": ("RepositoryIndex", "RepositoryModelLoad", "RepositoryModelUnload"),
    "model_repository(unload_dependents)": ("RepositoryModelUnload",),
    "statistics": ("ModelStatistics",),
    "trace": ("TraceSetting",),
    "logging": ("LogSettings",),
    **{
        f"{kind.lower()}_shared_memory": tuple(
            f"{kind}SharedMemory{verb}" for verb in ("Status", "Register", "Unregister")
        )
        for kind in ("System", "Cuda")
    },
}
UNINSPECTED: frozenset[Mode] = frozenset({"shadow", "off"})  # in which tensors in shared memory pass


def works(extension: str, opened: Set[str], mode: Mode) -> bool:
    """Whether an extension works through a guard that has opened these paths; one that is not known does not."""
    if extension in IN_REQUESTS:
        return True
    methods = NEEDED_METHODS.get(extension)
    if methods is None or (extension.endswith("_shared_memory") and mode not in UNINSPECTED):
        return False
    return all(path(method) in opened for method in methods)


def working_extensions(body: bytes, opened: Set[str], mode: Mode) -> bytes:
    """Leave out of a serialized ServerMetadataResponse what does not work; the same bytes where all does."""
    try:
        metadata = ServerMetadataResponse.FromString(body)
    except DecodeError:  # it goes to the client as it came
        return body
    kept = [name for name in metadata.extensions if works(name, opened, mode)]
    if len(kept) == len(metadata.extensions):
        return body
    metadata.extensions[:] = kept
    reduced: bytes = metadata.SerializeToString()
    return reduced
