"""Stage outputs and the penultimate layer are found by themselves."""

from __future__ import annotations

from pathlib import Path
from typing import cast

import onnxruntime
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from guard.errors import ModelError
from guard.offline.model.classifier import Classifier
from guard.offline.model.graph.cut import after
from guard.offline.model.onnx_export.export import lower
from guard.offline.model.open_model import Source, open_model
from tests import networks, onnx_files
from tests.offline import tiny


def perceptron() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Linear(12, 8), nn.ReLU(), nn.Dropout(0.5), nn.Linear(8, 6), nn.SiLU(), nn.Linear(6, 3)
    ).eval()


def linear() -> nn.Module:
    return nn.Linear(12, 3)


def opened(model: str, shape: tuple[int, ...]) -> Classifier:
    with torch.random.fork_rng():
        return open_model(Source(model, shape))


def shapes(classifier: Classifier, shape: tuple[int, ...]) -> list[tuple[int, ...]]:
    """Of what each tap says about two items."""
    graph = classifier.opened([tap.name for tap in classifier.taps])
    with torch.no_grad():
        outputs = graph(torch.rand(2, *shape, generator=torch.Generator().manual_seed(0)))
    return [tuple(value.shape[1:]) for value in outputs]


RESNET = ("tests.networks:resnet20", (3, 32, 32))
MOBILENET = ("tests.networks:mobilenet", (3, 32, 32))
SMALL = ("tests.networks:small_cnn", (1, 8, 8))
VECTORS = (f"{__name__}:perceptron", (12,))
LINEAR = (f"{__name__}:linear", (12,))
NETWORKS = pytest.mark.parametrize(
    ("model", "shape"),
    [RESNET, MOBILENET, SMALL, VECTORS, LINEAR],
    ids=["resnet20", "mobilenet", "small_cnn", "perceptron", "linear"],
)


@pytest.mark.parametrize(
    ("network", "expected"),
    [
        (RESNET, [(10,), (16, 32, 32), (32, 16, 16), (64,)]),
        (SMALL, [(10,), (32, 8, 8), (512,)]),
        (VECTORS, [(3,), (8,), (6,)]),
        (LINEAR, [(3,), (12,)]),
    ],
    ids=["resnet20", "small_cnn", "perceptron", "linear"],
)
def test_stage_outputs_and_the_penultimate(
    network: tuple[str, tuple[int, ...]], expected: list[tuple[int, ...]]
) -> None:
    classifier = opened(*network)
    found = shapes(classifier, network[1])
    assert found[0] == expected[0], "the logits come first"
    assert found[1:] == expected[1:]


def test_a_mobilenets_stages() -> None:
    found = shapes(opened(*MOBILENET), MOBILENET[1])
    resolutions = [shape[1] for shape in found[1:] if len(shape) == 3]
    assert resolutions == sorted(set(resolutions), reverse=True), "each resolution once, the finest first"
    assert len(resolutions) >= 2
    assert found[-1] == (96,)


@NETWORKS
def test_tapping_changes_no_answer(model: str, shape: tuple[int, ...]) -> None:
    classifier = opened(model, shape)
    items = torch.rand(3, *shape, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        logits, *latents = classifier.opened([tap.name for tap in classifier.taps])(items)
        assert torch.equal(logits, classifier(items))
    assert len(latents) == len(classifier.taps)


@NETWORKS
def test_the_penultimate_is_what_the_logits_are_a_linear_map_of(model: str, shape: tuple[int, ...]) -> None:
    classifier = opened(model, shape)
    items = torch.rand(700, *shape, generator=torch.Generator().manual_seed(2))
    with torch.no_grad():
        parts = [classifier.opened([classifier.penultimate])(part) for part in items.split(100)]
    logits, latent = (torch.cat([part[i] for part in parts]).double() for i in (0, 1))
    latent = torch.cat([latent.flatten(1), torch.ones(len(latent), 1)], dim=1)
    solution = torch.linalg.lstsq(latent, logits, driver="gelsd").solution
    assert float((latent @ solution - logits).abs().max()) < 1e-3 * float(logits.std())


@NETWORKS
def test_names_are_different_and_can_be_asked_for(model: str, shape: tuple[int, ...]) -> None:
    classifier = opened(model, shape)
    names = [tap.name for tap in classifier.taps]
    assert len(set(names)) == len(names) > 0
    assert classifier.penultimate == names[-1]
    with pytest.raises(ModelError, match=f"no tap 'nowhere'; it has: {names[0]}"):
        classifier.opened(["nowhere"])


class Branches(nn.Module):
    """Two branches that only meet at a sum: inside them there is no cut."""

    def __init__(self) -> None:
        super().__init__()
        self.left, self.right, self.last = nn.Linear(12, 5), nn.Linear(12, 5), nn.Linear(5, 3)

    def forward(self, items: Tensor) -> Tensor:
        meeting = self.left(items).relu() + self.right(items).relu()
        result: Tensor = self.last(meeting)
        return result


def branches() -> nn.Module:
    return Branches()


def test_a_branch_is_no_tap_but_where_branches_meet_is() -> None:
    classifier = opened(f"{__name__}:branches", (12,))
    assert shapes(classifier, (12,)) == [(3,), (5,)]


class Downsampled(nn.Module):
    """A convolution, channels normalised last as in ConvNeXt, another convolution, and a linear layer."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first, self.norm, self.second = nn.Conv2d(1, 6, 2, 2), nn.LayerNorm(6), nn.Conv2d(6, 8, 2, 2)
        self.last = nn.Linear(8, 3)

    def forward(self, images: Tensor) -> Tensor:
        normal = self.norm(self.first(images).permute(0, 2, 3, 1)).permute(0, 3, 1, 2)
        return cast(Tensor, self.last(self.second(normal).relu().mean((2, 3))))


def downsampled() -> nn.Module:
    return Downsampled().eval()


class Windowed(nn.Module):
    """Swin's order of axes: patches, maps with channels last all the way, four neighbours merged, a linear layer."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first, self.norm, self.mixed = nn.Conv2d(1, 6, 2, 2), nn.LayerNorm(6), nn.Linear(6, 6)
        self.merged, self.last = nn.Linear(24, 10), nn.Linear(10, 3)

    def forward(self, images: Tensor) -> Tensor:
        maps = self.first(images).permute(0, 2, 3, 1)
        maps = maps + functional.gelu(self.mixed(self.norm(maps)))
        places = [maps[:, i::2, j::2] for j in (0, 1) for i in (0, 1)]
        return cast(Tensor, self.last(functional.gelu(self.merged(torch.cat(places, -1))).mean((1, 2))))


def windowed() -> Windowed:
    return Windowed().eval()


def test_no_tap_averages_what_was_brought_to_the_mean_zero() -> None:
    """The mean over normalised channels is what rounding left; 4 x 4 places of 6 channels are read before or after."""
    found = shapes(opened(f"{__name__}:downsampled", (1, 8, 8)), (1, 8, 8))
    assert (4, 4, 6) not in found
    assert (6, 4, 4) in found


def test_maps_with_channels_last_are_read_with_channels_second() -> None:
    classifier = opened(f"{__name__}:windowed", (1, 8, 8))
    images = torch.rand(3, 1, 8, 8)
    network = windowed()
    maps = network.first(images).permute(0, 2, 3, 1)
    stage = maps + functional.gelu(network.mixed(network.norm(maps)))
    logits, *layers = classifier.opened([tap.name for tap in classifier.taps])(images)
    assert [tuple(layer.shape[1:]) for layer in layers] == [(6, 4, 4), (24, 2, 2), (10,)]
    torch.testing.assert_close(layers[0], stage.permute(0, 3, 1, 2))
    torch.testing.assert_close(logits, network(images))
    for tap, layer in zip(classifier.taps, layers, strict=True):
        torch.testing.assert_close(after(classifier.graph, tap.node, {})(layer, layer), logits)


def test_the_test_networks_are_what_they_say() -> None:
    assert sum(parameter.numel() for parameter in networks.resnet20().parameters()) > 250_000


class Flattened(nn.Module):
    """Reads its input's number of items at the end, as much older code does."""

    def __init__(self) -> None:
        super().__init__()
        self.inner, self.head = tiny.image_model()[:-2], tiny.image_model()[-1]

    def forward(self, images: Tensor) -> Tensor:
        return cast(Tensor, self.head(self.inner(images).view(images.shape[0], -1)))


def flattened() -> nn.Module:
    return Flattened()


def test_reading_the_number_of_items_is_no_way_around_a_layer() -> None:
    found = open_model(Source(f"{__name__}:flattened", tiny.SHAPE)).taps
    assert [tap.node for tap in found][:-1] == [tap.node for tap in tiny.image_classifier().taps][:-1]


class TimeInFront(nn.Module):
    """A recurrent network that works with time in front of the items, and so does the linear layer behind it."""

    def __init__(self, layer: type[nn.GRU | nn.LSTM]) -> None:
        super().__init__()
        self.layer, self.hidden, self.last = layer(4, 5), nn.Linear(5, 6), nn.Linear(6, 3)

    def forward(self, series: Tensor) -> Tensor:
        states = self.layer(series.transpose(0, 1))[0]
        logits: Tensor = self.last(self.hidden(states).relu().mean(dim=0))
        return logits


@pytest.mark.parametrize("layer", [nn.GRU, nn.LSTM])
def test_taps_of_a_recurrent_file_that_is_fixed_to_one_item_have_a_row_for_each_item(
    layer: type[nn.GRU | nn.LSTM], tmp_path: Path
) -> None:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        network = TimeInFront(layer).eval()
    file = onnx_files.write_onnx(network, tmp_path / "one.onnx", (3, 4), batch=1)  # [time, channel] on its wire
    classifier = open_model(Source(str(file), (4, 3)))
    names = [tap.name for tap in classifier.taps]
    items = torch.rand(5, 4, 3, generator=torch.Generator().manual_seed(1))
    written = lower(
        classifier.opened(names), items, input_name="items", output_names=[f"o{i}" for i in range(len(names) + 1)]
    )
    found = onnxruntime.InferenceSession(written.SerializeToString()).run(None, {"items": items.numpy()})
    with torch.no_grad():
        wanted = [network(items.transpose(1, 2)), *classifier.opened(names)(items)[1:]]
    assert len(found) > 1
    for ours, theirs in zip(found, wanted, strict=True):
        torch.testing.assert_close(torch.from_numpy(ours), theirs)
