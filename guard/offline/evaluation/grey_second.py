"""The guard as an attacker believes it to be who knows all but the second network's weights, and takes others.

Rule 1: model, heads, fusion and thresholds are the guard's own; only what the second networks answer is another's.
Rule 2: what is attacked is this substitute; what is counted are the verdicts of the guard itself.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from guard.bundle import Bundle
from guard.errors import ConfigError
from guard.manifest import ModelSpec
from guard.offline.detectors.detector import Detector
from guard.offline.evidence.kinds.second import SecondNetwork, networks_of
from guard.offline.model.classifier import Classifier
from guard.offline.programs.opened_guard import OpenedGuard
from guard.offline.second.brought import Brought, as_network, check_classes, open_brought
from guard.offline.second.kept import kept_networks
from guard.offline.work.directory import WorkDirectory

NAMES = "classes called"  # where both models name them


def with_other_networks(subject: OpenedGuard, others: Sequence[SecondNetwork]) -> OpenedGuard:
    """Return the guard with other second networks in the places of its own, in their order.

    Raises ConfigError: it asks none, another number of them, or one of the very same.
    """
    own = networks_of(need for detector in subject.detectors for need in detector.needs)
    if len(own) != len(others) or not own:
        raise ConfigError(
            f"--grey-second has {len(others)} second networks, and the guard asks {len(own)}; give as many, of a "
            "guard that was trained with another seed"
        )
    if same := [one.name for one in others if one.digest in {network.digest for network in own}]:
        raise ConfigError(
            f"--grey-second: {same[0]} has the guard's own weights, which the attacker of the next row knows; give "
            "those of a training with another seed"
        )
    place = dict(zip(own, others, strict=True))

    def replaced(detector: Detector) -> Detector:
        asked: Any = detector
        return replace(asked, networks=tuple(place[one] for one in asked.networks)) if asks(detector) else detector

    programs = {name: [replaced(one) for one in detectors] for name, detectors in subject.programs.items()}
    heads = {
        one.name: one.restore(subject.heads[one.name].state_dict()) if asks(one) else subject.heads[one.name]
        for detectors in programs.values()
        for one in detectors
    }
    parts = (subject.identity, *(one.digest for one in others))
    return replace(subject, programs=programs, heads=heads, identity=hashlib.sha256(repr(parts).encode()).hexdigest())


def asks(detector: Detector) -> bool:
    """Return whether a detector asks second networks."""
    return bool(networks_of(detector.needs))


def other_networks(given: str, spec: ModelSpec, classifier: Classifier) -> tuple[SecondNetwork, ...]:
    """Open the second networks that another bundle asks, or a model's file as one.

    Raises BundleError, ConfigError, ModelError.
    """
    if Path(given).is_dir():
        bundle = Bundle.open(Path(given))
        check_kin(given, bundle.manifest.model, spec)
        return kept_networks(WorkDirectory.beside(bundle.path), bundle.manifest.model)
    brought = Brought(given)
    opened = open_brought(brought, spec.input.shape, (spec.input.low, spec.input.high))
    check_classes(brought, opened, classifier)
    return (as_network(brought, opened, classifier, "of --grey-second"),)


def check_kin(given: str, other: ModelSpec, own: ModelSpec) -> None:
    """Check that another bundle's second networks take the guarded model's items and name its classes.

    Raises ConfigError.
    """
    theirs, ours = facts_of(other), facts_of(own)
    for kind, found in theirs.items():
        if found != ours[kind] and (kind != NAMES or (found and ours[kind])):
            raise ConfigError(
                f"--grey-second {given} guards a model of {kind} {found}, this bundle one of {ours[kind]}; wanted a "
                "guard of the same model, trained with another seed"
            )


def facts_of(spec: ModelSpec) -> dict[str, object]:
    """Return what two models must have in common for the second networks of one to be asked in place of the other's."""
    return {
        "items of shape": list(spec.input.shape),
        "values up from": list(spec.input.low),
        "values up to": list(spec.input.high),
        "so many classes:": spec.output.classes,
        NAMES: list(spec.output.labels),
    }
