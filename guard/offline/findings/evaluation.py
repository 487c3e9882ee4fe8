"""The values that an evaluation finds; nothing here measures."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from typing import Any

from scipy.stats import binom

from guard.offline.attacks.attack import Family
from guard.offline.findings.figures import Exhibit
from guard.offline.findings.intervals import Area, Caught, Promise, Rate

PROOF_SHARE = 0.9
MAX_CHANGED_SHARE = 0.1  # of the items, that a stronger attack may gain or lose: the lower end of the interval counts
MAX_DISAGREEING_SHARE = 0.02  # one item in fifty, whose risk lies on the threshold
MAX_RISK_GAP = 0.1  # in units of risk
CHANCE_TAIL_SHARE = 0.025  # of reports, in which some class is marked though none is bothered
OFF_GRID, NOISE = "off-grid clean", "noise of the attacks' sizes"
HARMLESS = "noise of every kind and size"


@dataclass(frozen=True)
class CleanRow:
    """A row of unattacked inputs: how often they are taken for attacked."""

    name: str
    rejected: Rate  # at the bundle's own rates
    flagged: Rate
    reject_band: tuple[int, int] | None = None  # where the number of rejections must lie, if a promise covers this row
    flag_band: tuple[int, int] | None = None
    alarms: Caught = field(default_factory=dict)
    bands: Mapping[float, tuple[int, int]] = field(default_factory=dict)
    accuracy: Rate | None = None  # of the bare model, where the inputs have labels
    part: bool = False  # of the row before it: noise as large as one attack, or of one kind and size


@dataclass(frozen=True)
class ClassRow:
    """A row of the clean test items of one true class, or of those that the model has right, or wrong."""

    name: str
    accuracy: Rate  # of the bare model
    alarms: Caught
    true_class: int | None = None  # None: of all classes, that the model has right, or wrong

    def bothered(self, rate: float, classes: int = 1) -> bool:
        """Tell whether at this rate chance gives one of so many classes as many false alarms in CHANCE_TAIL_SHARE."""
        found = self.alarms.get(rate)
        if found is None or found.items == 0:
            return False
        return bool(binom.sf(found.count - 1, found.items, rate) < CHANCE_TAIL_SHARE / classes)


@dataclass(frozen=True)
class Detection:
    """The detection of one attack by one guard: of its verified items, and of all that it was tried on.

    An item on which the attack failed stands as its clean version.
    """

    auroc: Area
    caught: Caught
    handled: Caught = field(default_factory=dict)  # of the items tried: rejected, or still classified right
    passing: Caught = field(default_factory=dict)  # of the items tried that pass: still classified right
    alone: Mapping[str, Caught] = field(default_factory=dict)  # caught, by each detector's two-sided p-value alone


@dataclass(frozen=True)
class BudgetPart:
    """A part of the budgets that the items of one attack drew: how often it fools there, and what is caught of it."""

    low: float  # the smallest budget drawn in it, and the largest
    high: float
    success: Rate  # against the bare model
    caught: Caught  # by the bundle that is served, of the items that fool the model


@dataclass(frozen=True)
class AttackRow:
    """A row of one attack: what it does to the bare model, and what the guard makes of it."""

    attack: str  # as the call that makes it
    label: str  # for readers
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
    transfer: Rate | None = None  # of the items that mislead a student, those that fool its closed model
    curve: tuple[BudgetPart, ...] = ()  # over the budget, where it is a range

    @property
    def thin(self) -> bool:
        """Whether there are fewer verified items than a row of its family takes."""
        return self.success.count < fewest(self.family)

    @property
    def bare(self) -> Rate:
        """The share of the items tried that the bare model still classifies right."""
        return self.success.complement()


def fewest(family: str) -> int:
    """Return how many verified items a row of this family takes to be more than an indication."""
    return Family(family).min_verified_items


@dataclass(frozen=True)
class UnrunRow:
    """An attack of a suite that was not run, and why: it failed, or does not apply to the kind of input."""

    attack: str
    label: str
    family: str
    reason: str
    applies: bool = True  # to the inputs, and so counts as failed


@dataclass(frozen=True)
class SuiteRows:
    """The rows of a suite, a further list of attacks on a time budget of its own."""

    name: str
    description: str
    minutes: float
    rows: tuple[AttackRow | UnrunRow, ...]  # in the suite's order

    @property
    def run(self) -> tuple[AttackRow, ...]:
        return tuple(row for row in self.rows if isinstance(row, AttackRow))


@dataclass(frozen=True)
class Worst:
    """The worst case over several attacks: each item that all were tried on meets the attack that is worst for it."""

    attacks: tuple[str, ...]  # labels
    bare: Rate  # still right, whichever attack
    handled: Caught
    robust_accuracy: Rate  # handled at the bundle's own reject rate


@dataclass(frozen=True)
class LeftOutRow:
    """A bundle that was fitted without one family of attacks, through the same path as the served one."""

    family: str
    fitted_on: tuple[str, ...]  # labels of the attacks that were left
    guard: str  # what tells it from another; `guard inspect` prints it too
    alarms: Caught  # on the clean items: the same promise
    served_detectors: bool = False  # as the served guard's, which were chosen with this family among the attacks

    @property
    def note(self) -> str:
        """What of the bundle did see the family, as a clause; empty where nothing did."""
        if not self.served_detectors:
            return ""
        return "its detectors are the served ones, which were chosen with this family, for want of others to choose by"


@dataclass(frozen=True)
class ProofRow:
    """The same attack as the adaptive one, against one detector known to be broken, or one second network, alone."""

    detector: str
    budget: float
    success: Rate
    network: bool = False  # a second network, within a budget at which none can hold


@dataclass(frozen=True)
class StrengthRow:
    """A stronger attack than the row's on some of its items: more steps, more restarts, or a larger budget."""

    what: str
    base: Rate  # of the items: the row's attack gets through
    stronger: Rate
    gained: Rate  # only the stronger attack gets through
    lost: Rate  # the stronger attack does not get through where the row's does, by the same method
    wider: bool = False  # within a larger budget, where to gain is no surprise

    @property
    def doubt(self) -> str | None:
        """What this says against the row, as a clause; the interval counts, so that one item of few says nothing."""
        figures = f"{self.what}: through on {self.stronger.count} of {self.stronger.items} items, not {self.base.count}"
        if self.gained.low > MAX_CHANGED_SHARE and not self.wider:
            return f"it has not come to its end ({figures})"
        if self.lost.low > MAX_CHANGED_SHARE:
            return f"it weakens when it should not ({figures}; {self.lost.count} are lost)"
        return None


@dataclass(frozen=True)
class OutcomeRow:
    """What an attacker who knows less than all gets through, on an adaptive row's items and within its budget."""

    fooled: Rate
    passed: Caught  # of the items, fooled and not caught at each promised rate
    passed_reject: Rate  # the same at the bundle's own rates
    passed_flag: Rate
    sr50: Rate  # under the threshold that half of all clean items exceed


@dataclass(frozen=True)
class AdaptiveRow:
    """A row of the adaptive attack, which knows model, detectors, fusion and threshold."""

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
    without_gradient: tuple[str, ...] = ()  # heads that give a descent no gradient to follow
    answered: AnsweredRow | None = None  # of a closed model: what it gets through where its answers are held
    strength: tuple[StrengthRow, ...] = ()  # stronger attacks on some of the items; empty: not asked
    # On the same items: the attack that knows nothing (an item has the result of the recipe's last L-infinity attack
    # within the budget that fools the model, or is clean), and the one that has other weights of the second network
    static: OutcomeRow | None = None
    grey: OutcomeRow | None = None

    @property
    def weak(self) -> tuple[ProofRow, ...]:
        """The proofs on detectors known to be weak."""
        return tuple(row for row in self.proof if not row.network)

    @property
    def hiding(self) -> tuple[ProofRow, ...]:
        """The second networks that held alone where none can: they hide their gradient from this attack."""
        return tuple(row for row in self.proof if row.network and row.success.value < PROOF_SHARE)

    @property
    def doubts(self) -> tuple[str, ...]:
        """Why the attack proves nothing, in clauses; without any, what gets through counts."""
        found = []
        if not self.weak:
            found.append("there was none to prove it on: the guard has no detector that is known to be weak")
        if any(row.success.value < PROOF_SHARE for row in self.weak):
            found.append(f"it did not first defeat detectors known to be weak on {PROOF_SHARE:.0%} of the items")
        found += [f"it did not first defeat the {row.detector}, where none can hold" for row in self.hiding]
        if self.without_gradient:
            found.append(
                f"no gradient comes from {', '.join(self.without_gradient)}, so it never saw what they look at"
            )
        found += [doubt for row in self.strength if (doubt := row.doubt) is not None]
        return tuple(found)

    @property
    def proven(self) -> bool:
        return not self.doubts

    @property
    def agrees(self) -> bool:
        """Whether what was attacked is what is served; otherwise the row says nothing about the guard."""
        return self.disagreement <= MAX_DISAGREEING_SHARE and self.risk_gap <= MAX_RISK_GAP


@dataclass(frozen=True)
class DetectorRow:
    """A detector's cost an item, in forwards beside the one that the model needs anyway."""

    name: str
    program: str
    rows: int
    backwards: int
    own: float  # forwards that no other detector of its program pays for too
    second: float = 0.0  # forwards of second networks, by multiply-adds

    @property
    def forwards(self) -> float:
        return self.rows + self.backwards + self.second


@dataclass(frozen=True)
class ClosedFindings:
    """The findings on a model that cannot be opened, and on the student whose gradient was used in its place."""

    model: str  # as it was named
    by: str  # what computed its answers
    questions: int  # answers that the student was distilled from
    clean: Rate  # of held-out clean items, on which both name the same class
    attacked: Rate  # of the recipe's attacked items, those that failed included
    transfer: Rate  # of the attacked items that mislead the student, those that fool the model
    beyond_chance: float  # the agreement on clean items, as a share of what chance leaves


@dataclass(frozen=True)
class AnsweredRow:
    """A row of items judged by the programs alone, and with a closed model's answer held until the verdict."""

    name: str  # clean, or the label of the attack whose items fool the model
    alone: Rate  # rejected by the programs alone, at the bundle's reject rate
    held: Rate  # the same with the answer
    before: Rate  # rejected before the model sees them, in the mode that holds answers
    caught_alone: Caught  # at each promised rate
    caught_held: Caught
    band: tuple[int, int] | None = None  # where the number that is rejected must lie, if the promise covers the row


@dataclass(frozen=True)
class Evaluation:
    """An evaluation, which is everything that a report states."""

    model: str
    guard: str  # what tells it from another
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
    classes: tuple[ClassRow, ...] = ()
    shift_note: str = ""  # why no shifted data were measured
    skipped: tuple[str, ...] = ()  # parts of the recipe that do not apply to the inputs, each with the reason
    worst: Worst | None = None  # over the recipe's attacks
    suite: SuiteRows | None = None
    closed: ClosedFindings | None = None  # where the gradient is not the model's own
    answered: tuple[AnsweredRow, ...] = ()  # of a closed model, with its answers held
    forwards: float = 0  # an item, of all programs, beside the model's own
    second: tuple[str, ...] = ()  # each second network: where it comes from, and how good it is
    cuts: tuple[str, ...] = ()  # what was cut of guard and report for want of time or on request, in words
    item_shape: tuple[int, ...] = ()
    class_count: int = 0
    exhibit: Exhibit | None = field(default=None, compare=False, repr=False)  # for pictures; the page alone has it

    @property
    def stated(self) -> tuple[Promise, ...]:
        """The rates at which there are figures; for the others there is a reason."""
        return tuple(promise for promise in self.promises if promise.reason is None)

    @property
    def by_answer(self) -> tuple[ClassRow, ...]:
        """The rows of the clean items that the model has right, and of those that it has wrong."""
        return tuple(row for row in self.classes if row.true_class is None)

    @property
    def by_class(self) -> tuple[ClassRow, ...]:
        """The rows of the true classes."""
        return tuple(row for row in self.classes if row.true_class is not None)

    @property
    def every_answered(self) -> tuple[AnsweredRow, ...]:
        """The rows judged with a closed model's answers: clean and attacked items, and the adaptive attack's."""
        return self.answered + tuple(row.answered for row in self.adaptive if row.answered is not None)

    @property
    def every_attack(self) -> tuple[AttackRow, ...]:
        """The rows of the recipe's attacks, and of those that only a suite has."""
        own = {row.attack for row in self.attacks}
        return self.attacks + tuple(row for row in (self.suite.run if self.suite else ()) if row.attack not in own)

    @property
    def curves(self) -> tuple[AttackRow, ...]:
        """The rows of the attacks whose budgets are ranges, with detection over the budget."""
        return tuple(row for row in self.every_attack if row.curve)

    def to_json(self) -> dict[str, Any]:
        content = asdict(replace(self, exhibit=None))
        del content["exhibit"]
        for row, plain in zip(self.adaptive, content["adaptive"], strict=True):
            plain["proven"], plain["agrees"], plain["doubts"] = row.proven, row.agrees, row.doubts
        for attack, plain in zip(self.attacks, content["attacks"], strict=True):
            plain["thin"] = attack.thin
        for detector, plain in zip(self.detectors, content["detectors"], strict=True):
            plain["forwards"] = detector.forwards
        return content
