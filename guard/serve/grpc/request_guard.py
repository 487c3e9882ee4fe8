"""The guard of one model inside its server's own process: the bytes of a request become a verdict or an error.

Rule 1: what is inspected is what the server's handler gets: the bytes as they came.
Rule 2: what could not be inspected passes only where mode or on_failure say so; then it is marked and logged.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, field
from typing import Any

from guard.errors import GuardError, MalformedRequest, Rejected, Unchecked, UnknownModel
from guard.local_guard import LocalGuard
from guard.policy import Action
from guard.serve.failure_table import excuse
from guard.serve.grpc import decode
from guard.serve.grpc.call import Call
from guard.serve.grpc.scan import names_of
from guard.serve.inference_call import UNCHECKED
from guard.serve.inspector import label, verdict_fields
from guard.serve.log import Log


@dataclass(frozen=True)
class RequestGuard:
    """A guard that inspects requests on the caller's thread; threads may share it."""

    guard: LocalGuard
    allow_models: Collection[str] = ()  # further names, to pass uninspected
    log: Log = field(default_factory=Log)

    def check(self, request: bytes, call: Call) -> None:
        """Inspect a serialized ModelInferRequest; the verdict is in the call, `told`.

        Raises:
            GuardError: it may not pass.
        """
        try:
            call.told = self.inspect(request, call)
        except Exception as error:
            ours = not isinstance(error, GuardError)
            if ours:
                self.log.error("internal", **call.names, cause=repr(error))
            reason = excuse(self.guard.judge.policy, error)
            if reason is None:
                if ours:
                    raise Unchecked("the guard failed while inspecting this request") from error
                raise
            self.log.warning("unchecked", **call.names, reason=reason, cause=str(error))
            call.told = UNCHECKED
        if call.told == Action.REJECT:
            raise Rejected(
                "refused by the guard: the input looks adversarial, so the model was not asked; if it is genuine, "
                f"give the operator guard-id {call.name}"
            )

    def inspect(self, request: bytes, call: Call) -> str:
        """Judge a request, and return the verdict that its client may know."""
        if self.guard.judge.policy.mode == "off":
            return UNCHECKED
        try:
            parsed = decode.parse(request)
        except MalformedRequest:
            names = names_of(request)
            if names is not None and names[0] in self.allow_models:
                return UNCHECKED
            raise
        call.message_id = parsed.message.id
        if not self.guards(parsed.message):
            return UNCHECKED
        found = self.guard.inspect(decode.decode(parsed, self.guard.runtime.spec).images)
        if found.verdict.request is not Action.PASS:
            event, model = label(found.verdict.request, found.enacted), self.guard.model.name
            self.log.info(event, **call.names, model=model, **verdict_fields(found))
        return Action.REJECT.value if found.enacted is Action.REJECT else Action.PASS.value

    def guards(self, message: Any) -> bool:
        """Whether the request is for the bundle's model; False where it may pass uninspected. Raises UnknownModel."""
        model = self.guard.model
        if message.model_name in self.allow_models:
            return False
        if message.model_name != model.name:
            raise UnknownModel(
                f"no bundle guards model {message.model_name[:80]!r}; this guard inspects {model.name!r}"
            )
        if model.version and message.model_version not in ("", model.version):
            raise UnknownModel(
                f"this guard inspects version {model.version} of model {model.name!r}; the request names version "
                f"{message.model_version[:20]!r}"
            )
        return True
