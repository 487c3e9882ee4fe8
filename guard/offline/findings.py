"""What an evaluation finds: values, and nothing that measures.

Rule 1: every share and every AUROC carries its 95 % interval.
Rule 2: a rate that the calibration items cannot promise has no number, but a reason.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from guard.calibration import Floats, auroc, check_promise, wilson
from guard.errors import PromiseError

PROMISED = (0.01, 0.05)  # the rates that every report states, whatever the bundle's own are
PROOF_SHARE = 0.9
MOST_DISAGREEMENT = 0.02  # one item in fifty, whose risk lies on the threshold
MOST_RISK_GAP = 0.1  # in units of risk
FEWEST = 200  # verified items for a row to be more than an indication
NORMAL = 1.96
OFF_GRID, NOISE = "off-grid clean", "noise of the attacks' sizes"


@dataclass(frozen=True)
class Rate:
    """A share with its 95 % interval."""

    value: float
    low: float
    high: float
    count: int
    items: int

    @staticmethod
    def of(hits: NDArray[np.bool_]) -> Rate:
        count, items = int(hits.sum()), int(hits.size)
        low, high = wilson(count, items)
        return Rate(count / items if items else float("nan"), low, high, count, items)


@dataclass(frozen=True)
class Area:
    """An AUROC with its 95 % interval: the share of (clean, attacked) pairs in which the attacked item is riskier."""

    value: float
    low: float
    high: float

    @staticmethod
    def between(clean: Floats, attacked: Floats) -> Area:
        """Wilson's interval with as many items as DeLong's variance is worth, at most as many as where chance rules.

        So it stays within [0, 1] and does not shrink to a point where the two are fully apart.

        Source: DeLong et al. 1988, Biometrics 44(3) (variance); Wilson 1927 (interval).
        """
        if len(clean) == 0 or len(attacked) == 0:
            return Area(float("nan"), 0.0, 1.0)
        value = auroc(clean, attacked)
        at_chance = 3 * len(clean) * len(attacked) / (len(clean) + len(attacked) + 1)
        variance = spread(placements(clean, attacked)) + spread(placements(-attacked, -clean))
        worth = min(value * (1 - value) / variance, at_chance) if variance > 0 else at_chance
        centre, square = (value + NORMAL**2 / (2 * worth)) / (1 + NORMAL**2 / worth), NORMAL**2
        half = NORMAL * np.sqrt(value * (1 - value) / worth + square / (4 * worth**2)) / (1 + square / worth)
        return Area(value, max(0.0, min(value, float(centre - half))), min(1.0, max(value, float(centre + half))))


def placements(clean: Floats, attacked: Floats) -> Floats:
    """For each attacked item the share of clean ones below it, ties counting half."""
    ordered = np.sort(clean)
    both = np.searchsorted(ordered, attacked, side="left") + np.searchsorted(ordered, attacked, side="right")
    return np.asarray(both / (2 * len(clean)), dtype=np.float64)


def spread(values: Floats) -> float:
    """Variance of the mean."""
    return float(values.var(ddof=1) / len(values)) if len(values) > 1 else 0.0


@dataclass(frozen=True)
class Promise:
    """A rate, and whether so many clean calibration items can promise it."""

    rate: float
    items: int
    reason: str | None  # why it cannot be promised

    @property
    def name(self) -> str:
        return f"{self.rate:g}"

    @staticmethod
    def of(rate: float, items: int) -> Promise:
        try:
            check_promise(rate, items, name="rate")
        except PromiseError as error:
            return Promise(rate, items, str(error))
        return Promise(rate, items, None)


Caught = Mapping[str, Rate | None]  # by the promise's name; None where it cannot be promised


def caught_at(promises: Sequence[Promise], p_value: Floats) -> Caught:
    """The share of items whose p-value is at most each rate."""
    return {p.name: Rate.of(p_value <= p.rate) if p.reason is None else None for p in promises}


@dataclass(frozen=True)
class CleanRow:
    """How often inputs that nobody attacked are taken for attacked."""

    name: str
    rejected: Rate  # at the bundle's own rates
    flagged: Rate
    reject_band: tuple[int, int] | None = None  # where the number of rejections must lie, if a promise covers this row
    flag_band: tuple[int, int] | None = None
    alarms: Caught = field(default_factory=dict)
    bands: Mapping[str, tuple[int, int]] = field(default_factory=dict)


@dataclass(frozen=True)
class Detection:
    """What one guard makes of one attack's verified items."""

    auroc: Area
    caught: Caught


@dataclass(frozen=True)
class AttackRow:
    """One attack: what it does to the bare model, and what the guard makes of it."""

    attack: str  # as the call that makes it
    label: str  # for people
    family: str
    norm: str
    budget: float | None
    setting: str  # seen | never seen
    tried: int  # clean items that the model had right
    success: Rate  # of the attack against the bare model, on the grid
    served: Detection  # by the bundle that is served
    left_out: Detection | None  # by a bundle fitted the same way, without this attack's family
    rejected: Rate  # at the bundle's own rates
    flagged: Rate
    robust_accuracy: Rate  # rejected, or still classified right, among all tried
    detector_auroc: Mapping[str, float]
    detector_surprise: Mapping[str, float]  # AUROC of the two-sided p-value: both tails suspicious, as the fusion sees

    @property
    def thin(self) -> bool:
        """Fewer than FEWEST verified items."""
        return self.success.count < FEWEST


@dataclass(frozen=True)
class LeftOutRow:
    """A bundle that was fitted without one family of attacks, through the same path as the served one."""

    family: str
    fitted_on: tuple[str, ...]  # labels of the attacks that were left
    bundle: str  # digest
    alarms: Caught  # on the clean items: the same promise


@dataclass(frozen=True)
class ProofRow:
    """The same attack against one detector known to be broken."""

    detector: str
    budget: float
    success: Rate


@dataclass(frozen=True)
class AdaptiveRow:
    """An attacker who knows model, detectors, fusion and threshold."""

    budget: float
    label: str
    steps: int
    methods: tuple[str, ...]
    target: float  # the rate whose threshold was attacked
    fooled: Rate  # of the items: the model says another class
    detection: Detection  # of the items that fool the model
    passed: Caught  # success rate of the attack at each promised rate: of the items, fooled and not caught
    passed_reject: Rate  # the same at the bundle's own rates
    passed_flag: Rate
    disagreement: float  # share of the items on which the attacked torch side and the served verdict differ
    proof: tuple[ProofRow, ...]
    by_method: Mapping[str, Rate] = field(default_factory=dict)  # `passed` at the target, of each method alone
    sr50: Rate | None = None  # as `passed`, under the threshold that half of all clean items exceed
    surrogates: tuple[str, ...] = ()  # what was differentiated in place of what has no gradient
    risk_gap: float = 0.0  # largest difference in risk between the attacked torch side and the served programs
    without_gradient: tuple[str, ...] = ()  # heads that hide their evidence from whoever descends

    @property
    def proven(self) -> bool:
        return bool(self.proof) and all(row.success.value >= PROOF_SHARE for row in self.proof)

    @property
    def agrees(self) -> bool:
        """What was attacked is what is served; otherwise the row says nothing about the guard."""
        return self.disagreement <= MOST_DISAGREEMENT and self.risk_gap <= MOST_RISK_GAP


@dataclass(frozen=True)
class DetectorRow:
    """What a detector costs an item, in forwards beside the one that the model needs anyway."""

    name: str
    program: str
    rows: int
    backwards: int
    own: int  # forwards that no other detector of its program pays for too

    @property
    def forwards(self) -> int:
        return self.rows + self.backwards


@dataclass(frozen=True)
class Evaluation:
    """Everything that a report states."""

    model: str
    bundle: str
    data: str
    seed: int
    grid: int | None
    reject_rate: float
    flag_rate: float
    calibration_items: int
    promises: tuple[Promise, ...]
    accuracy: Rate  # of the bare model on the clean items
    clean: tuple[CleanRow, ...]
    attacks: tuple[AttackRow, ...]
    left_out: tuple[LeftOutRow, ...]
    adaptive: tuple[AdaptiveRow, ...]
    detectors: tuple[DetectorRow, ...]
    provenance: Mapping[str, Any] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        content = asdict(self)
        for row, plain in zip(self.adaptive, content["adaptive"], strict=True):
            plain["proven"], plain["agrees"] = row.proven, row.agrees
        for attack, plain in zip(self.attacks, content["attacks"], strict=True):
            plain["thin"] = attack.thin
        for detector, plain in zip(self.detectors, content["detectors"], strict=True):
            plain["forwards"] = detector.forwards
        return content
