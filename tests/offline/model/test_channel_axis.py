"""Channels are found wherever a network keeps them, and what reads a layer finds them second."""

from __future__ import annotations

from collections.abc import Callable
from typing import cast

import pytest
import torch
from torch import Tensor, nn

from guard.offline.evidence.gather import Gather
from guard.offline.evidence.kinds.plain import Latent
from guard.offline.model.channel_axis import channel_axes
from guard.offline.model.classifier import Classifier
from guard.offline.model.graph.cut import after
from guard.offline.model.open_model import Source, open_model

CHANNELS, SIDE = 6, 8


class Kept(nn.Module):
    """A convolution, layers that keep or move its channels, and a linear layer of their mean over places."""

    def __init__(self, layers: Callable[[Kept, Tensor], Tensor], places: tuple[int, ...], width: int) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first, self.mix, self.norm = (
            nn.Conv2d(3, CHANNELS, 1),
            nn.Linear(CHANNELS, CHANNELS),
            nn.LayerNorm(CHANNELS),
        )
        self.across, self.gate, self.last = nn.Linear(SIDE, SIDE), nn.Linear(CHANNELS, CHANNELS), nn.Linear(width, 4)
        self.layers, self.places = layers, places

    def forward(self, images: Tensor) -> Tensor:
        return cast(Tensor, self.last(self.layers(self, self.first(images)).mean(self.places)))


def windowed(_: Kept, x: Tensor) -> Tensor:
    """Four windows of 16 places, with channels last, and a residual inside."""
    x = x.reshape(-1, CHANNELS, 2, 4, 2, 4).permute(0, 2, 4, 3, 5, 1).reshape(-1, 4, 16, CHANNELS)
    return x + torch.tanh(x)


def gated(net: Kept, x: Tensor) -> Tensor:
    x = x.permute(0, 2, 3, 1)
    return torch.sigmoid(net.gate(x.mean((1, 2))))[:, None, None, :] * x


def flat_linear(net: Kept, x: Tensor) -> Tensor:
    """A linear layer over channels, written as a product of matrices."""
    x = x.permute(0, 2, 3, 1)
    return torch.relu(net.mix(x.reshape(-1, CHANNELS)).reshape(-1, SIDE, SIDE, CHANNELS))


CASES: dict[str, tuple[Callable[[Kept, Tensor], Tensor], int, int]] = {
    # what is done, the channels' axis of what comes out, and of how many axes it is
    "convolution": (lambda _, x: torch.relu(x), 1, 4),
    "turned": (lambda net, x: torch.relu(net.mix(x.permute(0, 2, 3, 1))), 3, 4),
    "turned by names from behind": (lambda net, x: torch.relu(net.mix(x.permute(0, -2, -1, -3))), 3, 4),
    "turned by two exchanges": (lambda net, x: torch.relu(net.mix(x.transpose(1, 3))), 3, 4),
    "and back": (lambda net, x: torch.relu(net.mix(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)), 1, 4),
    "normalised over the width": (lambda net, x: torch.relu(net.across(x)), 1, 4),
    "windows": (windowed, 3, 4),
    "a gate first": (gated, 3, 4),
    "a product of matrices": (flat_linear, 3, 4),
    "tokens": (lambda net, x: torch.relu(net.norm(x.flatten(2).transpose(1, 2))), 2, 3),
    "split and joined": (lambda _, x: torch.cat([part.tanh() for part in x.chunk(2, 1)], 1), 1, 4),
}


def opened(name: str) -> tuple[Kept, Classifier]:
    layers, axis, rank = CASES[name]
    places = tuple(place for place in range(1, rank) if place != axis)
    network = Kept(layers, places, CHANNELS).eval()
    globals()["network"] = lambda: network
    return network, open_model(Source(f"{__name__}:network", (3, SIDE, SIDE)))


@pytest.mark.parametrize("name", CASES)
def test_the_axis_of_the_channels(name: str) -> None:
    axis = CASES[name][1]
    network, classifier = opened(name)
    axes = channel_axes(classifier.graph.graph)
    (last,) = [
        node for node in axes if node.target is torch.ops.aten.mean.dim and node.args[1] == list(network.places)
    ][-1:]
    assert axes[last.all_input_nodes[0]] == axis
    assert axes[last] == 1


@pytest.mark.parametrize("name", CASES)
def test_layers_are_read_with_channels_second(name: str) -> None:
    network, classifier = opened(name)
    images = torch.rand(2, 3, SIDE, SIDE, generator=torch.Generator().manual_seed(0))
    logits, *layers = classifier.opened([tap.name for tap in classifier.taps])(images)
    torch.testing.assert_close(logits, network(images))
    assert all(layer.shape[1] == CHANNELS for layer in layers), [layer.shape for layer in layers]
    for tap, layer in zip(classifier.taps, layers, strict=True):
        torch.testing.assert_close(after(classifier.graph, tap.node, {})(layer, layer), logits)


class Bagged(nn.Module):
    """A network of patches, whose answers are averaged: in between the first axis counts patches, and not items."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Conv2d(3, 5, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten())
        self.hidden, self.last = nn.Linear(5, 6), nn.Linear(6, 3)

    def forward(self, images: Tensor) -> Tensor:
        patches = images.reshape(-1, 3, 2, 4, 2, 4).permute(0, 2, 4, 1, 3, 5).reshape(-1, 3, 4, 4)
        return cast(Tensor, self.last(torch.relu(self.hidden(self.body(patches).reshape(-1, 4, 5).mean(1)))))


def bagged() -> nn.Module:
    return Bagged().eval()


def test_no_tap_has_rows_for_parts_of_items() -> None:
    classifier = open_model(Source(f"{__name__}:bagged", (3, SIDE, SIDE)))
    _, *layers = classifier.opened([tap.name for tap in classifier.taps])(torch.rand(2, 3, SIDE, SIDE))
    assert {len(layer) for layer in layers} == {2}


STEPS = 10


class Stepwise(nn.Module):
    """A network of series whose layers are [item, time, channel], and a linear layer of their mean over time."""

    def __init__(self, body: nn.Module, first: nn.Module | None = None) -> None:
        super().__init__()
        self.first, self.body = first or nn.Identity(), body
        self.hidden, self.last = nn.Linear(CHANNELS, 5), nn.Linear(5, 3)

    def forward(self, series: Tensor) -> Tensor:
        body = self.body(self.first(series).transpose(1, 2))
        layers = body[0] if isinstance(body, tuple) else body
        return cast(Tensor, self.last(torch.relu(self.hidden(layers)).mean(1)))


def encoder() -> nn.Module:
    layer = nn.TransformerEncoderLayer(CHANNELS, 2, 12, batch_first=True)
    return nn.Sequential(nn.Linear(2, CHANNELS), nn.TransformerEncoder(layer, 2, enable_nested_tensor=False))


STEPWISE: dict[str, Callable[[], nn.Module]] = {
    "linear": lambda: Stepwise(nn.Sequential(nn.Linear(2, CHANNELS), nn.ReLU())),
    "transformer": lambda: Stepwise(encoder()),
    "gru": lambda: Stepwise(nn.GRU(2, CHANNELS, batch_first=True)),
    "lstm": lambda: Stepwise(nn.LSTM(2, CHANNELS, batch_first=True)),
    "convolution": lambda: Stepwise(nn.Tanh(), nn.Conv1d(2, CHANNELS, 3, padding=1)),
}


@pytest.mark.filterwarnings("ignore:The tensor attributes")  # torch.export, of recurrent layers
@pytest.mark.parametrize("name", STEPWISE)
def test_layers_of_series_are_averaged_over_time_and_not_over_channels(name: str) -> None:
    torch.manual_seed(0)
    network = STEPWISE[name]().eval()
    globals()["network"] = lambda: network
    classifier = open_model(Source(f"{__name__}:network", (2, STEPS)))
    series = torch.rand(3, 2, STEPS, generator=torch.Generator().manual_seed(1))
    names = [tap.name for tap in classifier.taps]
    logits, *layers = classifier.opened(names)(series)
    torch.testing.assert_close(logits, network(series))
    maps = [layer for layer in layers if layer.ndim == 3]
    assert maps, "there is a map of channels and time"
    assert all(layer.shape[1:] == (CHANNELS, STEPS) for layer in maps), [layer.shape for layer in maps]
    evidence = Gather(classifier, [Latent(name) for name in names])(series)
    body = network.body(network.first(series).transpose(1, 2))
    wanted = (body[0] if isinstance(body, tuple) else body).mean(dim=1)
    assert any(value.shape == wanted.shape and torch.allclose(value, wanted, atol=1e-5) for value in evidence.values())
    for tap, layer in zip(classifier.taps, layers, strict=True):
        torch.testing.assert_close(after(classifier.graph, tap.node, {})(layer, layer), logits)


def test_a_map_is_one_layer_whichever_way_it_is_turned() -> None:
    network = STEPWISE["convolution"]()
    globals()["network"] = lambda: network.eval()
    classifier = open_model(Source(f"{__name__}:network", (2, STEPS)))
    layers = classifier.opened([tap.name for tap in classifier.taps])(torch.rand(1, 2, STEPS))[1:]
    assert sum(layer.ndim == 3 for layer in layers) == 1
