"""What an evaluation finds of a closed model and its student."""

from __future__ import annotations

from collections.abc import Iterable

from guard.offline.crafting.crafted_set import CraftedSet
from guard.offline.findings.evaluation import ClosedFindings
from guard.offline.findings.intervals import Rate
from guard.offline.model.answering import Answering


def closed_findings(answering: Answering | None, crafted: Iterable[CraftedSet]) -> ClosedFindings | None:
    """Return the agreement of student and model, clean and attacked; None where the model was opened."""
    if answering is None:
        return None
    found, study = [one.transfer for one in crafted if one.transfer is not None], answering.study
    return ClosedFindings(
        model=study.model,
        by=study.by,
        questions=study.questions,
        clean=Rate.counted(round(study.agreed * study.items), study.items),
        attacked=Rate.counted(sum(one.agreed for one in found), sum(one.tried for one in found)),
        transfer=Rate.counted(sum(one.transferred for one in found), sum(one.misled for one in found)),
        beyond_chance=study.beyond_chance,
    )
