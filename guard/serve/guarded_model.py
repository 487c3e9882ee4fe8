"""A guarded model: its bundle at work, the operator's settings for it, and which requests reach its weights.

Rule 1: the value never changes; a reload puts another in its place, and calls that began with this one end with it.
"""

from __future__ import annotations

from dataclasses import dataclass

from guard.bundle import Bundle
from guard.errors import Unchecked, UnknownModel
from guard.manifest import ModelSpec
from guard.model_config import ModelConfig
from guard.policy import Policy
from guard.serve.agreement import UpstreamComparison
from guard.serve.inspector import Inspector
from guard.serve.loaded_bundle import LoadedBundle
from guard.serve.query_watch import QueryWatch
from guard.serve.sampling import Sampling


@dataclass(frozen=True, eq=False, kw_only=True)
class GuardedModel:
    """A model of the model server with the bundle that guards it."""

    config: ModelConfig
    spec: ModelSpec  # with the name and version by which the model server has it
    loaded: LoadedBundle
    inspector: Inspector
    comparison: UpstreamComparison
    sampling: Sampling
    queries: QueryWatch | None = None  # of this model's traffic, where its settings want that

    @property
    def label(self) -> str:
        """The name in metrics, readiness and log: the key of the model's table, or the bundle's own name."""
        return self.config.key or self.spec.name

    @property
    def bundle(self) -> Bundle:
        return self.loaded.bundle

    @property
    def policy(self) -> Policy:
        return self.inspector.policy

    @property
    def is_shadowed_later(self) -> bool:
        """Whether requests pass first, and are inspected afterwards."""
        return self.policy.mode == "shadow" and self.config.shadow == "queue"

    def check_version(self, named: str, served: tuple[str, ...] | None) -> None:
        """Check that a request for this version ("": the server's choice) reaches the weights that the bundle is for.

        `served` are the versions that the model server has; None: it has not said yet, (): it knows none.

        Raises:
            UnknownModel: it may reach other weights.
            Unchecked: the model server has not said yet which versions it has.
        """
        ours, model = self.spec.version, self.spec.name
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
