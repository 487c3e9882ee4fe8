"""A model is opened whatever it comes as, or one line says why not."""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from guard.errors import ModelError
from guard.offline.model.classifier import Classifier
from guard.offline.model.open_model import Source, build, open_model
from tests.offline import tiny

SHAPE = (1, 8, 8)


class WithSoftmax(nn.Module):
    def __init__(self, *, label: bool = False) -> None:
        super().__init__()
        self.inner = tiny.image_model()
        self.label = label

    def forward(self, images: Tensor) -> Tensor:
        probabilities: Tensor = self.inner(images).softmax(dim=1)
        return probabilities.argmax(dim=1) if self.label else probabilities


class TwoInputs(nn.Module):
    def forward(self, a: Tensor, b: Tensor) -> Tensor:
        return (a + b).flatten(1)


class TwoOutputs(nn.Module):
    def forward(self, a: Tensor) -> tuple[Tensor, Tensor]:
        return a.flatten(1) * 2, a.flatten(1) * 3


class Named(nn.Module):
    """Takes one tensor and gives it in a dictionary, as Hugging Face's models do."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = tiny.image_model()

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        return {"logits": self.inner(images)}


class PerBatch(nn.Module):
    """One row whatever comes."""

    def __init__(self) -> None:
        super().__init__()
        self.last = nn.Linear(64, 3)

    def forward(self, images: Tensor) -> Tensor:
        result: Tensor = self.last(images.flatten(1).mean(dim=0, keepdim=True))
        return result


class Uncertain(nn.Module):
    """Its path depends on the values: no graph."""

    def forward(self, images: Tensor) -> Tensor:
        return images.flatten(1) if bool(images.sum() > 0) else -images.flatten(1)


def softmax_model() -> nn.Module:
    return WithSoftmax().eval()


def label_model() -> nn.Module:
    return WithSoftmax(label=True).eval()


def two_inputs() -> nn.Module:
    return TwoInputs()


def two_outputs() -> nn.Module:
    return TwoOutputs()


def named_output() -> nn.Module:
    return Named().eval()


def per_batch() -> nn.Module:
    return PerBatch()


def uncertain() -> nn.Module:
    return Uncertain()


def one_class() -> nn.Module:
    return nn.Sequential(nn.Flatten(), nn.Linear(64, 8), nn.ReLU(), nn.Linear(8, 1))


def feature_map() -> nn.Module:
    return nn.Conv2d(1, 3, 3)


def training() -> nn.Module:
    """A model that somebody forgot to put into evaluation mode."""
    model = tiny.network()
    model.load_state_dict(tiny.image_model().state_dict())
    return model.train()


def normalised() -> nn.Module:
    """A model whose wire values are (unit - 0.5) / 0.25."""
    return nn.Sequential(Denormalise(), tiny.image_model()).eval()


class Denormalise(nn.Module):
    def forward(self, wire: Tensor) -> Tensor:
        return wire * 0.25 + 0.5


def not_a_model() -> int:
    return 3


def explodes() -> nn.Module:
    raise RuntimeError("weights not found\nand more")


def from_here(factory: Callable[[], object]) -> Source:
    return Source(f"{__name__}:{factory.__name__}", SHAPE)


def images(items: int = 7) -> Tensor:
    return torch.from_numpy(tiny.data(items, seed=71)[0])


def written(model: nn.Module, file: Path, *, dynamic: bool = True, items: int = 2) -> Path:
    shapes = ({0: torch.export.Dim("item")},) if dynamic else None
    torch.export.save(torch.export.export(model, (torch.zeros(items, *SHAPE),), dynamic_shapes=shapes), file)
    return file


def answers_like(classifier: Classifier, model: nn.Module) -> None:
    with torch.no_grad():
        for items in (1, 2, 7):
            torch.testing.assert_close(classifier(images(items)), model(images(items)), rtol=1e-4, atol=1e-4)


# What opens.


def test_module_and_factory() -> None:
    answers_like(open_model(Source("tests.offline.tiny:image_model", SHAPE)), tiny.image_model())


def test_an_exported_file_is_the_same_model(tmp_path: Path) -> None:
    from_file = open_model(Source(str(written(tiny.image_model(), tmp_path / "m.pt2")), SHAPE))
    answers_like(from_file, tiny.image_model())
    assert from_file.spec.fingerprint == tiny.image_classifier().spec.fingerprint
    assert [tap.name for tap in from_file.taps] == [tap.name for tap in tiny.image_classifier().taps]


def test_what_its_owner_says_of_it_is_kept() -> None:
    source = replace(
        from_here(softmax_model),
        output="probabilities",
        serves="digits:3",
        input_name="x",
        output_name="y",
        labels=("a", "b", "c"),
    )
    spec = open_model(source).spec
    assert (spec.name, spec.version, spec.input.name) == ("digits", "3", "x")
    assert (spec.output.name, spec.output.kind, spec.output.classes, spec.output.labels) == (
        "y",
        "probabilities",
        3,
        ("a", "b", "c"),
    )
    plain = open_model(Source("tests.offline.tiny:image_model", SHAPE)).spec
    assert (plain.name, plain.version, plain.input.name, plain.output.name) == ("model", "", "input", "logits")


@pytest.mark.parametrize(("factory", "output"), [(softmax_model, "probabilities"), (label_model, "label")])
def test_a_final_softmax_or_argmax_is_taken_off(factory: Callable[[], nn.Module], output: str) -> None:
    stripped = open_model(replace(from_here(factory), output=output))
    answers_like(stripped, tiny.image_model())
    assert stripped.spec.fingerprint == tiny.image_classifier().spec.fingerprint


def test_a_softmax_that_nobody_mentioned_is_taken_off_too() -> None:
    """Or an attacker's gradient vanishes, and so does every detector's."""
    answers_like(open_model(from_here(softmax_model)), tiny.image_model())


def test_a_dictionary_of_one_output() -> None:
    answers_like(open_model(from_here(named_output)), tiny.image_model())


def test_training_mode_is_left() -> None:
    classifier = open_model(from_here(training))
    answers_like(classifier, tiny.image_model())
    assert not any(part.training for part in classifier.graph.modules())
    assert not any(parameter.requires_grad for parameter in classifier.graph.parameters())


def test_mean_and_spread_are_the_value_box() -> None:
    """--mean 0.5 --std 0.25 is the box [-2, 2]: unit-space images get the answer that normalised ones get by hand."""
    box = replace(from_here(normalised), low=(-2.0,), high=(2.0,))
    classifier = open_model(box)
    with torch.no_grad():
        by_hand = normalised()((images() - 0.5) / 0.25)
        torch.testing.assert_close(classifier(images()), by_hand, rtol=1e-4, atol=1e-4)
    assert (classifier.spec.input.low, classifier.spec.input.high) == ((-2.0,), (2.0,))


class Sums(nn.Module):
    """[item, channel, height, width] -> sums of the channels and a linear layer on top."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.two = nn.Linear(3, 4), nn.Linear(4, 3)
        torch.nn.init.constant_(self.one.weight, 0.1)
        torch.nn.init.constant_(self.two.weight, 0.1)

    def forward(self, wire: Tensor) -> Tensor:
        result: Tensor = self.two(self.one(wire.sum(dim=(2, 3))).relu())
        return result


def sums() -> nn.Module:
    return Sums()


def test_a_box_for_each_channel() -> None:
    source = Source(f"{__name__}:sums", (3, 4, 4), low=(0.0, -1.0, 2.0), high=(255.0, 1.0, 4.0))
    unit = torch.rand((5, 3, 4, 4), generator=torch.Generator().manual_seed(0))
    wire = unit * torch.tensor([255.0, 2.0, 2.0]).reshape(3, 1, 1) + torch.tensor([0.0, -1.0, 2.0]).reshape(3, 1, 1)
    model = sums()
    classifier = open_model(source)
    weights = dict(model.named_parameters())
    assert weights
    biases = [value for name, value in weights.items() if name.endswith("bias")]
    assert biases
    with torch.no_grad():
        pre = 0.1 * wire.sum(dim=(1, 2, 3))
        slope = classifier(unit)[:, 0] - classifier(torch.zeros_like(unit))[:, 0]
        base = 0.1 * torch.tensor([0.0, -1.0, 2.0]).sum() * 16
        torch.testing.assert_close(slope, 4 * 0.1 * (pre - base), rtol=1e-3, atol=1e-3)


# The fingerprint.


def test_the_fingerprint_changes_with_a_weight_and_with_nothing_else() -> None:
    prints = {open_model(from_here(training)).spec.fingerprint, tiny.image_classifier().spec.fingerprint}
    assert len(prints) == 1
    model = nn.Sequential(*list(training().children()))
    with torch.no_grad():
        next(model.parameters()).view(-1)[0] += 1e-3
    prepared.append(model.eval())
    assert open_model(from_here(changed)).spec.fingerprint not in prints


prepared: list[nn.Module] = []


def changed() -> nn.Module:
    return prepared[-1]


def test_the_fingerprint_knows_the_value_box() -> None:
    source = Source("tests.offline.tiny:image_model", SHAPE)
    assert len({open_model(replace(source, high=(high,))).spec.fingerprint for high in (1.0, 255.0)}) == 2


# What does not open.


@pytest.mark.parametrize(
    ("source", "words"),
    [
        (Source("resnet", SHAPE), "wanted an .onnx file, a .pt2 file"),
        (Source("no_such_module_at_all:make", SHAPE), "cannot be imported"),
        (Source("tests.offline.tiny:nothing", SHAPE), "cannot be imported.*nothing"),
        (Source(":make", SHAPE), "':make'"),
        (Source("model.onnx", SHAPE), "model.onnx does not exist"),
        (Source("no/such/file.pt2", SHAPE), "does not exist"),
        (from_here(not_a_model), "returned int; wanted a torch.nn.Module"),
        (from_here(explodes), "explodes.*weights not found"),
        (from_here(two_inputs), "2 inputs|cannot be exported"),
        (from_here(two_outputs), "gives 2 outputs"),
        (from_here(per_batch), "for 3 items"),
        (from_here(uncertain), "cannot be exported"),
        (replace(from_here(one_class), output="label"), "last operator is aten.linear.default; wanted a sigmoid there"),
        (from_here(feature_map), r"\[3, 3, 6, 6\]"),
        (Source("tests.offline.tiny:image_model", (3, 8, 8)), r"cannot be exported for inputs \[item, 3, 8, 8\]"),
        (Source("tests.offline.tiny:image_model", SHAPE, output="label"), "--output label was given"),
        (Source("tests.offline.tiny:image_model", SHAPE, output="probabilities"), "wanted a softmax"),
    ],
    ids=[
        "no factory", "no module", "nothing in it", "no module name", "onnx", "no file", "no module returned",
        "explodes",
        "two inputs", "two outputs", "one row a batch", "data-dependent", "one class", "feature map", "other items",
        "label without argmax", "probabilities without softmax",
    ],
)  # fmt: skip
def test_what_cannot_be_opened_says_why(source: Source, words: str) -> None:
    with pytest.raises(ModelError, match=words) as caught:
        open_model(source)
    assert "\n" not in str(caught.value)


def test_a_file_for_a_fixed_batch(tmp_path: Path) -> None:
    file = written(tiny.image_model(), tmp_path / "m.pt2", dynamic=False, items=4)
    with pytest.raises(ModelError, match="batches of 4; export it with a dynamic batch axis"):
        open_model(Source(str(file), SHAPE))


def test_a_file_for_other_items(tmp_path: Path) -> None:
    file = written(tiny.image_model(), tmp_path / "m.pt2")
    with pytest.raises(ModelError, match=r"\[1, 8, 8\]; the data's items have shape \[1, 9, 9\]"):
        open_model(Source(str(file), (1, 9, 9)))


@pytest.mark.parametrize("keep", [0, 100, -200])
def test_a_truncated_file(tmp_path: Path, keep: int) -> None:
    file = written(tiny.image_model(), tmp_path / "m.pt2")
    file.write_bytes(file.read_bytes()[:keep])
    with pytest.raises(ModelError, match=r"m\.pt2 is not a torch\.export archive"):
        open_model(Source(str(file), SHAPE))


def test_a_foreign_archive(tmp_path: Path) -> None:
    import zipfile

    with zipfile.ZipFile(tmp_path / "m.pt2", "w") as archive:
        archive.writestr("poem.txt", "roses")
    with pytest.raises(ModelError, match=r"not a torch\.export archive") as caught:
        open_model(Source(str(tmp_path / "m.pt2"), SHAPE))
    assert "\n" not in str(caught.value)


def test_the_factory_s_module_is_found_in_the_current_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "my_only_model_here.py").write_text("from torch import nn\ndef make():\n    return nn.Linear(2, 2)\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [])
    assert isinstance(build("my_only_model_here:make"), nn.Linear)
