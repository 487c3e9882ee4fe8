"""A guard whose detectors were chosen within a limit of forwards: trained, summarised, reopened and left out of."""

from __future__ import annotations

import io
import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from rich.console import Console

import guard.offline.evaluation.left_out as left_out
import guard.offline.train as training
import guard.offline.training.candidates as choosing
from guard.bundle import Bundle
from guard.errors import ConfigError, DataError
from guard.offline.crafting.crafted_set import CraftedSet
from guard.offline.crafting.stage import craft_all
from guard.offline.data.splits import Split
from guard.offline.evaluation.left_out import refit
from guard.offline.evidence.cache import EvidenceCache
from guard.offline.findings.evaluation import LeftOutRow
from guard.offline.job.job import Job, open_job
from guard.offline.job.recipe import parse
from guard.offline.train import train
from guard.offline.training.build import Prepared
from guard.offline.training.candidates import candidates_of, check_cost, columns, rounds, with_chosen
from guard.offline.training.reopen import Work
from guard.offline.work.directory import WorkDirectory
from guard.offline.work.progress import Stages
from guard.summary import summarise
from tests.offline import tiny
from tests.once import once
from tests.spy import spied

RECIPE: dict[str, Any] = {**tiny.RECIPE, "cascade": False}
LIMIT = 3.0
SQUEEZERS = [{"name": "bit_depth", "bits": 2}, {"name": "median", "window": 2}]


def job_in(folder: Path, **changes: Any) -> Job:
    small = {"craft_items": 200, "attack_items": 40, "adaptive_items": 2, "adaptive_steps": 1, "threads": 1}
    return tiny.job(folder, recipe=parse(RECIPE, "tiny"), cost=LIMIT, **{**small, **changes})


def quiet() -> Any:
    return type("Quiet", (), {"items": lambda *_: None, "say": lambda *_: None, "note": lambda *_: None})()


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Job:
    def make(folder: Path) -> None:
        words = io.StringIO()
        train(job_in(folder), Stages(Console(file=words, width=200)))
        (folder / "words.txt").write_text(words.getvalue(), "utf-8")

    return job_in(once(tmp_path_factory, "chosen", make))


def test_candidates_are_the_recipes_detectors_and_fewer_squeezers_of_each() -> None:
    found = candidates_of(parse(RECIPE, "tiny"), ["a", "b"])
    assert [one.text for one in found] == [
        "mahalanobis",
        "kernel_density",
        "saliency_classifier",
        "feature_squeezing (BitDepth(bits=2), Median(window=2))",
        "feature_squeezing (BitDepth(bits=2))",
        "feature_squeezing (Median(window=2))",
    ]
    summary = {"name": "summary_classifier", "program": "interpret", "squeezers": SQUEEZERS}
    texts = [one.text for one in candidates_of(parse({"detector": [summary]}, "mine"), ["a"])]
    assert texts[-1] == "summary_classifier (Median(window=2), gradient = false)"
    assert len(texts) == 6
    assert rounds(found) == [[0, 1, 2, 3], [4], [5]], "heads go by name"


def test_the_bundle_has_the_chosen_detectors_and_says_so(trained: Job) -> None:
    bundle = Bundle.open(trained.out)
    (program,) = bundle.manifest.programs
    choice = bundle.manifest.provenance["choice"]
    assert program.floor == choice["chosen"]["forwards"] <= LIMIT
    assert [text.split(" ")[0] for text in choice["chosen"]["detectors"]] == list(program.detectors)
    assert [block["name"] for block in bundle.manifest.recipe["detector"]] == list(program.detectors)
    text, words = " ".join(summarise(bundle).split()), (trained.out.parent / "words.txt").read_text("utf-8")
    assert f"chosen for {LIMIT:g} forwards at most: {program.floor:.3g} forwards" in text
    assert "choose detectors" in words
    assert "worst left out" in words
    assert len(choice["frontier"]) >= 1


def test_it_is_reopened_with_the_detectors_that_it_has(trained: Job) -> None:
    bundle = Bundle.open(trained.out)
    subject = Work.beside(bundle).subject(bundle)
    images = torch.from_numpy(tiny.data(24, seed=22)[0])
    served = subject.cascade.read(bundle.manifest.model.input.box.from_unit(images.numpy()))
    with torch.no_grad():
        ours = subject.joint().scores(subject.joint().evidence(images)).numpy()
    np.testing.assert_allclose(served.scores, ours, rtol=1e-3, atol=1e-3)


def test_a_guard_without_the_only_other_family_takes_the_served_detectors_and_says_so(
    trained: Job, monkeypatch: pytest.MonkeyPatch
) -> None:
    bundle = Bundle.open(trained.out)
    job = Work.beside(bundle).job_of(bundle)
    assert job.cost == LIMIT
    assert len(job.recipe.detectors) == len(RECIPE["detector"]), "a left-out guard chooses among all candidates"
    classifier, data = open_job(job)
    prepared = Prepared(classifier, data, craft_all(job, classifier, data, quiet()))
    found = refit(job, prepared, "single-step", bundle, EvidenceCache(classifier), lambda _: None)
    assert [one.name for one in found.manifest.detectors] == [one.name for one in bundle.manifest.detectors]
    assert found.manifest.provenance["choice"] == {}
    monkeypatch.setattr(left_out, "reopened", lambda *_: found)
    monkeypatch.setattr(Bundle, "open", lambda _: found)
    (one, *_) = left_out.refit_all(job, lambda: prepared, bundle, lambda _: None)
    assert one.served_detectors
    row = LeftOutRow(one.family, one.fitted_on, one.identity, {}, one.served_detectors)
    assert "the served ones, which were chosen with this family" in row.note
    assert not replace(row, served_detectors=False).note


def few_of(crafted: CraftedSet, items: int) -> CraftedSet:
    """The crafted set as if the attack fooled the model on so few items."""
    along = ("source", "hashes", "labels", "predictions", "clean", "attacked", "noise", "l2", "linf", "budgets")
    return replace(crafted, **{name: getattr(crafted, name)[:items] for name in along})


def test_a_family_of_few_items_is_learned_from_and_judges_nothing(
    trained: Job, monkeypatch: pytest.MonkeyPatch
) -> None:
    bundle = Bundle.open(trained.out)
    job = Work.beside(bundle).job_of(bundle)
    classifier, data = open_job(job)
    first, second = craft_all(job, classifier, data, quiet())
    few = Prepared(classifier, data, (first, few_of(second, 5)))
    remembered = EvidenceCache(classifier)
    with pytest.raises(DataError, match="of 2 no 2 have 20 items"):
        with_chosen(job, few, remembered, lambda _: None)
    rare = replace(few_of(second, 5), family="spatial")
    fits = spied(monkeypatch, choosing, "scores_without")
    _, chosen = with_chosen(job, replace(few, crafted=(first, second, rare)), remembered, lambda _: None)
    assert chosen is not None
    assert [call.given["family"] for call in fits] == ["high-confidence", "single-step"]
    assert [one.family for one in chosen.left_out] == ["high-confidence", "single-step"]


def test_a_cascade_from_before_there_was_one_program_is_reopened_as_it_is(
    tiny_job: Job, tiny_bundle: Bundle, tmp_path: Path
) -> None:
    work = WorkDirectory(shutil.copytree(tiny_job.work.path, tmp_path / "old.work"))
    settings = json.loads(work.job.read_text("utf-8"))
    del settings["recipe"]["raw"]["cascade"]
    work.job.write_text(json.dumps(settings), "utf-8")
    subject = Work.beside(tiny_bundle, work.path).subject(tiny_bundle)
    assert list(subject.programs) == [program.name for program in tiny_bundle.manifest.programs]
    assert len(subject.programs) == 2


def test_heads_without_a_family_are_fitted_once_for_detectors_and_share(
    trained: Job, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In a cascade whose recipe names the second program's detectors first, scores go by the programs' order."""
    bundle = Bundle.open(trained.out)
    turned = parse({**RECIPE, "cascade": True, "detector": RECIPE["detector"][::-1]}, "turned")
    job = replace(Work.beside(bundle).job_of(bundle), recipe=turned)
    classifier, data = open_job(job)
    prepared = Prepared(classifier, data, craft_all(job, classifier, data, quiet()))
    monkeypatch.setattr(training, "left_out_scores", lambda *_: pytest.fail("fitted once more"))
    fits = spied(monkeypatch, choosing, "scores_without")
    job, heads, choice, left_out = training.choose_and_fit(job, prepared, Stages(Console(file=io.StringIO())))
    assert choice is not None
    families = [call.given["family"] for call in fits]
    assert families == [one.family for one in left_out] == ["high-confidence", "single-step"]
    served = [detector.name for detectors in prepared.programs(job).values() for detector in detectors]
    clean = data.part(Split.COMBINER).images[:]
    expected = columns([heads[name] for name in served], clean, EvidenceCache(classifier))
    alike = [place for place, name in enumerate(served) if name in ("kernel_density", "feature_squeezing")]
    assert alike
    for one in left_out:
        assert one.clean.shape[1] == len(served) < len(candidates_of(turned, ["a"]))
        np.testing.assert_allclose(one.clean[:, alike], expected[:, alike], rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"cost": 0.5}, "--cost 0.5: a guard runs the model's forward once"),
        ({"recipe": parse({**RECIPE, "attack": RECIPE["attack"][:1]}, "one")}, "recipe one has 1"),
    ],
)
def test_a_limit_that_nothing_can_be_chosen_by_is_refused(tmp_path: Path, changes: dict[str, Any], words: str) -> None:
    settings = {"recipe": parse(RECIPE, "tiny"), "cost": LIMIT, **changes}
    with pytest.raises(ConfigError, match=words):
        check_cost(tiny.job(tmp_path, **settings))
