"""The service that Envoy's ext_authz asks: one check a call, answered by what the guard makes of its one message.

Rule 1: an error of ours is a denial, never a failed check: what Envoy does about a failed check is not ours to say.
Rule 2: Envoy forwards the bytes that it has, so nothing is repaired, and no answer is compared or held.
Rule 3: a method that is not ModelInfer is allowed or denied by its name alone, so a stream that has sent nothing yet
        gets its answer at once; what it carries later cannot be inspected here.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import partial
from typing import Any

from google.protobuf.message import DecodeError
from grpc_reflection.v1alpha.reflection import SERVICE_NAME as REFLECTION

from guard.config import ServeConfig
from guard.errors import ConfigError, GuardError, MalformedRequest, NotAllowed, Unchecked
from guard.serve.envoy.asked_request import AskedRequest
from guard.serve.envoy.check_answer import allowed, denied
from guard.serve.envoy.messages import SERVICE, authorization_messages
from guard.serve.failure_table import ALLOWED_METHOD
from guard.serve.grpc.call import Call
from guard.serve.grpc.door import Door
from guard.serve.grpc.health import HEALTH
from guard.serve.grpc.listener import Methods
from guard.serve.grpc.method_groups import opened_methods
from guard.serve.grpc.outermost import nothing
from guard.serve.grpc.service import Service
from guard.serve.grpc.upstream import path
from guard.serve.inference_call import UNCHECKED
from guard.serve.metrics import OTHER

MODEL_INFER = path("ModelInfer")
HEADERS_BYTES = 128 * 1024  # of a request's headers, beside its body: more than Envoy lets through by default
OPEN = frozenset(  # whoever calls
    {*map(path, ("ServerLive", "ServerReady")), *(f"/{HEALTH}/{name}" for name in ("Check", "Watch", "List"))}
)
HARMLESS = frozenset(
    {
        *OPEN,
        *map(path, ("ModelReady", "ServerMetadata", "ModelMetadata")),
        *(f"/{name}/ServerReflectionInfo" for name in (REFLECTION, "grpc.reflection.v1.ServerReflection")),
    }
)


def check_settings(config: ServeConfig) -> None:
    """Raise ConfigError where Envoy is to be answered and the settings ask for what this door cannot do."""
    for model in config.model_configs():
        where = f"{model.place}: " if model.place else ""
        if model.repair is not None:
            raise ConfigError(
                f"{where}authz_listen excludes repair = {model.repair!r}: Envoy forwards the bytes that it has, so "
                "nothing can be cleaned; leave one of them out"
            )
        if model.forward != "after":
            raise ConfigError(
                f"{where}authz_listen excludes forward = {model.forward!r}: Envoy forwards after the "
                "verdict alone; leave one of them out"
            )
    authorization_messages()


@dataclass
class Authorization:
    """The method Check of `envoy.service.auth.v3.Authorization`."""

    config: ServeConfig
    service: Service
    door: Door
    messages: Any = field(default_factory=authorization_messages)

    def __post_init__(self) -> None:
        self.passing = HARMLESS | opened_methods(self.config.allow_methods)

    def methods(self) -> Methods:
        return {f"/{SERVICE}/Check": self.door.unary(self.check, ended=self.ended, identify=nothing)}

    async def check(self, request: bytes, call: Call) -> bytes:
        """Answer a check: allowed with the verdict in headers, or denied with a status."""
        try:
            asked = call.asked = await self.door.aside(len(request), partial(self.read, request))
            if asked.path not in OPEN:
                self.door.identify(call)  # the request's caller, not Envoy
            await self.decide(asked, call)
        except Exception as error:  # noqa: BLE001  a failed check would pass where Envoy lets these pass
            call.ended(error)
            if not isinstance(error, GuardError):
                self.door.log.error("internal", **call.names, cause=repr(error))
                error = Unchecked("the guard failed while inspecting this request")
            return denied(self.messages, call, error, is_grpc=call.asked is None or call.asked.is_grpc)
        return allowed(self.messages, call, asked.headers)

    def read(self, request: bytes) -> AskedRequest:
        try:
            return AskedRequest.of(self.messages.CheckRequest.FromString(request))
        except DecodeError as error:
            raise MalformedRequest("the request is no envoy.service.auth.v3.CheckRequest") from error

    async def decide(self, asked: AskedRequest, call: Call) -> None:
        """Return where the request may pass; its verdict is in the call. Raises GuardError."""
        if asked.path == MODEL_INFER:
            await self.service.inspect_alone(call, partial(asked.message, self.door.largest_bytes), len(asked.body))
        elif asked.path not in self.passing:
            raise NotAllowed(
                f"the guard does not pass {asked.path[:200]!r}, which it cannot inspect; allow_methods opens it"
            )
        elif asked.path not in HARMLESS:
            call.told = UNCHECKED
            self.service.metrics.unchecked.labels(OTHER, ALLOWED_METHOD).inc()

    def ended(self, call: Call) -> None:
        """Count a check that is over: as a request where it was about ModelInfer, else as a call of its method."""
        asked: AskedRequest | None = call.asked
        if asked is not None and asked.path == MODEL_INFER:
            self.service.ended(call)
            return
        metrics = self.service.metrics
        name = OTHER if asked is None else metrics.method(asked.path.rpartition("/")[2])
        passed = "passed" if asked is not None and asked.path in HARMLESS else "opened"
        metrics.calls.labels(name, passed if call.end == "answered" else call.end).inc()
        metrics.handled(name, call.code)
