"""Candidates of a choice of detectors: a recipe's own, fewer squeezers of each, and their scores without each family.

Rule 1: heads that judge a family have seen none of its items, nor noise as large as its perturbations.
Rule 2: evidence is gathered once for all candidates and families.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch

from guard.errors import ConfigError, DataError
from guard.fusion import Floats
from guard.offline.crafting.crafted_set import CraftedSet
from guard.offline.data.attacked import Attacked
from guard.offline.data.grid import Images
from guard.offline.data.splits import Split
from guard.offline.detectors.detector import Detector, Head
from guard.offline.detectors.table import INDEPENDENT, LESS_EVIDENCE
from guard.offline.evidence.cache import EvidenceCache
from guard.offline.evidence.forwards import forwards_by_need
from guard.offline.job.job import Job
from guard.offline.job.recipe import Recipe, built_detector
from guard.offline.training.build import Prepared
from guard.offline.training.choose_detectors import DetectorChoice, Option, choose
from guard.offline.training.families import MIN_LEARNED_ITEMS, families_of, leaving
from guard.offline.training.family_scores import MIN_FAMILIES, MIN_JUDGED_ITEMS, FamilyScores
from guard.offline.training.fit_heads import FittingItems, fit_heads
from guard.offline.training.pooled_items import attacked_items, pool

FITTED_ITEMS = 1500  # of clean, noisy and attacked each, at most, that the heads of a choice are fitted on

Block = Mapping[str, Any]  # a [[detector]] of a recipe


@dataclass(frozen=True)
class Candidate:
    """A detector that may be taken, and the block of a recipe that asks for it."""

    block: Block
    detector: Detector

    @property
    def text(self) -> str:
        """The detector's name, with its squeezers where it has any, and what it does without."""
        settings = [repr(one) for one in getattr(self.detector, "squeezers", ())]
        less = LESS_EVIDENCE.get(self.detector.name, {})
        settings += [f"{key} = {str(value).lower()}" for key, value in less.items() if self.block.get(key) == value]
        return self.detector.name + (f" ({', '.join(settings)})" if settings else "")


def check_cost(job: Job) -> None:
    """Check that detectors can be chosen within a limit of forwards, where there is one. Raises ConfigError."""
    if job.cost is None:
        return
    if job.cost < 1:
        raise ConfigError(f"--cost {job.cost:g}: a guard runs the model's forward once at least; give 1 or more")
    families = {str(attack.family) for attack in job.recipe.attacks}
    if len(families) < MIN_FAMILIES:
        raise ConfigError(
            f"--cost chooses detectors by families of attacks left out of training, and recipe {job.recipe.name} has "
            f"{len(families)}; give it attacks of at least {MIN_FAMILIES}, or leave --cost out"
        )


@dataclass(frozen=True, eq=False)
class ChosenDetectors:
    """Detectors that were chosen within a limit of forwards, and their scores without each family."""

    choice: DetectorChoice
    left_out: Sequence[FamilyScores]  # of the chosen detectors, in their order in the programs


def with_chosen(
    job: Job, prepared: Prepared, remembered: EvidenceCache, note: Callable[[str], None]
) -> tuple[Job, ChosenDetectors | None]:
    """Return the job with the detectors that catch most within `job.cost` forwards, and how they were chosen.

    Without such a limit the job is as it was. A family of few items judges nothing, and is learned from all the same.

    Raises:
        ConfigError: no detector is within that many forwards.
        DataError: the crafted items do not suffice for a detector, or to choose by.
    """
    if job.cost is None:
        return job, None
    left = leaving(prepared)
    if not left:
        raise DataError(
            f"--cost chooses detectors by families of attacks left out of training, and of {len(families_of(prepared))}"
            f" no {MIN_FAMILIES} have {MIN_JUDGED_ITEMS} items of the combiner's split to judge by, beside "
            f"{MIN_LEARNED_ITEMS} of others to learn from; craft more items, give stronger attacks, or leave --cost out"
        )
    candidates = candidates_of(job.recipe, [tap.name for tap in prepared.classifier.taps])
    fitted = [scores_without(family, job, prepared, candidates, remembered, note) for family in left]
    options = [option_of(candidate, needs) for candidate, needs in zip(candidates, fitted[0][1], strict=True)]
    note("sets of detectors")
    scored = [scores for scores, _ in fitted]
    choice = choose(options, scored, job.cost, (job.reject_rate, job.flag_rate))
    chosen = {options[place].name: place for place in choice.chosen.places}
    job = replace(job, recipe=job.recipe.having([candidates[place].block for place in chosen.values()]))
    served = [chosen[detector.name] for detectors in prepared.programs(job).values() for detector in detectors]
    return job, ChosenDetectors(choice, [scores.of(served) for scores in scored])


def candidates_of(recipe: Recipe, taps: Sequence[str]) -> list[Candidate]:
    """Return a recipe's detectors, each followed by itself with each of its squeezers alone, and with less evidence."""
    blocks = [variant for block in recipe.detectors for variant in variants(block)]
    return [Candidate(block, built_detector(block, taps)) for block in blocks]


def variants(block: Block) -> list[Block]:
    """Return a block, then itself with each of its squeezers alone, then all of these with less evidence."""
    squeezers = block.get("squeezers", ())
    alone = [{**block, "squeezers": [one]} for one in squeezers] if len(squeezers) > 1 else []
    less = LESS_EVIDENCE.get(block["name"])
    return [block, *alone, *([{**one, **less} for one in (block, *alone)] if less else [])]


def option_of(candidate: Candidate, settled: Detector) -> Option:
    """Return a candidate as the choice sees it; `settled` is its detector with complete needs."""
    name = candidate.detector.name
    return Option(name, candidate.text, forwards_by_need(settled.needs), name in INDEPENDENT)


def scores_without(
    family: str,
    job: Job,
    prepared: Prepared,
    candidates: Sequence[Candidate],
    remembered: EvidenceCache,
    note: Callable[[str], None],
    most: int = FITTED_ITEMS,
) -> tuple[FamilyScores, list[Detector]]:
    """Fit all candidates without a family; return their scores on the combiner's split, and the fitted detectors."""
    data = prepared.data
    others = tuple(found for found in prepared.crafted if str(found.family) != family)
    own = tuple(found for found in prepared.crafted if str(found.family) == family)
    heads = fitted_heads(
        others, job, prepared, candidates, remembered, lambda name: note(f"without {family}: {name}"), most
    )
    learned, noisy = pooled(others, job, prepared, Split.COMBINER)
    judged = attacked_items(own, data, Split.COMBINER)
    clean = data.part(Split.COMBINER).images[:]
    scores = [columns(heads, images, remembered) for images in (clean, noisy, learned.items, judged.items)]
    found = FamilyScores(family, scores[0], scores[1], learned.seen_as(scores[2]), judged.seen_as(scores[3]))
    return found, [head.detector for head in heads]


def fitted_heads(
    crafted: Sequence[CraftedSet],
    job: Job,
    prepared: Prepared,
    candidates: Sequence[Candidate],
    remembered: EvidenceCache,
    note: Callable[[str], None],
    most: int = FITTED_ITEMS,
) -> list[Head]:
    """Fit the head of each candidate on these crafted sets, on at most so many items of each kind."""
    attacked, noisy = pooled(crafted, job, prepared, Split.HEADS)
    items = FittingItems(prepared.data.part(Split.HEADS), noisy, attacked).some(most, job.seed)
    heads: dict[int, Head] = {}
    for places in rounds(candidates):
        detectors = [candidates[place].detector for place in places]
        found = fit_heads(detectors, items, remembered, seed=job.seed, report=note)
        heads |= {place: found[candidates[place].detector.name] for place in places}
    return [heads[place] for place in range(len(candidates))]


def pooled(
    crafted: Sequence[CraftedSet], job: Job, prepared: Prepared, split: Split
) -> tuple[Attacked[Images], Images]:
    """Return the attacked and the noisy items of these crafted sets in one split."""
    return pool(crafted, prepared.data, split, prepared.classifier.spec.input, job.seed)


def rounds(candidates: Sequence[Candidate]) -> list[list[int]]:
    """Return the candidates by place in groups within which every name is told once, since heads go by name."""
    groups: list[list[int]] = []
    for place, candidate in enumerate(candidates):
        free = [g for g in groups if all(candidates[other].detector.name != candidate.detector.name for other in g)]
        if free:
            free[0].append(place)
        else:
            groups.append([place])
    return groups


def columns(heads: Sequence[Head], images: Images, remembered: EvidenceCache) -> Floats:
    """Return the heads' scores [item, head] of unit-space images [item, ...]."""
    if not len(images):
        return np.zeros((0, len(heads)))
    evidence = remembered([need for head in heads for need in head.detector.needs], images)
    with torch.no_grad():
        return torch.stack([head(evidence) for head in heads], dim=1).double().numpy()
