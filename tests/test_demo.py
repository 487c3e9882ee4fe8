"""The demo's gate: it passes for a guard that learned, and fails for one whose labels were shuffled."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from rich.console import Console

from guard.demo import Caught, by_answer, gate, lines_of, make_room, together
from guard.errors import ConfigError, GateError
from guard.offline.attacks.methods.pgd import Pgd
from guard.offline.crafting.crafted_set import CraftedSet
from guard.offline.data.dataset import Dataset
from guard.offline.demo_model import load_digits, save_model, train_network
from guard.offline.job.job import Job
from guard.offline.job.recipe import load_recipe
from guard.offline.train import Prepared, finish, prepare
from guard.offline.work.progress import Stages


@pytest.fixture(scope="module")
def started(tmp_path_factory: pytest.TempPathFactory) -> tuple[Job, Prepared]:
    """The demo's network and data, with one detector a program, and the attack of the gate alone."""
    folder = tmp_path_factory.mktemp("demo")
    digits = load_digits(0)
    exported, _ = save_model(train_network(digits, 0, lambda done, total: None), folder)
    np.savez(folder / "data.npz", images=digits.unseen, labels=digits.unseen_labels)
    preset = load_recipe("digits")
    recipe = replace(
        preset,
        detectors=tuple(one for one in preset.detectors if one["name"] in ("mahalanobis", "saliency_classifier")),
        attacks=(Pgd(budget=0.25, steps=10),),
        repairs=(),
        left_out=(),
        adaptive_budgets=(0.25,),
    )
    job = Job(
        model=str(exported),
        data=folder / "data.npz",
        out=folder / "bundle",
        recipe=recipe,
        reject_rate=0.05,
        flag_rate=0.1,
        attack_items=100,
        adaptive_items=4,
        adaptive_steps=2,
    )
    return prepare(job, Stages(Console(quiet=True)))


def permuted(prepared: Prepared, seed: int) -> Prepared:
    """Which of each pair is called clean and which attacked is drawn by a coin, in everything that is fitted on."""
    (crafted,) = prepared.crafted
    swap = np.random.default_rng(seed).random(len(crafted)) < 0.5
    clean, attacked = crafted.clean.copy(), crafted.attacked.copy()
    clean[swap], attacked[swap] = crafted.attacked[swap], crafted.clean[swap]
    images = prepared.data.images.copy()
    place = {value: i for i, value in enumerate(prepared.data.hashes.tolist())}
    images[[place[value] for value in crafted.hashes.tolist()]] = clean
    shuffled: CraftedSet = replace(crafted, clean=clean, attacked=attacked)
    data: Dataset = replace(prepared.data, images=images)
    return replace(prepared, data=data, crafted=(shuffled,))


def verdict(path: Path) -> tuple[list[Caught], Caught]:
    report = json.loads((path / "report.json").read_text(encoding="utf-8"))
    rows = [Caught(r["attack"], r["tried"], r["success"]["count"], r["rejected"]["count"]) for r in report["attacks"]]
    clean = report["clean"][0]["rejected"]
    return rows, Caught("clean", clean["items"], clean["items"], clean["count"])


@pytest.mark.slow
def test_gate_passes_a_guard_that_learned(started: tuple[Job, Prepared]) -> None:
    job, prepared = started
    job = replace(job, out=job.out.with_name("learned"))
    gate(*verdict(finish(job, prepared, Stages(Console(quiet=True))).path))


@pytest.mark.slow
def test_gate_fails_a_guard_with_permuted_labels(started: tuple[Job, Prepared]) -> None:
    job, prepared = started
    job = replace(job, out=job.out.with_name("permuted"))
    rows, clean = verdict(finish(job, permuted(prepared, 1), Stages(Console(quiet=True))).path)
    with pytest.raises(GateError, match="no better than chance"):
        gate(rows, clean)


def test_a_folder_of_somebody_elses_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").write_text("years of work", encoding="utf-8")
    with pytest.raises(ConfigError, match="not made by a demo"):
        make_room(tmp_path)
    assert (tmp_path / "thesis.tex").is_file()
    for _ in range(2):  # its own folder is made anew
        make_room(tmp_path / "demo")
        (tmp_path / "demo" / "old").touch()
    make_room(tmp_path / "demo")
    assert not (tmp_path / "demo" / "old").exists()


def test_noise_is_parted_by_whether_the_model_is_still_right() -> None:
    crafted = [SimpleNamespace(noise=np.eye(3, dtype=np.float32)[[0, 2]], labels=np.asarray([0, 1]))] * 2
    parts = by_answer(lambda images: images, crafted)
    assert (parts[True].argmax(axis=1).tolist(), parts[False].argmax(axis=1).tolist()) == ([0, 0], [2, 2])


def test_two_parts_are_counted_together() -> None:
    assert together("noise", Caught("a", 10, 10, 1), Caught("b", 5, 4, 3)) == Caught("noise", 15, 14, 4)


def test_gate_fails_when_no_attack_is_strong() -> None:
    with pytest.raises(GateError, match="no attack"):
        gate([Caught("weak", 100, 20, 20)], Caught("clean", 100, 100, 5))


def test_gate_looks_at_the_weakest_strong_attack() -> None:
    rows = [Caught("1/16", 100, 30, 0), Caught("2/16", 100, 95, 20), Caught("4/16", 100, 100, 100)]
    with pytest.raises(GateError, match="2/16"):
        gate(rows, Caught("clean", 100, 100, 5))


def test_readme_shows_the_table_as_it_is_drawn(root: Path) -> None:
    """Each row is drawn anew from its own name, counts and shares; the numbers themselves are another processor's."""
    text = (root / "README.md").read_text("utf-8")
    shown = text[text.index("sent through the guard") :].split("\n\n", 1)[0]
    rows = [caught(line) for line in shown.splitlines()[2:]]
    calm, attacks = [row for row, fools in rows if not fools], [row for row, fools in rows if fools]
    assert calm
    assert attacks
    assert "\n".join(lines_of(calm, attacks)) == shown


def caught(line: str) -> tuple[Caught, str]:
    """Return a row of README's table, and its share of items that fool the model as it stands there."""
    found = re.fullmatch(r"(\S.*?)  +(?:(\d+%) +)?(\d+) +([\d.]+)%  .*", line)
    assert found, line
    name, fools, items, rejected = found[1], found[2] or "", int(found[3]), float(found[4])
    tried = next(tried for tried in range(items, 10**5) if not fools or f"{items / tried:.0%}" == fools)
    return Caught(name, tried, items, round(items * rejected / 100)), fools
