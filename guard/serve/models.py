"""The models that are guarded: a table by name and version, which every method reads and a reload replaces.

Rule 1: a table never changes. A call looks its model up once and keeps it, so that it ends on what it began with.
Rule 2: what names no model that is known is refused, whatever becomes of others; it passes only by `allow_models`, or
        where no model is inspected at all.
Rule 3: where a request's model cannot be known, the strictest of all policies holds.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property

from guard.errors import ConfigError, InspectionTimeout, Unchecked, UnknownModel
from guard.manifest import InputSpec
from guard.policy import Mode
from guard.serve.batcher import Batcher
from guard.serve.guarded_model import GuardedModel
from guard.serve.loaded_bundle import LoadedBundle
from guard.serve.readiness import Readiness

STRICTEST_FIRST: tuple[Mode, ...] = ("enforce", "flag", "shadow", "off")


@dataclass(frozen=True)
class ModelTable:
    """The guarded models, none where all passes (mode off), and the names of those that pass uninspected."""

    models: tuple[GuardedModel, ...]
    allowed: frozenset[str] = frozenset()

    def named(self, name: str) -> tuple[GuardedModel, ...]:
        """The guarded models of this name: one, or several versions."""
        return tuple(model for model in self.models if model.spec.name == name)

    @cached_property
    def loaded(self) -> tuple[LoadedBundle, ...]:
        """The bundles at work, each once."""
        return tuple(dict.fromkeys(model.loaded for model in self.models))

    @property
    def inputs(self) -> tuple[tuple[InputSpec, Batcher], ...]:
        """The input of each model, and the queue that its requests wait in."""
        return tuple((model.spec.input, model.loaded.batcher) for model in self.models)

    @cached_property
    def labels(self) -> tuple[str, ...]:
        """The names of the models in metrics, readiness and log."""
        return tuple(model.label for model in self.models)

    @cached_property
    def only(self) -> GuardedModel | None:
        """The guarded model where there is one alone."""
        return self.models[0] if len(self.models) == 1 else None

    @cached_property
    def strictest_mode(self) -> Mode:
        """The mode that lets the least pass, of those that the models have."""
        return min((model.policy.mode for model in self.models), key=STRICTEST_FIRST.index, default="off")

    @cached_property
    def inspect_timeout_s(self) -> float:
        """The most seconds that the guard may take over a request, whichever model it is for."""
        return max((model.config.inspect_timeout_s for model in self.models), default=math.inf)

    @cached_property
    def passes_late(self) -> bool:
        """Whether there is a model whose requests pass, unchecked, where there was no time to inspect them."""
        return any(model.inspector.unchecked(InspectionTimeout()) is not None for model in self.models)

    def unchecked(self, error: Exception) -> str | None:
        """The reason for which a request of no known model passes uninspected after this error; None: it does not."""
        reasons = {model.inspector.unchecked(error) for model in self.models}
        return None if None in reasons else max(filter(None, reasons), default=None)


@dataclass
class Models:
    """The table of models at work, and the versions of them that the model server has."""

    table: ModelTable
    readiness: Readiness
    versions: dict[str, tuple[str, ...]] = field(default_factory=dict)  # by name, as last told; absent: not yet
    listeners: list[Callable[[ModelTable], None]] = field(default_factory=list)

    def find(
        self, name: str, version: str, versions: Mapping[str, tuple[str, ...]] | None = None
    ) -> GuardedModel | None:
        """The model whose weights a request for this name and version ("": the server's choice) reaches.

        None where the operator lets the name pass uninspected. `versions` are those of a model server that is asked
        otherwise than by gRPC.

        Raises:
            UnknownModel: the model is neither guarded nor let pass, or it is not certain which weights are reached.
            Unchecked: the model server has not said yet which versions it has.
        """
        table = self.table
        guarded, served = table.named(name), (self.versions if versions is None else versions).get(name)
        if not guarded:
            if name in table.allowed:
                return None
            known = ", ".join(repr(name) for name in dict.fromkeys(model.spec.name for model in table.models))
            raise UnknownModel(f"no bundle guards model {name[:80]!r}; this guard inspects {known}")
        model = chosen(guarded, version, served) if len(guarded) > 1 else guarded[0]
        model.check_version(version, served)
        return model

    def swap(self, table: ModelTable) -> None:
        """Put another table in the place of this one, and tell the listeners."""
        self.table = table
        for listener in self.listeners:
            listener(table)

    def begin(self) -> None:
        """Declare the programs loaded, and watch them from now on."""
        self.readiness.say("engine", None)
        for loaded in self.table.loaded:
            self.watch(loaded)

    def watch(self, loaded: LoadedBundle) -> None:
        """Keep the engine's part of readiness true for the models of a bundle, as long as it is at work."""

        def users() -> list[GuardedModel]:
            return [model for model in self.table.models if model.loaded is loaded]

        def say(reason: str | None) -> None:
            for model in users():
                follows = model.config.breaker_readiness
                self.readiness.say("engine", reason if follows else None, model=model.label)

        loaded.watch(say, lambda: max((model.config.inspect_timeout_s for model in users()), default=math.inf))

    async def close(self) -> None:
        """Stop all bundles at work; what waits fails as Unchecked."""
        for loaded in self.table.loaded:
            await loaded.close()


def chosen(guarded: Sequence[GuardedModel], version: str, served: tuple[str, ...] | None) -> GuardedModel:
    """The one of several versions of a model that a request for `version` reaches. Raises as `Models.find`."""
    asked = version or (served[0] if served is not None and len(served) == 1 else "")
    for model in guarded:
        if model.spec.version == asked:
            return model
    name, ours = guarded[0].spec.name, ", ".join(model.spec.version for model in guarded)
    if asked:
        raise UnknownModel(f"this guard inspects versions {ours} of model {name!r}; the request names {asked[:20]!r}")
    if served is None:
        raise Unchecked(f"the model server has not said yet which versions of {name!r} it has; try again shortly")
    raise UnknownModel(
        f"this guard inspects versions {ours} of model {name!r}; the request names no version, of which the model "
        "server has several"
    )


def check_distinct(served: Iterable[tuple[str, str, str]]) -> None:
    """Raise ConfigError where two tables guard the same model; each is (its place, name, version)."""
    seen: dict[str, dict[str, str]] = {}
    for place, name, version in served:
        versions = seen.setdefault(name, {})
        if version in versions:
            raise ConfigError(
                f"{place} and {versions[version]} guard the same model {name!r}"
                f"{f', version {version}' if version else ''}; leave one of them out"
            )
        versions[version] = place
    for name, versions in seen.items():
        if len(versions) > 1 and "" in versions:
            raise ConfigError(
                f"{versions['']} guards every version of model {name!r}, and there is a table for one of them; name "
                "the version in each table: NAME:VERSION"
            )
