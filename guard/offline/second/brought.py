"""Second networks that the operator brings: any classifier of the same classes that can be opened.

Rule 1: it is opened as the guarded model is, with its own range of values; what differs is mapped inside the program.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from guard.errors import ConfigError, ModelError
from guard.offline.evidence.kinds.second import SecondNetwork
from guard.offline.job.job import Bounds
from guard.offline.model.classifier import Classifier
from guard.offline.model.declared_input import declared_input
from guard.offline.model.open_model import Source, open_model
from guard.offline.networks.multiply_adds import multiply_adds
from guard.offline.second.adapted import Adapted, Shape, own_shape


@dataclass(frozen=True)
class Brought:
    """A second network as it was brought: its file and the wire values of black and white, or None for the model's."""

    model: str
    bounds: Bounds | None = None

    @property
    def name(self) -> str:
        return Path(self.model).name


@dataclass(frozen=True, eq=False)
class OpenedNetwork:
    """A second network that is open: what it computes on the guarded model's items, and what it is."""

    adapted: Adapted
    digest: str  # SHA-256 (hex) of all that decides its answers
    fingerprint: str  # of the network alone
    classes: int
    labels: tuple[str, ...]

    @property
    def in_words(self) -> str:
        return f"items {self.adapted.in_words}"


def brought_networks(models: Sequence[str], bounds: Sequence[Bounds]) -> tuple[Brought, ...]:
    """Pair networks with the ranges given: none, one for all, or one each. Raises ConfigError."""
    if bounds and not models:
        raise ConfigError("--second-range, --second-mean and --second-std tell of a --second; none was given")
    if len(bounds) not in (0, 1, len(models)):
        raise ConfigError(
            f"{len(models)} times --second, but {len(bounds)} ranges; give one for all, or one each in the same order"
        )
    if len(set(models)) < len(models):
        raise ConfigError(
            f"--second {next(one for one in models if models.count(one) > 1)} was given twice; once will do"
        )
    every = [None] * len(models) if not bounds else [*bounds] if len(bounds) > 1 else [*bounds] * len(models)
    return tuple(Brought(model, found) for model, found in zip(models, every, strict=True))


def open_brought(brought: Brought, given: Shape, wire: Bounds) -> OpenedNetwork:
    """Open a second network for items `given` of the guarded model, whose own range is `wire`. Raises ModelError."""
    name = f"--second {brought.model}"
    taken = own_shape(declared_input(brought.model), given, name)
    low, high = brought.bounds or (wire if taken[0] == given[0] or len(set(wire[0])) == 1 else ((0.0,), (1.0,)))
    if len(low) not in (1, taken[0]):
        raise ConfigError(
            f"{name}: --second-mean and --second-std tell of {len(low)} channels or features; it takes {taken[0]}: "
            "give as many, or one for all"
        )
    try:
        found = open_model(Source(brought.model, taken, low, high))
    except ModelError as error:
        raise ModelError(f"{name}: {error}") from error
    adapted = Adapted(found.graph, given, taken).eval()
    said = f"{found.spec.fingerprint} {given} {taken} {low} {high}"
    output = found.spec.output
    digest = hashlib.sha256(said.encode()).hexdigest()
    return OpenedNetwork(adapted, digest, found.spec.fingerprint, output.classes, output.labels)


def check_classes(brought: Brought, opened: OpenedNetwork, classifier: Classifier) -> None:
    """Check that a second network has the model's classes in its order. Raises ModelError."""
    ours, name = classifier.spec.output, f"--second {brought.model}"
    if opened.classes != ours.classes:
        raise ModelError(
            f"{name} has {opened.classes} classes, the guarded model {ours.classes}; wanted the same classes"
        )
    pairs = list(zip(opened.labels, ours.labels, strict=False))
    if different := [(number, one, other) for number, (one, other) in enumerate(pairs) if one != other]:
        number, one, other = different[0]
        same = set(opened.labels) == set(ours.labels)
        raise ModelError(
            f"{name}: its class {number} is {one!r}, the guarded model's is {other!r}; wanted the same classes in "
            f"the same order{': they are the same, in another' if same else ''}"
        )


def as_network(brought: Brought, opened: OpenedNetwork, classifier: Classifier, about: str) -> SecondNetwork:
    """Return an open network with what it costs beside the model."""
    return SecondNetwork(brought.name, opened.digest, cost(opened.adapted, classifier), opened.adapted, about)


def cost(network: torch.nn.Module, classifier: Classifier) -> float:
    """Return a network's multiply-adds over the model's, for one item."""
    item = torch.zeros(1, *classifier.item_shape)
    return round(multiply_adds(network, item) / max(multiply_adds(classifier.graph, item), 1), 4)
