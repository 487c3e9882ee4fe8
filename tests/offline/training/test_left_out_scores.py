"""Scores by heads that do without a family: no head sees an item of it, and what is served is fitted beside them."""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from rich.console import Console

import guard.offline.training.calibrator as calibrating
import guard.offline.training.candidates as scoring
from guard.bundle import Bundle
from guard.offline.data.splits import Split, members
from guard.offline.evaluate import prepared
from guard.offline.evaluation.left_out import refit
from guard.offline.evidence.cache import EvidenceCache
from guard.offline.job.job import Job
from guard.offline.training.build import Prepared
from guard.offline.training.family_scores import MIN_JUDGED_ITEMS, FamilyScores
from guard.offline.training.left_out_scores import left_out_scores
from guard.offline.training.reopen import Work
from guard.offline.work.progress import Stages
from guard.summary import summarise
from tests.spy import Call, spied


@dataclass(frozen=True)
class Opened:
    """The tiny bundle's job, and what it was fitted on."""

    job: Job
    whole: Prepared

    def scores(self, whole: Prepared | None = None) -> dict[str, FamilyScores]:
        given = whole or self.whole
        remembered = EvidenceCache(given.classifier)
        programs = given.programs(self.job)
        found = left_out_scores(self.job, given, programs, remembered, lambda _: None)
        return {one.family: one for one in found}


@pytest.fixture(scope="module")
def opened(tiny_bundle: Bundle) -> Opened:
    work = Work.beside(tiny_bundle)
    with Stages(Console(file=io.StringIO())).stage("nobody looks") as stage:
        return Opened(work.job_of(tiny_bundle), prepared(work, tiny_bundle, stage))


def rows(images: Any) -> set[bytes]:
    return {np.ascontiguousarray(image).tobytes() for image in images}


def fitted(calls: Sequence[Call], place: int) -> Any:
    return calls[place].given["items"]


def test_no_head_sees_an_item_of_the_family_nor_of_the_split_that_it_scores(
    opened: Opened, monkeypatch: pytest.MonkeyPatch
) -> None:
    heads = spied(monkeypatch, scoring, "fit_heads")
    found = opened.scores()
    crafted = opened.whole.crafted
    assert list(found) == ["high-confidence", "single-step"]
    assert len(heads) == 2
    combiner = opened.whole.data.part(Split.COMBINER)
    for place, family in enumerate(found):
        items = fitted(heads, place)
        hidden = [one for one in crafted if one.family == family]
        assert len(items.attacked) >= 20
        assert not rows(items.attacked.items) & rows(np.concatenate([one.attacked for one in hidden]))
        assert not rows(items.noisy) & rows(np.concatenate([one.noise for one in hidden]))
        assert not rows(items.clean.images[:]) & rows(combiner.images[:])
        assert len(found[family].clean) == len(combiner)
        assert set(found[family].judged.by) == {one.attack for one in hidden}
        assert set(found[family].learned.by) == {one.attack for one in crafted} - set(found[family].judged.by)
        judged = sum(len(one.select(opened.whole.data.splits, Split.COMBINER)) for one in hidden)
        assert len(found[family].judged) == judged
        assert np.isfinite(found[family].judged.items).all()


def test_what_learns_from_attacks_or_noise_scores_otherwise_without_a_family_and_the_rest_alike(opened: Opened) -> None:
    """The metric of mahalanobis knows the noise that is as large as the attacks."""
    found = opened.scores()
    names = [d.name for ds in opened.whole.programs(opened.job).values() for d in ds]
    first, second = (one.clean for one in found.values())
    learned = [names.index(name) for name in ("saliency_classifier", "mahalanobis")]
    same = [place for place in range(len(names)) if place not in learned]
    np.testing.assert_allclose(first[:, same], second[:, same], rtol=1e-3, atol=1e-3)
    assert (np.abs(first[:, learned] - second[:, learned]).max(axis=0) > 0.05).all()


def test_a_guard_without_a_family_chooses_without_it(
    opened: Opened, tiny_bundle: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A third family, of the items of the first: left out, no item and no attack of it reaches the choice."""
    third = [replace(one, family="third", attack=f"third {one.attack}") for one in opened.whole.crafted[:1]]
    whole = replace(opened.whole, crafted=(*opened.whole.crafted, *third))
    heads = spied(monkeypatch, scoring, "fit_heads")
    choices = spied(monkeypatch, calibrating, "choose_share")
    job = replace(opened.job, out=tmp_path / "bundle")
    bundle = refit(job, whole, "third", tiny_bundle, EvidenceCache(whole.classifier), lambda _: None)
    assert [[one.family for one in call.given["left_out"]] for call in choices] == [["high-confidence", "single-step"]]
    for scores in choices[0].given["left_out"]:
        assert not any(attack.startswith("third") for attack in (*scores.learned.by, *scores.judged.by))
    assert not any(attack.startswith("third") for call in heads for attack in call.given["items"].attacked.by)
    assert set(bundle.manifest.provenance["fusion"]["left_out"]) == {"high-confidence", "single-step"}


def test_a_family_of_few_items_is_not_left_out(opened: Opened) -> None:
    """One of two cannot be, so neither is, and the share is the usual one."""
    first, *others = opened.whole.crafted
    combiner = np.flatnonzero(members(first.hashes, opened.whole.data.splits, Split.COMBINER))
    dropped = combiner[MIN_JUDGED_ITEMS - 1 :]
    kept = np.setdiff1d(np.arange(len(first)), dropped)
    names = ("source", "hashes", "labels", "predictions", "clean", "attacked", "noise", "l2", "linf", "budgets")
    few = replace(first, **{name: getattr(first, name)[kept] for name in names})
    assert opened.scores(replace(opened.whole, crafted=(few, *others))) == {}


def test_the_choice_stands_in_the_bundle_and_where_it_is_inspected(tiny_bundle: Bundle) -> None:
    facts = tiny_bundle.manifest.provenance["fusion"]
    assert set(facts["left_out"]) == set(facts["left_out_usual"]) == {"high-confidence", "single-step"}
    assert min(facts["left_out"].values()) >= min(facts["left_out_usual"].values())
    text = " ".join(summarise(tiny_bundle).split())
    assert f"fusion {facts['alone_rate_share']:.0%} of the rate is kept for evidence that needs no attacks" in text


def test_heads_are_those_of_a_fit_and_leave_torchs_randomness_alone(opened: Opened) -> None:
    torch.manual_seed(5)
    before = torch.random.get_rng_state()
    first, second = opened.scores(), opened.scores()
    assert torch.equal(torch.random.get_rng_state(), before)
    for family, scores in first.items():
        np.testing.assert_array_equal(scores.judged.items, second[family].judged.items)
