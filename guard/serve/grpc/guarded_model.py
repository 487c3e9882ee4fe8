"""The guarded model among those of the model server: which requests reach the weights that the bundle is for."""

from __future__ import annotations

from dataclasses import dataclass

from guard.errors import Unchecked, UnknownModel
from guard.manifest import ModelSpec
from guard.serve.grpc.upstream import Upstream
from guard.serve.grpc.wire.inference_pb2 import ModelInferRequest


@dataclass(frozen=True, eq=False)
class GuardedModel:
    """The model that a bundle guards, by the names and versions that its server has."""

    model: ModelSpec
    allowed_models: frozenset[str]  # further names, to pass uninspected
    upstream: Upstream

    def guards(self, message: ModelInferRequest) -> bool:
        """Whether the bundle guards the named model; False where the operator lets it pass.

        Raises:
            UnknownModel: the model is neither guarded nor let pass.
        """
        name = message.model_name
        if name == self.model.name:
            self.check_version(message.model_version)
            return True
        if name in self.allowed_models:
            return False
        raise UnknownModel(f"no bundle guards model {name[:80]!r}; this guard inspects {self.model.name!r}")

    def check_version(self, named: str) -> None:
        """Check that a request for this version ("": the server's choice) reaches the weights that the bundle is for.

        Raises:
            UnknownModel: it may reach other weights.
            Unchecked: the model server has not said yet which versions it has.
        """
        ours, model, served = self.model.version, self.model.name, self.upstream.versions
        asked = f"version {named[:20]!r}" if named else "no version"
        if ours:
            if named == ours or (not named and served in (None, (), (ours,))):
                return
            several = "" if named else ", of which the model server has several"
            raise UnknownModel(
                f"this guard inspects version {ours} of model {model!r}; the request names {asked}{several}"
            )
        if served is None:
            if not named:
                return
            raise Unchecked(f"the model server has not said yet which versions of {model!r} it has; try again shortly")
        if len(served) > 1:
            raise UnknownModel(
                f"the model server has versions {', '.join(served)} of model {model!r}, and this guard's bundle is for "
                f"no one in particular; the request names {asked}, and every version is refused until the bundle names "
                "its own"
            )
        if named and served and named not in served:
            raise UnknownModel(
                f"the model server has version {served[0]} of model {model!r}, which this guard inspects; "
                f"the request names {asked}"
            )
