"""Series: both orders of axes, each model file's own way of saying which it takes, and a guard for them."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from rich.console import Console
from torch import Tensor, nn

from guard.bundle import Bundle
from guard.errors import ConfigError, DataError, ModelError
from guard.offline.attacks.model import TorchModel
from guard.offline.attacks.objective import Gap
from guard.offline.evaluation.pictures import saliency
from guard.offline.findings.figures import Specimen
from guard.offline.job.job import Job, open_job
from guard.offline.job.recipe import load_recipe, parse
from guard.offline.model.declared_input import declared_input
from guard.offline.report.pictures import COLUMNS, LOOKED, NEAREST, columns_of, draw
from guard.offline.train import train
from guard.offline.work.progress import Stages
from guard.runtime import Runtime
from guard.scoring import score_lines
from tests.offline import tiny
from tests.once import once

pytestmark = pytest.mark.slow

CHANNELS, STEPS = tiny.CHANNELS, tiny.STEPS


class Last(nn.Module):
    """A model that takes [item, time, channel]."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, series: Tensor) -> Tensor:
        logits: Tensor = self.inner(series.transpose(1, 2))
        return logits


class Recurrent(nn.Module):
    def __init__(self, kind: Callable[..., nn.Module]) -> None:
        super().__init__()
        self.layer, self.head = kind(CHANNELS, 6, batch_first=True), nn.Linear(6, tiny.CLASSES)

    def forward(self, series: Tensor) -> Tensor:
        logits: Tensor = self.head(self.layer(series)[0][:, -1])
        return logits


class Attentive(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.into, self.query, self.key, self.head = (
            nn.Linear(CHANNELS, 8),
            nn.Linear(8, 8),
            nn.Linear(8, 8),
            nn.Linear(8, tiny.CLASSES),
        )
        self.normal = nn.LayerNorm(8)

    def forward(self, series: Tensor) -> Tensor:
        tokens = self.into(series)
        mixed = nn.functional.scaled_dot_product_attention(self.query(tokens), self.key(tokens), tokens)
        logits: Tensor = self.head(self.normal(tokens + mixed).mean(dim=1))
        return logits


def seeded(build: Callable[[], nn.Module]) -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(3)
        return build().eval().requires_grad_(requires_grad=False)


# Name -> the network, the order of axes that it takes, and whether a layer says so.
MODELS: dict[str, tuple[Callable[[], nn.Module], str, bool]] = {
    "first": (tiny.series_model, "NCT", True),
    "last": (lambda: seeded(lambda: Last(tiny.series_model())), "NTC", True),
    "gru": (lambda: seeded(lambda: Recurrent(nn.GRU)), "NTC", True),
    "lstm": (lambda: seeded(lambda: Recurrent(nn.LSTM)), "NTC", True),
    "attentive": (lambda: seeded(Attentive), "NTC", False),
}


def last() -> nn.Module:
    return MODELS["last"][0]()


RECIPE = {
    **tiny.RECIPE,
    "detector": [
        {"name": "mahalanobis", "program": "screen"},
        {"name": "feature_squeezing", "program": "screen", "squeezers": [{"name": "moving_average"}]},
    ],
    "attack": [{"name": "pgd", "budget": 0.25, "steps": 4}, {"name": "spatial"}],
    "left_out": [],
}


def in_order(series: NDArray[Any], layout: str) -> NDArray[Any]:
    return np.ascontiguousarray(series.transpose(0, 2, 1)) if layout == "NTC" else series


def written(folder: Path, name: str, form: str) -> str:
    """A model as a file."""
    model, layout, _ = MODELS[name]
    file, example = folder / f"{name}.{form}", torch.from_numpy(in_order(tiny.series(2)[0], layout))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of the exporter, about itself
        if form == "pt2":
            program = torch.export.export(model(), (example,), dynamic_shapes=({0: torch.export.Dim("item")},))
            torch.export.save(program, file)
        else:
            names = {"input_names": ["input"], "output_names": ["logits"], "dynamic_axes": {"input": {0: "batch"}}}
            torch.onnx.export(model(), (example,), str(file), dynamo=False, **names)
    return str(file)


def data(folder: Path, layout: str, items: int = 240, channels: int = CHANNELS) -> Path:
    series, labels = tiny.series(items, seed=7)
    file = folder / f"{layout}-{channels}.npz"
    np.savez(file, images=in_order(series[:, :channels], layout), labels=labels)
    return file


def job(folder: Path, model: str, file: Path, **changes: Any) -> Job:
    return Job(model=model, data=file, out=folder / "bundle", recipe=tiny.recipe(), **changes)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "form"),
    [
        ("first", "onnx"),
        ("first", "pt2"),
        ("last", "onnx"),
        ("last", "pt2"),
        ("gru", "pt2"),
        ("lstm", "onnx"),
        ("attentive", "onnx"),
    ],
)
def test_a_model_says_which_axis_has_its_channels(tmp_path: Path, name: str, form: str) -> None:
    model, layout, says = MODELS[name]
    file = written(tmp_path, name, form)
    assert declared_input(file).layout == (layout if says else None)
    series, _ = tiny.series(240, seed=7)
    for order in ("NCT", "NTC"):
        given = job(tmp_path, file, data(tmp_path, order), data_layout=None if says else order)
        classifier, found = open_job(given)
        assert classifier.spec.input.layout == layout
        assert classifier.spec.input.wire_shape == ((CHANNELS, STEPS) if layout == "NCT" else (STEPS, CHANNELS))
        np.testing.assert_allclose(found.images, series, atol=1e-6)
        with torch.no_grad():
            wanted = model()(torch.from_numpy(in_order(series[:5], layout)))
        points = torch.from_numpy(series[:5])
        torch.testing.assert_close(classifier(points), wanted, rtol=1e-4, atol=1e-5)
        _, _, slope = TorchModel(classifier.graph).value_and_gradient(points, Gap(wanted.argmax(dim=1)))
        assert bool((slope.abs().amax(dim=(1, 2)) > 0).all())
    if not says:
        with pytest.raises(DataError, match=r"24 channels of 2 steps .* or 2 channels of 24 steps .*NCT or NTC"):
            open_job(job(tmp_path, file, data(tmp_path, "NTC")))


def test_a_wrong_word_on_the_order_is_refused(tmp_path: Path) -> None:
    file = written(tmp_path, "first", "onnx")
    with pytest.raises(ModelError, match=r"takes NCT series \[2, 24\].*data's items are 24 channels of 2 steps"):
        open_job(job(tmp_path, file, data(tmp_path, "NTC"), data_layout="NCT"))
    with pytest.raises(ConfigError, match=r"takes series .*layout NHWC is none of theirs; wanted --data-layout NCT"):
        open_job(job(tmp_path, file, data(tmp_path, "NTC"), data_layout="NHWC"))
    with pytest.raises(ModelError, match=r"the data's items"):
        open_job(job(tmp_path, file, data(tmp_path, "NCT", channels=1)))


def test_a_module_is_told_or_its_arrays_are_grey_pictures(tmp_path: Path) -> None:
    reference = f"{__name__}:last"
    for order in ("NCT", "NTC"):
        classifier, found = open_job(job(tmp_path, reference, data(tmp_path, order), data_layout=order))
        assert classifier.spec.input.layout == "NTC"
        assert found.item_shape == (CHANNELS, STEPS)
    with pytest.raises(ModelError, match=r"cannot be exported for inputs \[item, 1, 24, 2\]"):
        open_job(job(tmp_path, reference, data(tmp_path, "NTC")))


@pytest.fixture(scope="session")
def guarded(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A guard for a model that takes [item, time, channel], with a box for each channel."""

    def make(folder: Path) -> None:
        file = data(folder, "NTC", items=640)
        small = {"craft_items": 40, "attack_items": 40, "adaptive_items": 4, "adaptive_steps": 2}
        rates = {"reject_rate": 0.05, "flag_rate": 0.1}
        boxes = {"low": (-0.1, 0.0), "high": (1.0, 1.1)}
        model = written(folder, "last", "onnx")
        given = job(folder, model, file, **small, **rates, **boxes)
        train(replace(given, recipe=parse(RECIPE, "small")), Stages(Console(quiet=True)))

    return once(tmp_path_factory, "series", make)


@pytest.mark.slow
def test_a_guard_for_series_is_trained_and_scores_both_orders(guarded: Path) -> None:
    runtime = Runtime.open(Bundle.open(guarded / "bundle"))
    assert runtime.spec.layout == "NTC"
    assert len(set(runtime.spec.low)) == 2
    assert [repair.name for repair in runtime.bundle.manifest.repairs] == ["median"]
    scored = {
        order: list(score_lines(guarded / "bundle", data(guarded, order, items=40), device="cpu", threads=1))
        for order in ("NCT", "NTC")
    }
    assert scored["NCT"] == scored["NTC"]
    assert len(scored["NCT"]) == 40
    report = (guarded / "bundle" / "report.html").read_text(encoding="utf-8")
    assert "time +5%" in report
    assert "it takes images alone, and the inputs are series" in report
    assert "smoothing 5 steps" in report
    assert "data:image/png" in report, "attacked series are drawn"


def test_a_series_is_drawn_as_lines_and_its_map_as_a_curve() -> None:
    series, _ = tiny.series(2)
    model = TorchModel(tiny.series_classifier().graph)
    maps = [saliency(model, one, 0) for one in series]
    assert [one.shape for one in maps] == [(STEPS,)] * 2
    specimen = Specimen("PGD", series[0], series[1], maps[0], maps[1], "a", "b", 0.5, 0.01)
    assert draw([specimen]).startswith("data:image/png;base64,")
    looked = replace(specimen, clean_looked=maps[1], attacked_looked=maps[0], nearest=series[1], nearest_class="b")
    assert columns_of([looked]) == (*COLUMNS, *LOOKED, *NEAREST)
    assert columns_of([looked, specimen]) == COLUMNS, "what every specimen has"
    assert len(draw([looked])) > len(draw([specimen]))
    assert draw([specimen, looked]).startswith("data:image/png;base64,")


def test_the_preset_applies_to_series_as_a_whole() -> None:
    classifier = tiny.series_classifier()
    recipe = load_recipe("series")
    assert recipe.fitting(classifier.kind, [tap.name for tap in classifier.taps]) == recipe
