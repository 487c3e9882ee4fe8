"""The rows of a report about each detector: what it costs."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from guard.offline.detectors.detector import Detector
from guard.offline.evidence.gather import distinct
from guard.offline.evidence.kinds.second import networks_of
from guard.offline.findings.evaluation import DetectorRow


def detector_rows(programs: Mapping[str, Sequence[Detector]]) -> tuple[DetectorRow, ...]:
    """Return what each detector costs, and how much of that no other detector of its program pays for too."""
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
                    own=sum(
                        need.rows_per_item + need.backwards + need.forwards for need in needs if need not in shared
                    ),
                    second=sum(need.forwards for need in needs),
                )
            )
    return tuple(rows)


def second_texts(detectors: Iterable[Detector]) -> tuple[str, ...]:
    """Return where each second network comes from and how good it is, in words."""
    return tuple(one.in_words for one in networks_of(need for detector in detectors for need in detector.needs))
