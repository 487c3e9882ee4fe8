"""Rows that an evaluation does not hold as they are shown: the whole system's, and the classes in their order."""

from __future__ import annotations

from dataclasses import dataclass

from guard.offline.findings.evaluation import AttackRow, ClassRow, Detection, Evaluation
from guard.offline.findings.intervals import Area, Caught, Rate

NO_AREA = Area(float("nan"), 0.0, 1.0)


@dataclass(frozen=True)
class SystemRow:
    """A row of the whole system under one attack, or under the worst of the recipe's for each item."""

    label: str
    about: str
    attack: str  # as the call that makes it; empty where no single call does
    tried: int  # items that the model had right
    bare: Rate  # of these, still right without a guard
    served: Detection
    left_out: Detection | None = None


@dataclass(frozen=True)
class WorstAttack:
    """The single attack under which the guard handles least, at its own reject rate."""

    label: str
    guarded: Rate
    bare: Rate


def system_rows(e: Evaluation) -> list[SystemRow]:
    """Return every attack, then every adaptive one, then the worst case where there is one."""
    rows = [
        SystemRow(
            row.label,
            f"{row.family}, {row.setting} in training",
            row.attack,
            row.tried,
            row.bare,
            row.served,
            row.left_out,
        )
        for row in e.every_attack
    ]
    rows += [
        SystemRow(row.label, "knows the guard", "", row.fooled.items, row.fooled.complement(), row.detection)
        for row in e.adaptive
    ]
    if e.worst is not None:
        bare, about = e.worst.bare, "each item meets the attack that is worst for it"
        found = Detection(NO_AREA, {}, e.worst.handled)
        rows.append(SystemRow("the worst of the recipe's", about, "", bare.items, bare, found))
    return rows


def worst_single(e: Evaluation) -> WorstAttack | None:
    """Return the attack that is worst for the guard, adaptive ones included; None where none was tried on any item."""
    found = [WorstAttack(row.label, row.robust_accuracy, row.bare) for row in e.every_attack]
    found += [WorstAttack(row.label, row.passed_reject.complement(), row.fooled.complement()) for row in e.adaptive]
    return min((one for one in found if one.guarded.items), key=lambda one: one.guarded.value, default=None)


def knowing(row: AttackRow, e: Evaluation) -> Caught | None:
    """Return what is caught of the attacker who knows the guard, at the budget of an attack; None where none had it."""
    found = (one for one in e.adaptive if row.norm == "linf" and one.budget == row.budget)
    return next((one.detection.caught for one in found), None)


def stand_ins(e: Evaluation) -> list[str]:
    """Return what stands in for what has no gradient, once, though every row has the list."""
    return list(dict.fromkeys(name for row in e.adaptive for name in row.surrogates))


def has_own_rates(e: Evaluation) -> bool:
    """Tell whether the bundle rejects or flags at other rates than those that every report states."""
    return not {e.reject_rate, e.flag_rate} <= {p.rate for p in e.promises}


def classes_by_alarms(e: Evaluation) -> list[ClassRow]:
    """Return the rows of the true classes, those first that have most false alarms at the largest stated rate."""
    loudest = next(reversed(e.stated), None)

    def alarms(row: ClassRow) -> float:
        found = row.alarms.get(loudest.rate) if loudest else None
        return found.value if found and found.items else -1.0

    return sorted(e.by_class, key=lambda row: -alarms(row))
