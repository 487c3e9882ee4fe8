"""Clean data for a model: axes, classes and labels are as the model has them, or the job is refused."""

from __future__ import annotations

import io
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

from guard.arrays import read_examples
from guard.bundle import Bundle
from guard.cli import run
from guard.errors import ConfigError, DataError, PromiseError
from guard.offline.data.dataset import Dataset
from guard.offline.data.splits import Split, assign
from guard.offline.job.job import WHOLE, Job, check_data, item_shape, open_job
from guard.offline.preflight.check import splits_text
from guard.offline.train import train
from guard.offline.training.reopen import Work
from guard.offline.work.progress import Stages
from guard.summary import summarise
from tests.offline import tiny
from tests.onnx_files import write_onnx
from tests.picture_files import save

pytestmark = pytest.mark.slow

ITEMS, CLASSES = 90, 3
BYTES = np.random.default_rng(0).integers(0, 256, (ITEMS, 3, 8, 10), dtype=np.uint8)  # [item, channel, height, width]
LABELS = np.arange(ITEMS) % CLASSES


class ChannelsFirst(nn.Module):
    """A network of [item, channel, height, width]."""

    def __init__(self, channels: int = 3) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Conv2d(channels, 8, 3, padding=1),
            nn.ReLU(),
            nn.AdaptiveAvgPool2d(1),
            nn.Flatten(),
            nn.Linear(8, CLASSES),
        )

    def forward(self, images: Tensor) -> Tensor:
        found: Tensor = self.layers(images)
        return found


class ChannelsLast(ChannelsFirst):
    """A network of [item, height, width, channel]."""

    def forward(self, images: Tensor) -> Tensor:
        return super().forward(images.permute(0, 3, 1, 2).contiguous())


def network() -> nn.Module:
    torch.manual_seed(0)
    return ChannelsFirst()


def job(folder: Path, model: str, **settings: Any) -> Job:
    return Job(model=model, data=folder / "data.npz", out=folder / "bundle", recipe=tiny.recipe(), **settings)


def written(folder: Path, kind: str) -> str:
    """A model of a kind, as `guard train --model` names it."""
    shape = (8, 10, 3) if kind == "NHWC.onnx" else (3, 8, 10)
    if kind.endswith(".onnx"):
        return str(write_onnx(ChannelsLast() if "NHWC" in kind else ChannelsFirst(), folder / "m.onnx", shape))
    if kind == "module":
        return f"{__name__}:network"
    program = torch.export.export(
        network().eval(), (torch.zeros(2, *shape),), dynamic_shapes=({0: torch.export.Dim("item")},)
    )
    torch.export.save(program, folder / "m.pt2")
    return str(folder / "m.pt2")


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["NCHW.onnx", "NHWC.onnx", "pt2", "module"])
def test_every_order_of_axes_in_the_file_is_the_same_data(tmp_path: Path, kind: str) -> None:
    model = written(tmp_path, kind)
    for turned in (BYTES, BYTES.transpose(0, 2, 3, 1)):
        for images in (turned, turned / np.float32(255), (turned / 255).astype(np.float64)):
            np.savez(tmp_path / "data.npz", images=images, labels=LABELS)
            classifier, data = open_job(job(tmp_path, model))
            assert classifier.spec.input.shape == (3, 8, 10)
            assert classifier.spec.input.layout == ("NHWC" if kind.startswith("NHWC") else "NCHW")
            np.testing.assert_allclose(data.images, BYTES / np.float32(255), atol=1e-6)
            order = "channels first" if turned is BYTES else "channels last"
            assert any("3 x 8 x 10" in note and order in note for note in data.notes)


@pytest.mark.parametrize("sizes", [(4, 3, 32, 32), (4, 32, 32, 3)])
@pytest.mark.parametrize("dtype", [np.uint8, np.float32])
def test_the_axes_of_data_as_far_as_the_shape_says_it(
    tmp_path: Path, sizes: tuple[int, ...], dtype: type[np.generic]
) -> None:
    np.save(tmp_path / "data.npy", np.ones(sizes, dtype=dtype))
    assert item_shape(read_examples(tmp_path / "data.npy")) == (3, 32, 32)


@pytest.mark.slow
def test_a_cube_takes_a_flag(tmp_path: Path) -> None:
    cube = np.random.default_rng(1).integers(0, 256, (ITEMS, 3, 3, 3), dtype=np.uint8)
    np.savez(tmp_path / "data.npz", images=cube, labels=LABELS)
    model = str(write_onnx(ChannelsFirst(), tmp_path / "m.onnx", (3, 3, 3)))
    with pytest.raises(DataError, match=r"\[3, 3, 3\] are .* or .*--data-layout NCHW or NHWC"):
        open_job(job(tmp_path, model))
    for layout, wanted in (("NCHW", cube), ("NHWC", cube.transpose(0, 3, 1, 2))):
        _, data = open_job(job(tmp_path, model, data_layout=layout))
        np.testing.assert_allclose(data.images, wanted / np.float32(255), atol=1e-6)
    with pytest.raises(ConfigError, match="--data-layout 'HWC'; wanted NCHW or NHWC"):
        open_job(job(tmp_path, model, data_layout="HWC"))


# Labels and classes.


def test_labels_from_one_are_told(tmp_path: Path) -> None:
    np.savez(tmp_path / "data.npz", images=BYTES, labels=LABELS + 1)
    with pytest.raises(DataError, match=r"item 2 has label 3; .* 0 to 2; labels run from 1 to 3: subtract 1"):
        open_job(job(tmp_path, written(tmp_path, "module")))


def test_test_labels_are_checked_under_their_own_name(tmp_path: Path) -> None:
    np.savez(tmp_path / "data.npz", images=BYTES, labels=LABELS)
    np.savez(tmp_path / "test.npz", images=255 - BYTES[:4], labels=[0, 1, 2, 3])
    with pytest.raises(DataError, match=r"test.npz: item 3 has label 3"):
        open_job(job(tmp_path, written(tmp_path, "module"), test=tmp_path / "test.npz"))


def test_classes_without_items_and_copies_with_another_label_are_said(tmp_path: Path) -> None:
    images, labels = BYTES.copy(), np.where(LABELS == 1, 2, LABELS)
    images[6] = images[2]
    np.savez(tmp_path / "data.npz", images=images, labels=labels)
    _, data = open_job(job(tmp_path, written(tmp_path, "module")))
    assert "classes without items: 1" in data.notes
    assert "1 items are copies with another label, such as items 2 and 6" in data.notes


def folders(root: Path, names: str, images: NDArray[np.uint8] = BYTES) -> Path:
    """Class folders of pictures, dealt out in turn."""
    for item, image in enumerate(images):
        save(root / names.split()[item % len(names.split())] / f"{item:03d}.png", image.transpose(1, 2, 0))
    return root


@pytest.mark.parametrize(
    ("names", "plant", "words"),
    [
        ("ant bee cat dog", None, r"4 class folders \(ant, bee, cat, dog\); the model has 3 classes"),
        ("ant cat", "bee", r"3 classes, and .* only with those that hold no picture \(bee\)"),
    ],
)
def test_folders_that_cannot_be_the_models_classes(tmp_path: Path, names: str, plant: str | None, words: str) -> None:
    folders(tmp_path / "data.npz", names)
    if plant:
        (tmp_path / "data.npz" / plant).mkdir()
    with pytest.raises(DataError, match=words):
        open_job(job(tmp_path, written(tmp_path, "module")))


def test_folders_are_found_by_name_in_test_data(tmp_path: Path) -> None:
    folders(tmp_path / "data.npz", "ant bee cat")
    folders(tmp_path / "test", "cat", 255 - BYTES[:5])
    heard: list[tuple[int, int]] = []
    given = job(tmp_path, written(tmp_path, "module"), test=tmp_path / "test")
    classifier, data = open_job(given, lambda done, total: heard.append((done, total)))
    assert {total for _, total in heard} == {ITEMS, 5}, "of both folders it is heard how far they are read"
    assert classifier.spec.output.labels == ("ant", "bee", "cat")
    assert data.labels[-5:].tolist() == [2] * 5
    folders(tmp_path / "test", "elk", 255 - BYTES[5:6])
    with pytest.raises(DataError, match=r"folder 'elk' is no class; wanted one of those known, ant, bee, cat"):
        open_job(job(tmp_path, written(tmp_path, "module"), test=tmp_path / "test"))


def test_fewer_folders_than_classes_are_said(tmp_path: Path) -> None:
    folders(tmp_path / "data.npz", "ant bee")
    _, data = open_job(job(tmp_path, written(tmp_path, "module")))
    assert any("2 class folders for 3 classes" in note for note in data.notes)


# The bundle.


def pictures(images: NDArray[np.float32], labels: NDArray[np.int64], root: Path) -> Path:
    for item, (image, label) in enumerate(zip(images, labels, strict=True)):
        save(root / ("row", "side", "x")[label] / f"{item:03d}.png", np.rint(image[0] * 16 * 15).astype(np.uint8))
    return root


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    """A bundle whose training data were class folders; pictures are 15 bytes a grey level."""
    folder = tmp_path_factory.mktemp("folders")
    high = 255 / 240
    data = pictures(*tiny.data(640, seed=7), folder / "pictures")
    settings = tiny.job(folder, data=data, high=(high,), recipe=tiny.plain())
    return train(settings, Stages(Console(file=io.StringIO())))


@pytest.mark.slow
def test_the_order_of_classes_is_kept_and_printed(bundle: Bundle) -> None:
    assert Bundle.open(bundle.path).manifest.model.output.labels == ("row", "side", "x")
    assert "classes     0 row  1 side  2 x" in summarise(bundle)
    assert bundle.manifest.provenance["classes"] == "names, as labelled"


@pytest.mark.slow
def test_evaluation_finds_folders_by_the_bundles_names(bundle: Bundle, tmp_path: Path) -> None:
    images, labels = tiny.data(20, seed=55)
    keep = labels != 0
    root = pictures(images[keep], labels[keep], tmp_path / "unseen")
    (root / ".git").mkdir()
    held_out, _ = Work.beside(bundle).held_out(bundle, root)
    assert sorted(held_out.labels.tolist()) == sorted(labels[keep].tolist())
    (root / "x").rename(root / "other")
    with pytest.raises(DataError, match="folder 'other' is no class"):
        Work.beside(bundle).held_out(bundle, root)


@pytest.mark.slow
def test_evaluation_checks_labels(bundle: Bundle, tmp_path: Path) -> None:
    images, labels = tiny.data(20, seed=55)
    np.savez(tmp_path / "unseen.npz", images=images, labels=labels + 1)
    with pytest.raises(DataError, match=r"unseen.npz: item \d+ has label 3"):
        Work.beside(bundle).held_out(bundle, tmp_path / "unseen.npz")


@pytest.mark.slow
def test_score_says_what_was_left_out(bundle: Bundle, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    root = pictures(*tiny.data(3, seed=55), tmp_path / "some")
    (root / "empty").mkdir()
    assert run(["score", str(bundle.path), str(root)]) == 0
    said = capsys.readouterr()
    assert len(said.out.splitlines()) == 3
    assert "guard: folders without a picture, which are no classes: empty" in said.err
    assert run(["score", str(bundle.path), str(root), "--data-layout", "HWC"]) == 2
    assert "wanted NCHW or NHWC" in capsys.readouterr().err


@pytest.mark.slow
@pytest.mark.parametrize(
    "wrong", [lambda y: (y + 1) % 3, lambda y: np.asarray([2, 1, 0])[y]], ids=["off by one", "another order"]
)
def test_evaluation_stops_where_the_model_is_seldom_right(
    bundle: Bundle, tmp_path: Path, wrong: Callable[[NDArray[np.int64]], NDArray[np.int64]]
) -> None:
    images, labels = tiny.data(60, seed=56)
    root = pictures(images, wrong(labels), tmp_path / "unseen")
    out = tmp_path / "report"
    assert run(["evaluate", str(bundle.path), "--data", str(root), "--out", str(out), "--quick"]) == 3
    assert not out.exists()


def test_copies_promise_no_more_than_the_items_that_they_are(tmp_path: Path) -> None:
    hashes = np.asarray([f"{place:064d}" for place in range(400)])
    items = np.zeros((400, 1), np.float32)
    once = Dataset(items, np.zeros(400, np.int64), hashes, splits=assign(hashes, shares=WHOLE))
    tenfold = once.take(np.repeat(np.arange(400), 10))
    assert splits_text(once).partition("; ")[2] == splits_text(tenfold).partition("; ")[2]
    assert " distinct" not in splits_text(once)
    counted = len(once.part(Split.CALIBRATE))
    assert f"calibrate {10 * counted:,} ({counted} distinct)" in splits_text(tenfold)
    asked = Job("m", tmp_path, tmp_path, tiny.recipe(), reject_rate=0.02)
    assert check_data(asked, tenfold) == check_data(asked, once)
    words = rf"with {counted} clean .*; {10 * counted:,} items are {counted} distinct ones, whose copies share one risk"
    with pytest.raises(PromiseError, match=words):
        check_data(replace(asked, reject_rate=0.005), tenfold)
    few = once.take(np.r_[np.arange(400), :3])
    assert few.part(Split.CALIBRATE).effective == len(few.part(Split.CALIBRATE))
