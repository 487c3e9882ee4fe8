"""The paths of V2 REST, each with the remote procedure of gRPC that does the same: one name opens both.

Rule 1: a path goes up only as it is written here, with names and versions filled in: nothing else that a client wrote
        into a path reaches the model server.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from urllib.parse import quote

from guard.errors import MalformedRequest

MODEL, VERSION = "/v2/models/{model}", "/versions/{version}"
PARAMETER = re.compile(r"\{(\w+)\}")


@dataclass(frozen=True)
class RestPath:
    """A path with places for names, the HTTP methods that it takes, and its procedure."""

    template: str
    verbs: tuple[str, ...]
    procedure: str

    def filled(self, names: Mapping[str, str], query: str = "") -> str:
        """The path with these names, as it goes up. Raises MalformedRequest."""
        for name in names.values():
            if name in (".", ".."):
                raise MalformedRequest(f"the path has {name!r} for a name")
        path = PARAMETER.sub(lambda found: quote(names[found.group(1)], safe=""), self.template)
        return f"{path}?{query}" if query else path


def of_models(rest: str, verbs: tuple[str, ...], procedure: str) -> tuple[RestPath, RestPath]:
    """The path of a model, and that of one of its versions."""
    return RestPath(f"{MODEL}{rest}", verbs, procedure), RestPath(f"{MODEL}{VERSION}{rest}", verbs, procedure)


READ, WRITE = ("GET",), ("POST",)
INFER = of_models("/infer", WRITE, "ModelInfer")
LIVE = RestPath("/v2/health/live", READ, "ServerLive")
READY = RestPath("/v2/health/ready", READ, "ServerReady")
SERVER_METADATA = RestPath("/v2", READ, "ServerMetadata")
MODEL_READY = of_models("/ready", READ, "ModelReady")
MODEL_METADATA = of_models("", READ, "ModelMetadata")


def of_memory(kind: str) -> tuple[RestPath, ...]:
    """The paths of one kind of shared memory."""
    root, region = f"/v2/{kind.lower()}sharedmemory", "/region/{region}"
    return (
        RestPath(f"{root}/status", READ, f"{kind}SharedMemoryStatus"),
        RestPath(f"{root}{region}/status", READ, f"{kind}SharedMemoryStatus"),
        RestPath(f"{root}{region}/register", WRITE, f"{kind}SharedMemoryRegister"),
        RestPath(f"{root}/unregister", WRITE, f"{kind}SharedMemoryUnregister"),
        RestPath(f"{root}{region}/unregister", WRITE, f"{kind}SharedMemoryUnregister"),
    )


CLOSED = (  # unless `allow_methods` opens their procedures
    RestPath("/v2/models/stats", READ, "ModelStatistics"),
    *of_models("/stats", READ, "ModelStatistics"),
    *of_models("/config", READ, "ModelConfig"),
    RestPath("/v2/repository/index", WRITE, "RepositoryIndex"),
    RestPath("/v2/repository/models/{model}/load", WRITE, "RepositoryModelLoad"),
    RestPath("/v2/repository/models/{model}/unload", WRITE, "RepositoryModelUnload"),
    RestPath("/v2/trace/setting", READ + WRITE, "TraceSetting"),
    RestPath(f"{MODEL}/trace/setting", READ + WRITE, "TraceSetting"),
    RestPath("/v2/logging", READ + WRITE, "LogSettings"),
    *of_memory("System"),
    *of_memory("Cuda"),
)
