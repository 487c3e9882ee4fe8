"""What is measured, and on what."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from guard.offline.compile import Program
from guard.offline.detectors.detector import Detector, Head
from guard.offline.evidence.gather import distinct
from guard.offline.findings.evaluation import DetectorRow
from guard.offline.model.classifier import Classifier
from guard.runtime import Runtime


@dataclass(frozen=True)
class Subject:
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


def detector_rows(programs: Mapping[str, Sequence[Detector]]) -> tuple[DetectorRow, ...]:
    """What each detector costs, and how much of that no other detector of its program pays for too."""
    rows = []
    for program, detectors in programs.items():
        for detector in detectors:
            needs = distinct(detector.needs)
            shared = {need for other in detectors if other is not detector for need in other.needs}
            rows.append(
                DetectorRow(
                    detector.name,
                    program,
                    rows=sum(need.rows_per_item for need in needs),
                    backwards=sum(need.backwards for need in needs),
                    own=sum(need.rows_per_item + need.backwards for need in needs if need not in shared),
                )
            )
    return tuple(rows)


@dataclass(frozen=True)
class HeldOut:
    """Clean items that nothing was fitted or calibrated on; unit space."""

    images: NDArray[np.float32]
    labels: NDArray[np.int64]
    hashes: NDArray[np.str_]
    name: str
