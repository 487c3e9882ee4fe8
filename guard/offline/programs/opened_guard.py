"""A guard opened to be attacked: the served side, and the torch side that can be differentiated."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from guard.bundle import Bundle
from guard.cascade import Cascade
from guard.offline.detectors.detector import Detector, Head
from guard.offline.model.classifier import Classifier
from guard.offline.programs.program import Program


@dataclass(frozen=True)
class Rates:
    """The false-alarm rates that a guard promises: of rejected items, and of flagged or rejected ones."""

    reject: float
    flag: float


@dataclass(frozen=True, eq=False)
class OpenedGuard:
    """A guard at work, and the torch side that an attacker differentiates; in a bundle already, or not yet."""

    classifier: Classifier
    programs: Mapping[str, Sequence[Detector]]
    heads: Mapping[str, Head]
    cascade: Cascade
    rates: Rates
    identity: str  # of what decides; that of the bundle, once there is one
    graphs: Mapping[str, bytes] = field(repr=False)  # the served programs by name, as ONNX

    @property
    def detectors(self) -> tuple[Detector, ...]:
        """The detectors of all programs, in their order."""
        return tuple(detector for detectors in self.programs.values() for detector in detectors)

    def joint(self) -> Program:
        """Return all programs' detectors in one, with the attacker's surrogate derivatives: one plain pass for all."""
        return self.smooth(self.detectors)

    def alone(self, name: str) -> Program:
        """Return a program of one detector, with no evidence but its own."""
        return self.smooth([detector for detector in self.detectors if detector.name == name])

    def smooth(self, detectors: Sequence[Detector]) -> Program:
        """Return a program of these detectors, with the attacker's surrogate derivatives."""
        return Program(self.classifier, [self.heads[d.name] for d in detectors], smooth=True)


def rates_of(bundle: Bundle) -> Rates:
    """Return the rates that a bundle promises."""
    return Rates(bundle.manifest.reject_rate, bundle.manifest.flag_rate)


def graphs_of(bundle: Bundle) -> dict[str, bytes]:
    """Return a bundle's programs by name, as ONNX without their large tensors."""
    return {program.name: (bundle.path / program.file).read_bytes() for program in bundle.manifest.programs}
