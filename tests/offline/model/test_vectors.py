"""Vectors go through everything: measurements in ranges of their own, off any grid, are learned, scored and served."""

from __future__ import annotations

import asyncio
import io
import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from rich.console import Console

from guard.bundle import Bundle
from guard.columns import ColumnChoice
from guard.errors import ConfigError, DataError
from guard.offline import evaluate as evaluating
from guard.offline.attacks.model import TorchModel
from guard.offline.crafting.crafter import craft
from guard.offline.crafting.shard import CraftSetup
from guard.offline.data.dataset import Dataset
from guard.offline.evaluate import Wish, evaluate_bundle
from guard.offline.findings.evaluation import NOISE, OFF_GRID
from guard.offline.job.job import open_job
from guard.offline.job.recipe import load_recipe
from guard.offline.job.second_settings import ASKING
from guard.offline.train import train
from guard.offline.training.reopen import Work
from guard.offline.work.progress import Stages
from guard.offline.work.store import ResultStore
from guard.runtime import Runtime
from guard.scoring import score_lines
from guard.summary import summarise
from tests.every_pass import every_pass
from tests.offline import tumours
from tests.serve.guarded import config_for, metric_of
from tests.serve.processes import guard_process, model_file_process
from tests.serve.triton_process import ask_triton


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    return train(tumours.job(tmp_path_factory.mktemp("tumours")), Stages(Console(file=io.StringIO())))


@pytest.fixture(scope="module")
def unseen(bundle: Bundle) -> Dataset:
    """What neither the network nor the guard has seen; unit space."""
    return Work.beside(bundle).held_out(bundle, bundle.path.with_name("data.npz"))[0]


def measurements(unit: NDArray[np.float32], bundle: Bundle) -> NDArray[np.float32]:
    return np.asarray(bundle.manifest.model.input.box.from_unit(unit), dtype=np.float32)


def test_the_bundle_knows_each_features_range_and_no_grid(bundle: Bundle) -> None:
    spec = bundle.manifest.model.input
    assert spec.shape == (30,)
    assert spec.grid is None
    assert (spec.low, spec.high) == tumours.box()
    assert "each feature has a range of its own" in summarise(bundle)
    images = {entry["name"] for entry in every_pass().detectors}
    assert images - set(ASKING) <= set(bundle.calibration.detectors), "no second network was given"
    assert not set(ASKING) & set(bundle.calibration.detectors)


def test_the_report_has_every_row_that_vectors_can_have(bundle: Bundle) -> None:
    report = json.loads((bundle.path / "report.json").read_text("utf-8"))
    calm = {row["name"]: row for row in report["clean"]}
    low, high = calm["clean"]["reject_band"]
    assert low <= calm["clean"]["rejected"]["count"] <= high
    assert NOISE in calm
    assert OFF_GRID not in calm, "there is no grid to be off"
    assert len(report["attacks"]) == len(load_recipe("vectors").attacks) + len(load_recipe("vectors").left_out)
    for row in report["attacks"]:
        assert row["success"]["count"] >= 20, row["attack"]
        assert row["served"]["auroc"]["value"] > 0.85, row["attack"]
    assert [row["budget"] for row in report["adaptive"]] == list(load_recipe("vectors").adaptive_budgets)
    assert all(row["disagreement"] <= 0.1 for row in report["adaptive"])


def test_evaluate_puts_aside_what_the_bundle_knows(
    bundle: Bundle, tmp_path: Path, stages: Stages, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(evaluating, "QUICK_ITEMS_AND_STEPS", (40, 8, 4))
    data = bundle.path.with_name("data.npz")
    evaluation = evaluate_bundle(bundle, data, tmp_path, Wish(seed=1, quick=True), stages)
    assert evaluation.accuracy.items == bundle.manifest.provenance["splits"]["test"]
    assert evaluation.accuracy.value > 0.9
    assert evaluation.attacks
    assert evaluation.adaptive
    page = (tmp_path / "report.html").read_text("utf-8")
    assert "the inputs are vectors" in page, "no shifts, and it says why"
    assert "No pictures" in page


def test_a_table_is_scored_as_the_same_arrays_are(bundle: Bundle, unseen: Dataset, tmp_path: Path) -> None:
    sent = measurements(unseen.images[:40], bundle)
    np.savez(tmp_path / "sent.npz", images=sent)
    rows = [",".join(["A-1", *map(str, row)]) for row in sent.tolist()]
    header = ",".join(["patient", *(f"feature {place}" for place in range(sent.shape[1]))])
    (tmp_path / "sent.csv").write_text("\n".join([header, *rows]))
    choice = ColumnChoice(drop=("patient",))
    scored = score_lines(bundle.path, tmp_path / "sent.csv", device="cpu", threads=1, choice=choice)
    assert list(scored) == list(score_lines(bundle.path, tmp_path / "sent.npz", device="cpu", threads=1))


def test_score_and_wire_judge_alike_and_what_passes_is_the_models_own_answer(
    bundle: Bundle, unseen: Dataset, side: Callable[[str], Path], tmp_path: Path
) -> None:
    model = TorchModel(Work.beside(bundle).subject(bundle).classifier.graph)
    run = CraftSetup(model, None, bundle.manifest.model.fingerprint, ResultStore(tmp_path / "fresh"), seed=5)
    (found,) = craft(run, unseen, load_recipe("vectors").attacks[1:2])
    sent = np.concatenate([measurements(unseen.images[:40], bundle), measurements(found.attacked[:40], bundle)])
    np.savez(tmp_path / "sent.npz", images=sent)
    lines = [json.loads(line) for line in score_lines(bundle.path, tmp_path / "sent.npz", device="cpu", threads=1)]
    rejected = np.asarray([line["action"] == "reject" for line in lines])
    assert rejected[40:].mean() > 0.5 > rejected[:40].mean()

    name, model = bundle.manifest.model.name, tumours.write_served(tmp_path / "model.onnx")
    with model_file_process(model, name=name) as server:
        upstream = server.until_event("listening")["inference"]
        with guard_process(config_for(bundle.path, upstream)) as guard:
            listening = guard.until_event("listening")
            guard.until_event("ready")
            direct = ask_triton(side("triton"), upstream, name, sent)["answers"]
            through = ask_triton(side("triton"), listening["inference"], name, sent)["answers"]
            counted = asyncio.run(metric_of(listening["metrics"], "guard_items_total", action="reject"))
            disagreed = asyncio.run(metric_of(listening["metrics"], "guard_upstream_disagreement_items_total"))
    for line, refused, plain, seen in zip(lines, rejected, direct, through, strict=True):
        if refused:
            assert seen["status"] == "StatusCode.PERMISSION_DENIED"
        else:
            assert seen == plain
            assert int(np.argmax(seen["logits"])) == line["prediction"]
    assert counted == rejected.sum()
    assert disagreed == 0


def test_ranges_that_fit_nothing_are_named(tmp_path: Path) -> None:
    low, high = tumours.box()
    with pytest.raises(ConfigError, match=r"29 and 29 features.*have 30.*or one for all"):
        open_job(tumours.job(tmp_path, low=low[1:], high=high[1:]))
    narrow = (*high[:4], 0.1, *high[5:])  # feature 4 reaches 0.16; others reach thousands
    with pytest.raises(DataError, match=r"values of feature 4 span \[0.05\d*, 0.16\d*\], outside .*, 0.1\]"):
        open_job(tumours.job(tmp_path, high=narrow))


def test_the_runtime_inspects_values_outside_the_box_as_they_are(bundle: Bundle, unseen: Dataset) -> None:
    """A vector far beyond every range is no reason to fail, and nothing that passes for clean."""
    far = measurements(unseen.images[:5] + 3.0, bundle)
    assert (Runtime.open(bundle, threads=1).read(far).p_value <= bundle.manifest.reject_rate).all()
