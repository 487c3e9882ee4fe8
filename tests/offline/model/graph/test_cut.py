"""The model cut in two is the model, wherever it is cut."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from guard.errors import ModelError
from guard.offline.model.classifier import Classifier
from guard.offline.model.open_model import Source, open_model
from tests import networks
from tests.offline import tiny


class Viewed(nn.Module):
    """Flattens by the number of items, which it reads off its input."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Conv2d(1, 4, 3, padding=1), nn.Conv2d(4, 4, 3, stride=2, padding=1)
        self.last = nn.Linear(64, 3)

    def forward(self, images: Tensor) -> Tensor:
        items = images.shape[0]
        found: Tensor = self.last(self.second(self.first(images).relu()).relu().view(items, -1))
        return found


def viewed() -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return Viewed().eval()


def resnet20() -> nn.Module:
    return networks.resnet20().eval()


def classifier_of(name: str) -> Classifier:
    if name == "vectors":
        return tiny.vector_classifier()
    return open_model(Source(f"{__name__}:{name}", (3, 32, 32) if name == "resnet20" else (1, 8, 8)))


@pytest.mark.parametrize("name", ["viewed", "resnet20", "vectors"])
def test_the_halves_make_the_whole(name: str) -> None:
    classifier = classifier_of(name)
    assert classifier.taps
    for items in (1, 5):
        images = torch.rand(items, *classifier.item_shape, generator=torch.Generator().manual_seed(items))
        with torch.no_grad():
            expected = classifier(images)
            for tap in classifier.taps:
                layer = classifier.before(tap.name)(images)
                torch.testing.assert_close(layer, classifier.opened([tap.name])(images)[1])
                found = classifier.after(tap.name)(layer, layer)
                torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)


class Doubled(nn.Module):
    def forward(self, layer: Tensor, companion: Tensor) -> Tensor:
        return layer * companion.mean()


def test_a_module_between_stands_for_its_layer() -> None:
    classifier = classifier_of("viewed")
    first, last = classifier.taps[0].name, classifier.taps[-1].name
    assert first != last
    images = torch.rand(3, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        layer = classifier.before(first)(images)
        found = classifier.after(first, {last: Doubled()})(layer, torch.full((3,), 2.0))
        expected = classifier.after(last)(2.0 * classifier.before(last)(images), layer)
    torch.testing.assert_close(found, expected)


def test_a_tap_that_is_not_there() -> None:
    with pytest.raises(ModelError, match="no tap 'nowhere'"):
        classifier_of("vectors").after("nowhere")
