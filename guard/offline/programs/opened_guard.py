"""A bundle that is opened to be attacked: the served side, and the torch side that can be differentiated."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from guard.offline.detectors.detector import Detector, Head
from guard.offline.model.classifier import Classifier
from guard.offline.programs.program import Program
from guard.runtime import Runtime


@dataclass(frozen=True)
class OpenedGuard:
    """The bundle at work, and the torch side that an attacker differentiates."""

    classifier: Classifier
    programs: Mapping[str, Sequence[Detector]]
    heads: Mapping[str, Head]
    runtime: Runtime

    def joint(self) -> Program:
        """All programs' detectors in one, with the attacker's surrogate derivatives: one plain pass for all."""
        return self.smooth([d for detectors in self.programs.values() for d in detectors])

    def alone(self, name: str) -> Program:
        """One detector, and no evidence but its own."""
        return self.smooth([d for detectors in self.programs.values() for d in detectors if d.name == name])

    def smooth(self, detectors: Sequence[Detector]) -> Program:
        return Program(self.classifier, [self.heads[d.name] for d in detectors], smooth=True)
