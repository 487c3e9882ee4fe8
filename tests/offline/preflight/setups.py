"""Models and data for `guard check`, sound and broken, written to files as users have them."""

from __future__ import annotations

import struct
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch
from numpy.typing import NDArray
from onnx import TensorProto, helper
from torch import Tensor, nn

from tests.offline import tiny
from tests.onnx_files import model_of, quiet, write_onnx
from tests.picture_files import save

CLASS_NAMES = ("row", "side", "x")
ITEMS = 640
BYTES_A_STEP = 15  # so that 17 grey levels are whole bytes, 0 to 240
FULL = 255 / 240  # the wire value of white where data are such bytes


class Around(nn.Module):
    """The tiny network behind a step that maps its wire to pixels, and before one that maps logits to its output."""

    def __init__(self, before: Callable[[Tensor], Tensor], after: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.inner, self.before, self.after = tiny.image_model(), before, after

    def forward(self, wire: Tensor) -> Tensor:
        return self.after(self.inner(self.before(wire)))


def same(values: Tensor) -> Tensor:
    return values


def channels_last() -> nn.Module:
    return Around(lambda wire: wire.permute(0, 3, 1, 2).contiguous(), same)


def of_bytes() -> nn.Module:
    """Takes uint8 of 17 levels, 240 white."""
    return Around(lambda wire: wire.float() / 240, same)


def normalised() -> nn.Module:
    """Takes (pixel - 0.5) / 0.25."""
    return Around(lambda wire: wire * 0.25 + 0.5, same)


def wide() -> nn.Module:
    """Takes floats of 0 to 255."""
    return Around(lambda wire: wire / 255, same)


def probabilities() -> nn.Module:
    return Around(same, lambda logits: logits.softmax(dim=1))


def label() -> nn.Module:
    return Around(same, lambda logits: logits.argmax(dim=1))


def one_sigmoid() -> nn.Module:
    return Around(same, lambda logits: (logits[:, :1] - logits[:, 1:2]).sigmoid())


def stepped() -> nn.Module:
    """Rounds its input, which has no gradient then."""
    return Around(lambda wire: torch.round(wire * 16) / 16, same)


def mixing() -> nn.Module:
    """Takes the mean of the batch off each item."""
    return Around(lambda wire: wire - wire.mean(dim=0, keepdim=True) + 0.5, same)


def untrained() -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(3)
        return tiny.network().eval()


def raising() -> nn.Module:
    raise FileNotFoundError("weights.pth")


class TwoHeads(nn.Module):
    """Two outputs of one input."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = tiny.image_model()

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        logits: Tensor = self.inner(images)
        return logits, logits.softmax(dim=1)


class Dropping(nn.Module):
    """Dropout before the tiny network, which an export in training mode keeps."""

    def __init__(self) -> None:
        super().__init__()
        self.drop, self.inner = nn.Dropout(0.5), tiny.network()

    def forward(self, images: Tensor) -> Tensor:
        result: Tensor = self.inner(self.drop(images))
        return result


MODELS: Mapping[str, Callable[[Path], object]] = {
    "plain.onnx": lambda file: write_onnx(tiny.image_model(), file, tiny.SHAPE),
    "legacy.onnx": lambda file: write_onnx(tiny.image_model(), file, tiny.SHAPE, exporter="legacy"),
    "fixed.onnx": lambda file: write_onnx(tiny.image_model(), file, tiny.SHAPE, exporter="legacy", batch=3),
    "last.onnx": lambda file: write_onnx(channels_last(), file, (8, 8, 1)),
    "bytes.onnx": lambda file: write_bytes(file),
    "probabilities.onnx": lambda file: write_onnx(probabilities(), file, tiny.SHAPE, exporter="legacy"),
    "label.onnx": lambda file: write_onnx(label(), file, tiny.SHAPE, exporter="legacy"),
    "plain.pt2": tiny.write_model,
    # Broken.
    "damaged.onnx": lambda file: file.write_bytes(b"\x08\x07 not a model"),
    "damaged.pt2": lambda file: file.write_bytes(b"PK no archive"),
    "forest.onnx": lambda file: write_node(file, "TreeEnsembleClassifier", "ai.onnx.ml"),
    "quantised.onnx": lambda file: write_node(file, "QuantizeLinear"),
    "brain.onnx": lambda file: write_brain_floats(file),
    "two.onnx": lambda file: write_onnx(
        TwoHeads(), file, tiny.SHAPE, exporter="default", output_names=["scores", "shares"]
    ),
    "dropping.onnx": lambda file: write_training(Dropping(), file),
    "normalising.onnx": lambda file: write_training(tiny.network(), file),
    "fixed.pt2": lambda file: torch.export.save(torch.export.export(tiny.image_model(), (zeros(4),)), file),
    "no-operators.onnx": lambda file: write_empty(file),
}


def zeros(items: int) -> Tensor:
    return torch.zeros(items, *tiny.SHAPE)


def write_bytes(file: Path) -> None:
    with quiet():
        torch.onnx.export(
            of_bytes().eval(),
            (torch.zeros(2, *tiny.SHAPE, dtype=torch.uint8),),
            str(file),
            dynamo=False,
            dynamic_axes={"image": {0: "item"}},
            input_names=["image"],
            output_names=["logits"],
        )


def write_node(file: Path, kind: str, domain: str = "") -> None:
    """A file whose one operator is that, named the/node."""
    node = helper.make_node(kind, ["input", *([] if domain else ["scale"])], ["output"], name="the/node", domain=domain)
    model = model_of([node], {} if domain else {"scale": np.float32(1)}, ["item", *tiny.SHAPE])
    if domain:
        model.opset_import.append(helper.make_opsetid(domain, 1))
    onnx.save(model, file)


def write_brain_floats(file: Path) -> None:
    nodes = [
        helper.make_node("Cast", ["input"], ["short"], to=TensorProto.BFLOAT16),
        helper.make_node("Relu", ["short"], ["positive"], name="the/node"),
        helper.make_node("Cast", ["positive"], ["long"], to=TensorProto.FLOAT),
        helper.make_node("Flatten", ["long"], ["output"]),
    ]
    onnx.save(model_of(nodes, {}, ["item", *tiny.SHAPE]), file)


def write_empty(file: Path) -> None:
    model = model_of([], {}, ["item", *tiny.SHAPE], output="input")
    onnx.save(model, file)


def write_training(model: nn.Module, file: Path) -> None:
    """The legacy export of a model that was left in training mode."""
    with quiet():
        torch.onnx.export(
            model.train(),
            (torch.rand(4, *tiny.SHAPE),),
            str(file),
            dynamo=False,
            training=torch.onnx.TrainingMode.TRAINING,
            do_constant_folding=False,
            dynamic_axes={"input": {0: "item"}},
            input_names=["input"],
            output_names=["logits"],
        )


def unit(items: int = ITEMS, seed: int = 7) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    return tiny.data(items, seed)


def as_bytes(images: NDArray[np.float32]) -> NDArray[np.uint8]:
    return np.rint(images * 16 * BYTES_A_STEP).astype(np.uint8)


def write_npz(file: Path, change: Callable[..., Mapping[str, Any]], items: int = ITEMS, seed: int = 7) -> Path:
    np.savez(file, **change(*unit(items, seed)))
    return file


def off_the_grid(values: NDArray[np.float32], labels: NDArray[np.int64]) -> dict[str, Any]:
    """Vectors of any values, as they are where nothing was counted or rounded."""
    moved = values + np.random.default_rng(0).uniform(0, 0.03, values.shape).astype(np.float32)
    return {"images": moved.clip(0, 1), "labels": labels}


def with_nan(images: NDArray[np.float32], labels: NDArray[np.int64]) -> Mapping[str, Any]:
    spoiled = images.copy()
    spoiled[5, 0, 0, 0] = np.nan
    return {"images": spoiled, "labels": labels}


def write_idx(folder: Path) -> Path:
    folder.mkdir()
    images, labels = unit()
    for name, array in (("images-idx3", as_bytes(images)[:, 0]), ("labels-idx1", labels.astype(np.uint8))):
        head = struct.pack(f">HBB{array.ndim}I", 0, 0x08, array.ndim, *array.shape)
        (folder / f"train-{name}-ubyte").write_bytes(head + array.tobytes())
    return folder


def write_folders(folder: Path, items: int = ITEMS, names: tuple[str, ...] = CLASS_NAMES) -> Path:
    images, labels = unit(items)
    for item, (image, number) in enumerate(zip(as_bytes(images), labels, strict=True)):
        save(folder / names[number] / f"{item:03d}.png", image[0])
    return folder


def with_one(folder: Path, place: str, values: NDArray[Any]) -> Path:
    """Class folders with one more picture."""
    save(write_folders(folder, items=60) / place, values)
    return folder


GREY = np.full((8, 8), 100, dtype=np.uint8)
SEE_THROUGH = np.full((8, 8, 4), 100, dtype=np.uint8)

DATA: Mapping[str, Callable[[Path], object]] = {
    "unit.npz": lambda file: write_npz(file, lambda x, y: {"images": x, "labels": y}),
    "last.npz": lambda file: write_npz(file, lambda x, y: {"images": x.transpose(0, 2, 3, 1), "labels": y}),
    "bytes.npz": lambda file: write_npz(file, lambda x, y: {"images": as_bytes(x), "labels": y}),
    "bytes-last.npz": lambda file: write_npz(
        file, lambda x, y: {"images": as_bytes(x).transpose(0, 2, 3, 1), "labels": y}
    ),
    "normalised.npz": lambda file: write_npz(file, lambda x, y: {"images": (x - 0.5) / 0.25, "labels": y}),
    "wide.npz": lambda file: write_npz(file, lambda x, y: {"images": x * np.float32(240), "labels": y}),
    "vectors.npz": lambda file: np.savez(file, **off_the_grid(*tiny.vectors(ITEMS))),
    "unseen.npz": lambda file: write_npz(file, lambda x, y: {"images": x, "labels": y}, items=120, seed=8),
    "idx": write_idx,
    "pictures": write_folders,
    # Broken.
    "few.npz": lambda file: write_npz(file, lambda x, y: {"images": x, "labels": y}, items=60),
    "off-by-one.npz": lambda file: write_npz(file, lambda x, y: {"images": x, "labels": (y + 1) % 3}),
    "from-one.npz": lambda file: write_npz(file, lambda x, y: {"images": x, "labels": y + 1}),
    "names.npz": lambda file: write_npz(file, lambda x, y: {"images": x, "labels": np.asarray(CLASS_NAMES)[y]}),
    "no-labels.npz": lambda file: write_npz(file, lambda x, y: {"images": x}),
    "other-names.npz": lambda file: write_npz(file, lambda x, y: {"x": x, "y": y}),
    "nan.npz": lambda file: write_npz(file, with_nan),
    "colour.npz": lambda file: write_npz(file, lambda x, y: {"images": np.repeat(x, 3, axis=1), "labels": y}),
    "half-labels.npz": lambda file: write_npz(file, lambda x, y: {"images": x, "labels": y[:300]}),
    "four-folders": lambda folder: with_one(folder, "notes/a.png", GREY),
    "see-through": lambda folder: with_one(folder, "x/a.png", SEE_THROUGH),
    "other-size": lambda folder: with_one(folder, "x/a.png", GREY[:, :6]),
    "notes.txt": lambda file: file.write_text("no data"),
}


def recipe(detectors: str, attack: str = "fgsm", budget: float | str = 0.125, adaptive: str = "[0.125]") -> str:
    return f'{detectors}\n[[attack]]\nname = "{attack}"\nbudget = {budget}\n[adaptive]\nbudgets = {adaptive}\n'


def detector(name: str, settings: str = "", program: str = "screen") -> str:
    return f'[[detector]]\nname = "{name}"\nprogram = "{program}"\n{settings}\n'


MAHALANOBIS = detector("mahalanobis")
RECIPES: Mapping[str, str] = {
    "small.toml": recipe(MAHALANOBIS),
    # Broken.
    "layer.toml": recipe(detector("attribute_steering", 'steered = ["layer4"]', "interpret")),
    "detector.toml": recipe(detector("mahalanobi")),
    "attack.toml": recipe(MAHALANOBIS, "pdg"),
    "no-adaptive.toml": MAHALANOBIS,
    "fine-budget.toml": recipe(MAHALANOBIS, budget=0.01),
    "range-from-below.toml": recipe(MAHALANOBIS, budget="[0.01, 0.25]"),
    "large-budget.toml": recipe(MAHALANOBIS, budget=8),
    "fine-adaptive.toml": recipe(MAHALANOBIS, adaptive="[0.125, 0.01]"),
    "two-gradients.toml": recipe(
        detector("saliency_classifier", 'of = "logit"', "interpret") + detector("gradient_direction", "", "interpret")
    ),
}


def written(folder: Path, name: str) -> str:
    """The path of a file above, written when it is first asked for; other names are as they are."""
    file = folder / name
    if not file.exists():
        if write := MODELS.get(name) or DATA.get(name):
            write(file)
        elif name in RECIPES:
            file.write_text(RECIPES[name])
        else:
            return name
    return str(file)
