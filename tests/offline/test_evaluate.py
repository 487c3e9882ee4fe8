"""`guard evaluate`: a family that is left out is really left out, what is finished is kept, and time is kept to."""

from __future__ import annotations

import io
import json
import re
import shutil
from collections import Counter
from collections.abc import Iterator
from copy import copy
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from rich.console import Console

import guard.offline.crafting.shard
import guard.offline.evidence.cache
import guard.offline.training.build
import guard.offline.training.calibrator
from guard.bundle import Bundle
from guard.errors import BundleError, DataError, ModelError
from guard.offline import evaluate as evaluating
from guard.offline.adversary.descent import METHODS
from guard.offline.adversary.runs import ITEM_PARTS
from guard.offline.attacks.methods.cw import Cw
from guard.offline.data.picture_shifts import PICTURE_SHIFTS
from guard.offline.evaluate import Wish, evaluate_bundle, forecast, prepared
from guard.offline.evaluation import measure as measuring
from guard.offline.evaluation.detector_rows import detector_rows
from guard.offline.evaluation.effort import MIN_PROOF_ITEMS, MIN_PROOF_STEPS, Size
from guard.offline.evaluation.left_out import families, refit_all, stays, unmade
from guard.offline.evaluation.left_out_guard import LeftOut
from guard.offline.evidence.batches import gather_all
from guard.offline.evidence.cache import EvidenceCache
from guard.offline.evidence.gather import Gather
from guard.offline.evidence.kinds.plain import ChannelAttribution, Latent
from guard.offline.findings.evaluation import AttackRow, Evaluation, UnrunRow
from guard.offline.findings.intervals import Rate
from guard.offline.job.suite import load_suite
from guard.offline.programs.opened_guard import OpenedGuard
from guard.offline.programs.read import read
from guard.offline.training.build import Prepared
from guard.offline.training.fit_heads import FittingItems
from guard.offline.training.reopen import Work
from guard.offline.work.progress import Stages
from guard.runtime import Runtime
from tests.offline import tiny
from tests.offline.interruption import interrupted_at
from tests.offline.worst_case import counted
from tests.spy import Call, spied


def quiet() -> Any:
    with Stages(Console(file=io.StringIO())).stage("nobody looks") as stage:
        return stage


@dataclass(frozen=True)
class Refitted:
    """The tiny bundle's guards without a family, and what fitting them was given."""

    bundle: Bundle
    whole: Prepared
    guards: tuple[LeftOut, ...]
    heads: list[Call]  # of fit_heads, fit_fusion and pool
    fusion: list[Call]
    pooled: list[Call]


@pytest.fixture(scope="module")
def refitted(tiny_bundle: Bundle, tmp_path_factory: pytest.TempPathFactory) -> Refitted:
    folder = tmp_path_factory.mktemp("refitted")
    copied(tiny_bundle, folder)
    bundle = Bundle.open(folder / "bundle")
    work = Work.beside(bundle)
    whole = prepared(work, bundle, quiet())
    with pytest.MonkeyPatch.context() as patch:
        heads = spied(patch, guard.offline.training.build, "fit_heads")
        fusion = spied(patch, guard.offline.training.calibrator, "fit_fusion")
        pooled = spied(patch, guard.offline.training.calibrator, "pool")
        guards = refit_all(work.job_of(bundle), lambda: whole, bundle, lambda text: None)
    return Refitted(bundle, whole, guards, heads, fusion, pooled)


def copied(bundle: Bundle, folder: Path) -> None:
    for name in ("bundle", "bundle.work"):
        shutil.copytree(bundle.path.with_name(name), folder / name)


@pytest.fixture(scope="module", autouse=True)
def small() -> Iterator[None]:
    """An evaluation of seconds, full or quick."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(evaluating, "FULL_ITEMS_AND_STEPS", (60, 8, 4))
        patch.setattr(evaluating, "QUICK_ITEMS_AND_STEPS", (40, 4, 2))
        yield


@pytest.fixture
def bundle(refitted: Refitted, tmp_path: Path) -> Bundle:
    """A copy with a work directory of its own."""
    copied(refitted.bundle, tmp_path)
    return Bundle.open(tmp_path / "bundle")


@pytest.fixture
def data(tmp_path: Path) -> Path:
    return fresh_data(tmp_path)


def fresh_data(folder: Path) -> Path:
    return tiny.write_data(folder / "fresh.npz", items=150, seed=91)


def run(bundle: Bundle, data: Path, **settings: Any) -> tuple[Evaluation, str]:
    """The evaluation, and what it said meanwhile."""
    console = Console(file=io.StringIO(), width=200)
    found = evaluate_bundle(bundle, data, data.parent / "report", Wish(**settings), Stages(console))
    assert isinstance(console.file, io.StringIO)
    return found, console.file.getvalue()


def items(images: Any) -> set[bytes]:
    return {np.ascontiguousarray(image).tobytes() for image in images}


# Left out.


def test_a_family_left_out_is_seen_by_nothing(refitted: Refitted) -> None:
    """Neither a head, nor the fusion, nor noise of its size: not one of its items reaches what is fitted."""
    crafted = refitted.whole.crafted
    assert [left.family for left in refitted.guards] == ["high-confidence", "single-step"]
    assert len(refitted.heads) == len(refitted.pooled) == 2
    seen = Counter(frozenset(call.given["attacked"].by) for call in refitted.fusion)
    for left, fitted, pooled in zip(refitted.guards, refitted.heads, refitted.pooled, strict=True):
        hidden = items(np.concatenate([c.attacked for c in crafted if c.family == left.family]))
        shown = items(np.concatenate([c.attacked for c in crafted if c.family != left.family]))
        noise = items(np.concatenate([c.noise for c in crafted if c.family != left.family]))
        hidden_noise = items(np.concatenate([c.noise for c in crafted if c.family == left.family]))
        learned: FittingItems = fitted.given["items"]
        given = items(learned.attacked.items)
        assert given
        assert given <= shown - hidden
        assert items(learned.noisy) & noise
        assert not items(learned.noisy) & (hidden_noise - noise - items(learned.clean.images))
        names = {c.attack for c in crafted if c.family != left.family}
        assert set(learned.attacked.by) == names
        assert seen[frozenset(names)] == len(left.cascade.programs), "one fusion a program, each of the others alone"
        assert {c.attack for c in pooled.given["crafted"]} == names
    assert seen.total() == sum(len(left.cascade.programs) for left in refitted.guards)


def test_what_learns_from_attacks_or_noise_is_another_and_the_rest_is_the_same(refitted: Refitted) -> None:
    """Noise is as large as the attacks: without a family `mahalanobis`, in whose metric it is, meets other noise."""
    served, images = Runtime.open(refitted.bundle), tiny.data(40, seed=92)[0]
    names = list(served.calibration.detectors)
    learned = [names.index(name) for name in ("saliency_classifier", "mahalanobis")]
    expected = read(served, images).scores
    for left in refitted.guards:
        found = read(left.cascade, images).scores
        same = [column for column in range(len(names)) if column not in learned]
        np.testing.assert_allclose(found[:, same], expected[:, same], rtol=1e-3, atol=1e-3)
        assert (np.abs(found[:, learned] - expected[:, learned]).max(axis=0) > 0.05).all()
        assert left.cascade.calibration.items == served.calibration.items


def test_one_family_alone_cannot_be_left_out() -> None:
    assert families(tiny.recipe()) == ("high-confidence", "single-step")
    assert families(replace(tiny.recipe(), attacks=tiny.recipe().attacks[:1])) == ()


def test_a_family_beside_which_nothing_is_left_to_learn_from_stays_and_that_is_said(
    refitted: Refitted, bundle: Bundle
) -> None:
    """FGSM fools the model on five items: without PGD no head can learn, without FGSM all is well."""
    work = Work.beside(bundle)
    job = work.job_of(bundle)
    for family in families(work.recipe):
        shutil.rmtree(work.directory.without(family))
    first, second = refitted.whole.crafted
    assert [str(one.family) for one in (first, second)] == ["high-confidence", "single-step"]
    along = ("source", "hashes", "labels", "predictions", "clean", "attacked", "noise", "l2", "linf", "budgets")
    few = replace(second, **{name: getattr(second, name)[:5] for name in along})
    prepared, asked = replace(refitted.whole, crafted=(first, few)), []
    for _ in range(2):
        guards = refit_all(job, lambda: asked.append(1) or prepared, bundle, lambda _: None)  # type: ignore[func-returns-value]
        assert [guard.family for guard in guards] == ["single-step"]
    assert asked == [1], "what cannot be is not tried again"
    assert unmade(work.recipe, work.directory, bundle) == ()
    (line,) = stays(work.recipe, work.directory, bundle)
    assert re.fullmatch(r"high-confidence is not left out: the other families .* [0-5] items .* it takes 20", line)


def test_remembered_evidence_is_gathered_once_and_is_the_items_own(
    tiny_subject: OpenedGuard, monkeypatch: pytest.MonkeyPatch
) -> None:
    needs = [need for ds in tiny_subject.programs.values() for d in ds for need in d.needs]
    gathered = spied(monkeypatch, guard.offline.evidence.cache, "gather_all")
    remembered, images = EvidenceCache(tiny_subject.classifier), tiny.data(30, seed=93)[0]
    mixed = np.concatenate([images[10:], images[5:6], images[5:6]])
    remembered(needs, images[:20])
    again = remembered(needs, mixed)
    assert [len(call.given["images"]) for call in gathered] == [20, 10]
    latent = Latent(tiny_subject.classifier.taps[0].name)
    other = remembered([*needs, latent, ChannelAttribution(latent.tap)], mixed)
    assert len(gathered) == 3
    assert set(gathered[-1].given["gather"].needs) == {ChannelAttribution(latent.tap)}, "only what is new is asked for"
    expected = gather_all(Gather(tiny_subject.classifier, needs), mixed)
    for need, value in expected.items():
        np.testing.assert_allclose(again[need].numpy(), value.numpy(), rtol=1e-3, atol=1e-5)
        assert torch.equal(other[need], again[need])
    assert {len(value) for value in remembered(needs, images[:0]).values()} == {0}


def test_only_guards_that_are_not_there_yet_are_foretold(bundle: Bundle, data: Path) -> None:
    work = Work.beside(bundle)
    assert unmade(work.recipe, work.directory, bundle) == ()
    shutil.rmtree(work.directory.without("single-step"))
    assert unmade(work.recipe, work.directory, bundle) == ("single-step",)
    held_out, _ = work.held_out(bundle, data)
    costs = forecast(bundle, work.subject(bundle), held_out, work, Wish().effort(work.directory), quick=False)
    assert "guards without a family, 1 of them" in costs


def test_data_that_was_exchanged_is_refused(bundle: Bundle, data: Path) -> None:
    work = Work.beside(bundle)
    shutil.rmtree(work.directory.without("single-step"))
    settings = json.loads(work.directory.job.read_text("utf-8"))
    other = tiny.write_data(data.with_name("other.npz"), seed=8)
    work.directory.job.write_text(json.dumps({**settings, "data": str(other)}), encoding="utf-8")
    with pytest.raises(DataError, match="no longer holds what the bundle was trained on"):
        run(bundle, data)
    assert not (data.parent / "report").exists()
    del settings["model"]
    work.directory.job.write_text(json.dumps(settings), encoding="utf-8")
    with pytest.raises(BundleError, match=r"job\.json lacks a setting"):
        Work.beside(bundle).job_of(bundle)


# The whole.


@dataclass(frozen=True)
class Evaluated:
    """One evaluation, quick or full, and where it was made."""

    bundle: Bundle
    data: Path
    found: Evaluation
    said: str

    @property
    def report(self) -> Path:
        return self.data.parent / "report"

    def again(self, **settings: Any) -> Evaluation:
        return run(self.bundle, self.data, **settings)[0]


@dataclass(frozen=True)
class Interrupted(Evaluated):
    """A full evaluation that was interrupted in its adaptive attack, and then ran again to its end."""

    fitted: tuple[int, int]  # guards that either run fitted
    attacked: tuple[int, int]  # shards that either run attacked
    first: dict[Path, int]  # runs of the adaptive attack that the first kept, and when they were written

    def runs(self) -> dict[Path, int]:
        return adaptive_runs(self.bundle)


def adaptive_runs(bundle: Bundle) -> dict[Path, int]:
    """The files of the adaptive attack by the time when they were written."""
    folder = bundle.path.with_name("bundle.work") / "adaptive"
    return {file: file.stat().st_mtime_ns for file in folder.glob("*.npz")}


@pytest.fixture(scope="module")
def evaluated(refitted: Refitted, tmp_path_factory: pytest.TempPathFactory) -> Interrupted:
    folder = tmp_path_factory.mktemp("evaluated")
    copied(refitted.bundle, folder)
    bundle, data = Bundle.open(folder / "bundle"), fresh_data(folder)
    shutil.rmtree(folder / "bundle.work" / "without-single-step")
    trained = adaptive_runs(bundle)  # for the report of the training
    with pytest.MonkeyPatch.context() as patch:
        shards = spied(patch, guard.offline.crafting.shard, "attack_shard")
        heads = spied(patch, guard.offline.training.build, "fit_heads")
        with interrupted_at(ITEM_PARTS + 2, folder="adaptive"):
            run(bundle, data)
        assert not (folder / "report").exists()
        first = {file: when for file, when in adaptive_runs(bundle).items() if file not in trained}
        fitted, attacked = len(heads), len(shards)
        found, said = run(bundle, data)
        counts = ((fitted, len(heads) - fitted), (attacked, len(shards) - attacked))
    return Interrupted(bundle, data, found, said, *counts, first)


def test_an_interrupted_evaluation_goes_on_where_it_was(evaluated: Interrupted, refitted: Refitted) -> None:
    parts = ITEM_PARTS * len(METHODS) * 3  # the guard and two detectors
    assert evaluated.fitted == (1, 0)
    assert evaluated.attacked[0] > evaluated.attacked[1] == 0
    assert ITEM_PARTS < len(evaluated.first) < parts
    runs = evaluated.runs()
    checks = {file for file in runs if file.name.startswith("guard_at_0.05-")}
    assert len(runs) == parts + len(checks) + len(adaptive_runs(refitted.bundle))
    assert 4 <= len(checks) <= 14, "two items: more steps, a larger budget, and five restarts of what is left"
    assert evaluated.first.items() <= runs.items(), "no part that was finished is repeated"
    assert repr(evaluated.again()) == repr(evaluated.found), "and a third time nothing changes"
    assert evaluated.runs() == runs
    assert "together about" in evaluated.said


def test_the_report_has_every_column(evaluated: Interrupted) -> None:
    found = evaluated.found
    assert {row.label: row.left_out is not None for row in found.attacks} == {
        "pgd L∞ 4/16": True,
        "fgsm L∞ 4/16": True,
        "pgd L2 1.5": True,
    }
    assert [row.setting for row in found.attacks] == ["seen", "seen", "never seen"]
    assert [p.reason is None for p in found.promises] == [False, evaluated.bundle.calibration.items >= 99, True]
    assert [row.family for row in found.left_out] == ["high-confidence", "single-step"]
    assert found.left_out[0].fitted_on == ("fgsm L∞ 4/16",)
    assert {row.name for row in found.clean} >= {"clean", "noise of the attacks' sizes", "off-grid clean"}
    clean = found.clean[0]
    low, high = clean.bands[0.05]
    alarms = clean.alarms[0.05]
    assert alarms is not None
    assert low <= alarms.count <= high
    (adaptive,) = found.adaptive
    assert {proof.detector for proof in adaptive.proof} == {"kernel_density", "feature_squeezing"}
    assert adaptive.target == 0.05
    assert adaptive.static is not None
    assert adaptive.static.fooled.items == adaptive.fooled.items
    assert 0 < adaptive.static.fooled.count <= adaptive.fooled.count, "it starts from there"
    assert adaptive.static.passed_reject.count <= adaptive.passed_reject.count
    assert [row.what for row in adaptive.strength] == ["10 times the steps", "5 more restarts", "a budget of 8/16"]
    assert {row.base.items for row in adaptive.strength} == {2}, "a fifth of eight items"
    raw = json.loads((evaluated.report / "report.json").read_text("utf-8"))
    assert raw["attacks"][0]["left_out"]["caught"]["0.05"]["items"] == raw["attacks"][0]["success"]["count"]
    assert "guards without a family" not in evaluated.said, "they are there already"


SUITE = """
description = "A range of budgets, one that the recipe has, and one that nobody can run."
[[attack]]
name = "fgsm"
budget = [0.0625, 0.25]
[[attack]]
name = "pgd"
budget = 0.25
steps = 8
[[attack]]
name = "cw"
searches = 1
steps = 1
"""


def test_a_suite_has_rows_of_its_own(bundle: Bundle, data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What the recipe has is measured once, what cannot be run is a row that says why, and sizes are kept."""

    def unable(self: Any, model: Any, *_: Any) -> Any:
        raise ModelError("this attack asks for what the model does not tell")

    monkeypatch.setattr(Cw, "__call__", unable)
    file = data.with_name("mine.toml")
    file.write_text(SUITE, encoding="utf-8")
    asked: dict[str, Any] = {"suite": load_suite(str(file)), "suite_minutes": 0.05, "quick": True}
    found, said = run(bundle, data, **asked)
    assert found.suite is not None
    fgsm, pgd, cw = found.suite.rows
    assert isinstance(fgsm, AttackRow)
    assert (fgsm.label, fgsm.setting) == ("fgsm L∞ 1 to 4/16", "never seen")
    assert fgsm.success.items == fgsm.tried > 0
    assert len(fgsm.curve) > 1
    assert sum(part.success.items for part in fgsm.curve) == fgsm.tried
    assert sum(part.success.count for part in fgsm.curve) == fgsm.success.count
    assert repr(pgd) == repr(found.attacks[0]), "the very row of the recipe's attack"
    assert isinstance(cw, UnrunRow)
    assert "what the model does not tell" in cw.reason
    assert [row.label for row in found.every_attack] == [*(row.label for row in found.attacks), fgsm.label]
    assert "cannot be run, so it counts as failed" in said
    assert "suite mine, 0.05 min" in said
    again, silent = run(bundle, data, **asked)
    assert repr(again) == repr(found)
    assert "suite mine, 0.05 min" not in silent, "sizes are kept to"
    page = (data.parent / "report" / "report.html").read_text("utf-8")
    assert "The suite mine" in page
    assert "Detection over the budget" in page
    assert "could not be run" in page


@dataclass(frozen=True)
class Quick(Evaluated):
    """A quick evaluation, and how its worst case was made."""

    worst: Call


@pytest.fixture(scope="module")
def quick(refitted: Refitted, tmp_path_factory: pytest.TempPathFactory) -> Quick:
    folder = tmp_path_factory.mktemp("quick")
    copied(refitted.bundle, folder)
    bundle, data = Bundle.open(folder / "bundle"), fresh_data(folder)
    with pytest.MonkeyPatch.context() as patch:
        worst = spied(patch, measuring, "worst_of")
        found, said = run(bundle, data, quick=True)
    (judged,) = worst
    return Quick(bundle, data, found, said, judged)


def test_the_worst_case_is_counted_exactly(quick: Quick) -> None:
    """From the outcomes of every attack of the recipe, those that its rows count; test_attack_rows has made-up ones."""
    found, fates = quick.found, quick.worst.given["fates"]
    assert list(fates) == [row.label for row in found.attacks]
    assert found.worst == counted(fates, found.promises, found.reject_rate)
    assert found.worst.bare.items > 20
    for row, fate in zip(found.attacks, fates.values(), strict=True):
        assert row.success == Rate.of(fate.wrong)
        assert row.served.handled[found.reject_rate] == Rate.of(fate.handled(found.reject_rate))
        assert (row.tried, row.robust_accuracy) == (len(fate.hashes), Rate.of(fate.handled(found.reject_rate)))


def test_shifts_and_classes_are_there(quick: Quick) -> None:
    """And a second run gives the same page, byte for byte, whatever the speed of the day was."""
    found, said = quick.found, quick.said
    names = [row.name for row in found.clean if row.accuracy is not None]
    assert names == [shift.name for shift in PICTURE_SHIFTS]
    (count,) = {row.accuracy.items for row in found.clean if row.accuracy is not None}
    assert 100 <= count <= 150
    assert f"9 shifts of {count} items" in said
    assert sum(row.accuracy.items for row in found.classes[:2]) == found.accuracy.items
    assert sum(row.accuracy.items for row in found.classes[2:]) == found.accuracy.items
    for row in found.attacks:
        assert set(row.served.alone) == set(quick.bundle.calibration.detectors)
        passing, handled = row.served.passing[0.05], row.served.handled[0.05]
        assert passing is not None
        assert handled is not None
        caught = row.served.caught[0.05]
        assert caught is not None
        assert handled.count == row.tried - row.success.count + caught.count
    assert found.exhibit is not None
    assert len(found.exhibit.specimens) == 6
    first = (quick.report / "report.html").read_bytes()
    assert b"data:image/png" in first
    quick.again(quick=True)
    assert (quick.report / "report.html").read_bytes() == first


def test_quick_leaves_no_family_out(quick: Quick) -> None:
    assert quick.found.left_out == ()
    assert all(row.left_out is None for row in quick.found.attacks)
    assert all(row.strength == () for row in quick.found.adaptive)
    assert any("get further is not asked" in text for text in quick.found.cuts)


def test_where_time_is_short_the_adaptive_attack_shrinks_and_stays(bundle: Bundle, data: Path) -> None:
    found, said = run(bundle, data, minutes=0.001)
    (adaptive,) = found.adaptive
    assert adaptive.fooled.items == 8
    assert "will be made smaller" in said


def test_more_items_of_the_adaptive_attack_can_be_asked_for(bundle: Bundle) -> None:
    work = Work.beside(bundle).directory
    assert [Wish(adaptive_items=n).effort(work).adaptive_items for n in (None, 200)] == [8, 200]
    assert Wish(adaptive_items=200).effort(work).checked
    (text,) = Wish(quick=True, adaptive_items=7).cuts
    assert "the adaptive one on 7 for 2 steps" in text


@pytest.mark.parametrize("seconds", [-5.0, 0.0, 1.0, 40.0, 300.0, 1e9])
def test_sizes(seconds: float) -> None:
    """It fits if it can, never falls below the fewest, and never exceeds what was wanted."""
    wanted = Size(50, 100)
    found = wanted.shrunk(seconds, 0.02)
    assert MIN_PROOF_ITEMS <= found.items <= 50
    assert MIN_PROOF_STEPS <= found.steps <= 100
    fits = found.items * (found.steps + 1) * 0.02 <= seconds
    assert fits or found == Size(MIN_PROOF_ITEMS, MIN_PROOF_STEPS)
    if seconds > 1e6:
        assert found == wanted


def test_items_are_kept_before_steps_and_steps_before_too_few_items() -> None:
    wanted = Size(50, 100)
    assert wanted.shrunk(50 * 81 * 0.02, 0.02) == Size(50, 80)
    assert wanted.shrunk(40 * 61 * 0.02, 0.02) == Size(40, 60)
    assert wanted.shrunk(30 * 41 * 0.02, 0.02) == Size(30, 40)
    assert Size(8, 5).shrunk(0.0, 1.0) == Size(8, 5)


def test_the_identity_of_a_guard_is_what_decides_and_not_its_report(bundle: Bundle) -> None:
    before = bundle.identity
    (bundle.path / "report.html").write_text("another", encoding="utf-8")
    assert bundle.identity == before
    file = bundle.path / "calibration.npz"
    file.write_bytes(file.read_bytes() + b" ")
    assert bundle.identity != before


def test_costs_count_shared_evidence_once(tiny_subject: OpenedGuard) -> None:
    rows = {row.name: row for row in detector_rows(tiny_subject.programs)}
    assert (rows["mahalanobis"].forwards, rows["mahalanobis"].own) == (0, 0)
    assert (rows["saliency_classifier"].forwards, rows["saliency_classifier"].own) == (1, 1)
    assert (rows["feature_squeezing"].rows, rows["feature_squeezing"].own) == (2, 2)
    twice = {"interpret": [copy(d) for d in tiny_subject.programs["interpret"] for _ in range(2)]}
    assert all(row.own == 0 for row in detector_rows(twice))
