"""A second network that the guard trains: once, resumably, on nothing that the guard is calibrated on."""

from __future__ import annotations

import io
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from rich.console import Console
from torch import Tensor

from guard.bundle import Bundle
from guard.errors import ConfigError, DataError, ModelError
from guard.offline.adversary.excess import without_gradient
from guard.offline.data.dataset import Dataset
from guard.offline.data.splits import Split
from guard.offline.evaluate import Wish, evaluate_bundle
from guard.offline.evaluation.left_out import refit
from guard.offline.evidence.cache import EvidenceCache
from guard.offline.evidence.kinds.second import networks_of
from guard.offline.job.job import Job, open_job
from guard.offline.job.recipe import parse
from guard.offline.networks.learner import Learner
from guard.offline.second import training as second_training
from guard.offline.second.asked import find_asked
from guard.offline.second.lessons import divided, read_lessons
from guard.offline.second.training import Training
from guard.offline.second.verifier_check import Held, check_verifier
from guard.offline.train import train
from guard.offline.training.build import Prepared
from guard.offline.training.reopen import Work
from guard.offline.work.progress import Stages
from guard.summary import summarise
from tests.offline import tiny
from tests.offline.second.test_brought import RECIPE
from tests.once import once

SECOND = {"kind": "robust_verifier", "natural_epochs": 1, "robust_epochs": 1, "budget": 0.02, "forwards": 0.5}


class Stopped(Exception):
    """What ends a training between two epochs."""


@pytest.fixture
def epochs(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The epochs that are learned from now on; the third ends the training where it is asked to."""
    found: list[int] = []
    learn = Learner.epoch

    def epoch(self: Learner) -> float:
        found.append(self.done_epochs)
        return learn(self)

    monkeypatch.setattr(Learner, "epoch", epoch)
    return found


def job_in(folder: Path, **changes: Any) -> Job:
    data = folder / "training.npz"
    if not data.exists():
        tiny.write_data(data, 1500, seed=21)
    recipe = parse({**RECIPE, "second": SECOND}, "tiny")
    small = {"craft_items": 60, "attack_items": 40, "adaptive_items": 2, "adaptive_steps": 1, "threads": 1}
    return tiny.job(folder, recipe=recipe, second_data=data, **{**small, **changes})


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Job:
    silent = Stages(Console(file=io.StringIO()))
    return job_in(once(tmp_path_factory, "second", lambda folder: train(job_in(folder), silent)))


def test_it_is_in_the_bundle_and_says_what_it_is(trained: Job) -> None:
    bundle = Bundle.open(trained.out)
    (screen,) = bundle.manifest.programs
    assert screen.detectors == ("mahalanobis", "second_opinion", "second_entropy")
    assert screen.forwards > 0
    assert screen.floor == 1 + screen.forwards
    text = " ".join(summarise(bundle).split())
    assert "second: robust_verifier, trained on 1,350 items" in text
    assert "no wrong class rises on" in text
    assert f"{screen.forwards:.2g} of other networks" in text
    assert "Second network second: robust_verifier" in (trained.out / "report.html").read_text("utf-8")


def test_an_attacker_opens_it_again_and_can_follow_every_score(trained: Job) -> None:
    bundle = Bundle.open(trained.out)
    subject = Work.beside(bundle).subject(bundle)
    images = torch.from_numpy(tiny.data(24, seed=22)[0])
    assert without_gradient(subject.joint(), images) == ()
    served = subject.cascade.read(bundle.manifest.model.input.box.from_unit(images.numpy()))
    with torch.no_grad():
        ours = subject.joint().scores(subject.joint().evidence(images)).numpy()
    np.testing.assert_allclose(served.scores, ours, rtol=1e-3, atol=1e-3)


def test_an_attacker_with_other_weights_is_a_row_of_the_report(trained: Job, tmp_path: Path) -> None:
    """The guarded model in the place of the second network; the guard's own network is refused."""
    bundle = Bundle.open(trained.out)
    fresh = tiny.write_data(tmp_path / "fresh.npz", 60, seed=31)
    silent = Stages(Console(file=io.StringIO()))
    wish = Wish(quick=True, minutes=0.0, adaptive_items=2, grey_second="tests.offline.tiny:image_model")
    (row,) = evaluate_bundle(bundle, fresh, tmp_path / "report", wish, silent).adaptive
    assert row.grey is not None
    assert row.static is not None
    assert row.grey.fooled.items == row.static.fooled.items == row.fooled.items
    with pytest.raises(ConfigError, match="second has the guard's own weights"):
        evaluate_bundle(bundle, fresh, tmp_path / "other", replace(wish, grey_second=str(trained.out)), silent)


def test_a_guard_without_a_family_asks_the_same_network_and_trains_none(trained: Job, epochs: list[int]) -> None:
    bundle = Bundle.open(trained.out)
    work = Work.beside(bundle)
    job = work.job_of(bundle)
    assert job.second_data == trained.second_data.resolve()
    classifier, data = open_job(job)

    def prepared() -> Prepared:
        from guard.offline.crafting.stage import craft_all

        stage: Any = type("Quiet", (), {"items": lambda *_: None, "say": lambda *_: None, "note": lambda *_: None})()
        return Prepared(classifier, data, craft_all(job, classifier, data, stage))

    found = refit(job, prepared(), "single-step", bundle, EvidenceCache(classifier), lambda _: None)
    (asked,) = networks_of(need for d in work.subject(bundle).detectors for need in d.needs)
    (second,) = (one for one in found.manifest.detectors if one.name == "second_entropy")
    assert [need.expression for need in second.needs] == [f"SecondLogits(network={asked!r})"]
    assert epochs == []


def test_training_that_was_stopped_goes_on_and_is_done_once(trained: Job, tmp_path: Path, epochs: list[int]) -> None:
    """Stopped after one epoch it ends with the weights of a training that was not stopped, and is then found again."""
    for name in ("model.pt2", "data.npz", "training.npz"):
        (tmp_path / name).symlink_to(trained.out.parent / name)
    job = job_in(tmp_path)
    shutil.copytree(trained.work.choices.folder, job.work.choices.folder)  # speeds are measured anew otherwise
    classifier, data = open_job(job)
    said: list[str] = []

    def stop(text: str) -> None:
        said.append(text)
        if text.startswith("epoch 1 of"):
            raise Stopped

    def run(say: Any) -> Any:
        asked = find_asked(job, classifier, data, lambda *_: None)
        return asked.trained(classifier, data, say, lambda *_: None).recipe.detectors[1]["networks"][0]

    with pytest.raises(Stopped):
        run(stop)
    found = run(said.append)
    bundle = Bundle.open(trained.out)
    (whole,) = networks_of(need for d in Work.beside(bundle).subject(bundle).detectors for need in d.needs)
    assert found.digest == whole.digest
    assert epochs == list(range(len(epochs))), "each epoch once"
    assert any("going on after epoch 1" in text for text in said)
    assert run(said.append).digest == whole.digest
    assert epochs == list(range(len(epochs)))


def test_what_the_guard_is_calibrated_on_is_not_learned(trained: Job, tmp_path: Path) -> None:
    classifier, data = open_job(trained)
    found = read_lessons(replace(trained, second_data=trained.data), classifier, data)
    heads = len(data.part(Split.HEADS))
    assert found.taken_out == len(data) - heads
    assert len(found.learned) + len(found.held_out) == heads
    assert f"; {found.taken_out:,} were taken out" in found.in_words
    assert not set(found.learned.hashes) & set(found.held_out.hashes)
    few = tiny.write_data(tmp_path / "few.npz", 50, seed=23)
    images, labels = tiny.data(300, seed=24)
    np.savez(tmp_path / "more.npz", images=images, labels=labels + 1)
    np.savez(tmp_path / "other.npz", images=images.repeat(2, axis=2), labels=labels)
    for file, words in (
        (few, "50 items are left to learn from"),
        (tmp_path / "more.npz", "label 3"),
        (tmp_path / "other.npz", "shape"),
    ):
        with pytest.raises(DataError, match=words):
            read_lessons(replace(trained, second_data=file), classifier, data)


def in_order_of_class(folder: Path) -> tuple[Path, Path]:
    """The same items twice: as they were drawn, and as a folder of class folders gives them."""
    images, labels = tiny.data(1500, seed=21)
    order = np.argsort(labels, kind="stable")
    files = folder / "drawn.npz", folder / "sorted.npz"
    np.savez(files[0], images=images, labels=labels)
    np.savez(files[1], images=images[order], labels=labels[order])
    return files


def test_what_is_learned_depends_on_no_order_of_the_file(trained: Job, tmp_path: Path) -> None:
    """Of a file that is sorted by class the first items would be of one class."""
    classifier, data = open_job(trained)
    found = [read_lessons(replace(trained, second_data=file), classifier, data) for file in in_order_of_class(tmp_path)]
    for part in ("learned", "held_out"):
        assert getattr(found[0], part).hashes.tolist() == getattr(found[1], part).hashes.tolist()
        assert set(getattr(found[1], part).labels[:30].tolist()) == set(range(tiny.CLASSES))
    trainings = [Training(trained, classifier, lessons) for lessons in found]
    assert trainings[0].mirror == trainings[1].mirror
    assert trainings[0].key == trainings[1].key


def test_whether_mirrored_items_keep_their_labels_is_asked_of_all_classes(trained: Job, tmp_path: Path) -> None:
    """The model is right on mirrored items of the class that comes first in a file, and of no other."""
    classifier, data = open_job(trained)
    _, file = in_order_of_class(tmp_path)
    lessons = read_lessons(replace(trained, second_data=file), classifier, data)
    straight = {image.tobytes(): label for image, label in zip(*arrays_of(lessons.held_out), strict=True)}

    def answer(images: Tensor) -> Tensor:
        numbers = [straight.get(np.ascontiguousarray(image).tobytes(), 0) for image in images.numpy()]
        return torch.nn.functional.one_hot(torch.tensor(numbers), tiny.CLASSES).float()

    training = Training(trained, replace(classifier, graph=answer), lessons)  # type: ignore[arg-type]
    assert not training.mirror


def arrays_of(items: Dataset) -> tuple[Any, Any]:
    return items.images[:], items.labels.tolist()


def test_evaluation_takes_nothing_that_a_second_network_learned(trained: Job, tmp_path: Path) -> None:
    bundle = Bundle.open(trained.out)
    work = Work.beside(bundle)
    with pytest.raises(DataError, match="or a second network learned from it"):
        work.held_out(bundle, trained.second_data)
    learned, labels = tiny.data(1500, seed=21)
    fresh, others = tiny.data(60, seed=31)
    order = np.argsort(labels[:40], kind="stable")
    images, labels = np.concatenate([learned[:40][order], fresh]), np.concatenate([labels[:40][order], others])
    np.savez(tmp_path / "some.npz", images=images, labels=labels)
    held_out, aside = work.held_out(bundle, tmp_path / "some.npz")
    assert (len(held_out), aside.fitted, aside.learned) == (60, 0, 40)
    assert str(aside) == "put aside 40 items that a second network learned from"
    assert held_out.hashes.tolist() == sorted(held_out.hashes.tolist())


def test_evaluation_depends_on_no_order_of_the_file(trained: Job, tmp_path: Path) -> None:
    bundle = Bundle.open(trained.out)
    images, labels = tiny.data(300, seed=32)
    order = np.argsort(labels, kind="stable")
    found = []
    for name, places in (("drawn", slice(None)), ("sorted", order)):
        np.savez(tmp_path / f"{name}.npz", images=images[places], labels=labels[places])
        found.append(Work.beside(bundle).held_out(bundle, tmp_path / f"{name}.npz")[0])
    assert found[0].hashes.tolist() == found[1].hashes.tolist()
    assert found[0].images[:].tobytes() == found[1].images[:].tobytes()
    assert set(found[1].labels[:30].tolist()) == set(range(tiny.CLASSES))


def test_copies_of_an_item_are_all_learned_or_all_judged_on() -> None:
    """Twenty copies of the item whose hash is the first: some are held out all the same."""
    hashes = np.asarray(["0" * 64] * 20 + [f"{place:064x}" for place in range(1, 101)])
    items = Dataset(np.zeros((120, 1, 2, 2), np.float32), np.zeros(120, np.int64), hashes)
    learned, held_out = divided(items)
    assert len(set(held_out.hashes)) == 10
    assert len(learned) + len(held_out) == 120
    assert not set(learned.hashes) & set(held_out.hashes)


def test_copies_of_few_items_are_few(trained: Job, tmp_path: Path) -> None:
    classifier, data = open_job(trained)
    images, labels = tiny.data(50, seed=23)
    np.savez(tmp_path / "copies.npz", images=np.repeat(images, 4, axis=0), labels=np.repeat(labels, 4))
    with pytest.raises(DataError, match="50 items are left to learn from, and 150 copies of them"):
        read_lessons(replace(trained, second_data=tmp_path / "copies.npz"), classifier, data)


def test_what_is_odd_about_the_training_data_is_said_or_refused(trained: Job, tmp_path: Path) -> None:
    classifier, data = open_job(trained)
    images, labels = tiny.data(300, seed=24)

    def asked(name: str, **arrays: Any) -> str:
        said: list[str] = []
        np.savez(tmp_path / f"{name}.npz", **arrays)
        job = replace(trained, second_data=tmp_path / f"{name}.npz")
        find_asked(job, classifier, data, lambda about, text: said.append(f"{about} {text}"))
        return "\n".join(said)

    with pytest.raises(DataError, match=r"moved.npz: .*with labels - 1 it would be"):
        asked("moved", images=images, labels=(labels + 1) % tiny.CLASSES)
    keep = labels != 2
    assert "second classes without items: 2" in asked("few", images=images[keep], labels=labels[keep])
    twice = asked("twice", images=np.concatenate([images, images[:1]]), labels=np.append(labels, (labels[0] + 1) % 3))
    assert "second 1 items are copies with another label" in twice
    assert "second of these items the model is right on" in twice


def test_a_network_that_hides_from_one_step_is_refused() -> None:
    """A wrong class's logit has its peak half-way: one step of the whole budget goes past it, small steps do not."""
    budget, items = 0.1, torch.full((40, 64), 0.5)

    def hiding(x: Tensor) -> Tensor:
        away = (x - 0.5).mean(dim=1) / budget
        return torch.stack([torch.zeros_like(away), 0.5 - 40 * (away - 0.4).square()], dim=1)

    labels = torch.zeros(40, dtype=torch.int64)
    with pytest.raises(ModelError, match=r"no wrong class rises on \d+% of 40 items by one step, on 0% by 50"):
        check_verifier(hiding, items, labels, budget, 50, seed=0)
    honest = check_verifier(
        lambda x: torch.stack([x[:, 0] * 0, x.mean(dim=1) - 0.55], dim=1), items, labels, budget, 50, 0
    )
    assert not honest.diverges


def test_many_steps_may_find_more_than_one_but_not_more_than_they_did() -> None:
    wide = Held(300, 4 / 255, 0.62, 0.28, 20)
    assert wide.many_find_more
    assert not wide.diverges
    assert not wide.begins_to_hide(best=0.31)
    assert wide.begins_to_hide(best=0.40)
    assert replace(wide, many_steps=0.20).begins_to_hide(best=0.0)
    assert not Held(300, 4 / 255, 0.25, 0.13, 20).begins_to_hide(best=0.31), "one step finds nearly as much"


@pytest.mark.parametrize(("items", "hides"), [(20, False), (40, False), (300, True)])
def test_an_epoch_is_not_undone_for_one_item_of_few(items: int, *, hides: bool) -> None:
    """One in five holds against one step and not against many: of few items that may be chance."""
    held = Held(items, 4 / 255, 0.6, 0.35 if items < 300 else 0.3, 50)
    assert held.begins_to_hide(best=0.55) is hides


def test_minutes_that_no_epoch_fits_into_are_said(trained: Job, monkeypatch: pytest.MonkeyPatch) -> None:
    """An epoch of each kind takes an hour, and there are five minutes."""
    classifier, data = open_job(trained)
    lessons = read_lessons(trained, classifier, data)
    monkeypatch.setattr(Training, "computed", lambda *_: (1200.0, 2400.0))
    few = Training(replace(trained, second_minutes=5.0), classifier, lessons)
    pace = few.pace()
    assert (pace.natural_epochs, pace.robust_epochs) == (1, 1)
    assert few.seconds_all == 3600.0
    assert "which is more than the 5 min of --second-minutes" in few.time
    many = Training(replace(trained, second_minutes=70.0), classifier, lessons)
    assert many.seconds_all == 4200.0
    assert many.time == "in at most 70 min (--second-minutes)"
    assert Training(trained, classifier, lessons).seconds_all > 3600.0


@pytest.mark.parametrize("helps", [False, True])
def test_an_epoch_that_begins_to_hide_is_learned_again_against_more_steps(
    trained: Job, tmp_path: Path, epochs: list[int], monkeypatch: pytest.MonkeyPatch, *, helps: bool
) -> None:
    """The second robust epoch hides: whatever it learns against, so it is the end, or from one step alone."""
    for name in ("model.pt2", "data.npz", "training.npz"):
        (tmp_path / name).symlink_to(trained.out.parent / name)
    job = job_in(tmp_path, second_minutes=60.0)
    classifier, data = open_job(job)
    asked = find_asked(job, classifier, data, lambda *_: None)
    assert asked.training is not None
    whole = asked.training.plan()
    natural, total = whole.natural_epochs, whole.natural_epochs + 3
    monkeypatch.setattr(second_training.Training, "plan", lambda _: replace(whole, robust_epochs=3))
    after: dict[int, Any] = {}

    def attacked(*given: Any) -> Held:
        first = epochs[-1] == natural + 1 and not (helps and epochs.count(natural + 1) > 1)
        after.setdefault(epochs[-1], {name: value.clone() for name, value in given[0].state_dict().items()})
        return Held(100, 0.02, 0.9, 0.36 if first else 0.5, 20)

    monkeypatch.setattr(second_training, "attack_verifier", attacked)
    said: list[str] = []
    found = asked.training.run(said.append, lambda *_: None)
    again = [natural + 1] * (1 if helps else second_training.MAX_ATTACK_STEPS - 1)
    assert epochs == [*range(natural + 2), *again, *([natural + 2] if helps else [])]
    assert any("so it hides from 1 of them; it is learned again" in text for text in said)
    assert f"{natural} natural and {3 if helps else 1} robust epochs" in found.about
    ended = f"the second network learned for {natural + 1} of {total} epochs: then it began to hide its gradient"
    assert (ended in asked.training.cuts) != helps
    learner = asked.training.learned(asked.training.plan(), said.append, lambda *_: None)
    assert len(epochs) == natural + 2 + len(again) + helps, "it is not taken up again"
    taken = learner.judged().state_dict()
    assert all(torch.equal(taken[name], value) for name, value in after[natural].items()) != helps


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"kind": "robust"}, "kind = 'robust'; wanted one of natural, augmented, robust_verifier, distilled"),
        ({"epochs": 3}, r"unknown key 'epochs' in \[second\]; known: kind"),
        ({"budget": 0}, "budget = 0; wanted a number from 0 to 1"),
        ({"natural_epochs": 1.5}, "natural_epochs = 1.5; wanted a whole number"),
        ({"augment": "yes"}, "augment = 'yes'; wanted true or false"),
        ([SECOND], r"in \[second\]"),
    ],
)
def test_settings_that_cannot_be(settings: Any, words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        parse({**RECIPE, "second": settings}, "tiny")
