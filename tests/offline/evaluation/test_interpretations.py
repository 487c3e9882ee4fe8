"""Interpretations against captum, and against what is known of linear parts in closed form."""

from __future__ import annotations

import captum.attr
import pytest
import torch
from torch import nn

from guard.offline.evaluation.interpretations import (
    concept_direction,
    concept_sensitivity,
    grad_cam,
    last_layer,
    nearest_prototypes,
)
from guard.offline.model.open_model import Source, open_model
from tests.offline import tiny


@pytest.mark.parametrize("kind", ["images", "series"])
def test_grad_cam_is_captums(kind: str) -> None:
    network, classifier, items = {
        "images": (tiny.image_model(), tiny.image_classifier(), tiny.data),
        "series": (tiny.series_model(), tiny.series_classifier(), tiny.series),
    }[kind]
    assert isinstance(network, nn.Sequential)
    images = torch.from_numpy(items(12, 5)[0])
    classes = torch.arange(12) % tiny.CLASSES
    layer = captum.attr.LayerGradCam(network, network[5])  # the last ReLU that is a map
    coarse = layer.attribute(images, target=classes, relu_attributions=True)
    assert isinstance(coarse, torch.Tensor)
    mode = "bilinear" if kind == "images" else "linear"
    wanted = captum.attr.LayerAttribution.interpolate(coarse, tuple(images.shape[2:]), mode)
    found = grad_cam(classifier, images, classes)
    assert found is not None
    torch.testing.assert_close(found, wanted[:, 0], rtol=1e-4, atol=1e-6)
    assert float(found.max()) > 0


class Stepwise(nn.Module):
    """A network of series whose only map is [item, time, channel], or [time, item, channel]."""

    def __init__(self, order: tuple[int, int, int]) -> None:
        super().__init__()
        self.first, self.last, self.order = nn.Linear(2, 8), nn.Linear(8, 3), order
        torch.nn.init.constant_(self.first.weight, 1.0)
        torch.nn.init.constant_(self.first.bias, -1.5)  # only where both channels are high
        with torch.no_grad():
            self.last.weight.copy_(torch.tensor([1.0, 2.0, -1.0])[:, None].expand(3, 8))

    def forward(self, series: torch.Tensor) -> torch.Tensor:
        found: torch.Tensor = self.last(torch.relu(self.first(series.permute(self.order))).mean(self.order.index(2)))
        return found


def items_first() -> nn.Module:
    return Stepwise((0, 2, 1)).eval()


def time_first() -> nn.Module:
    return Stepwise((2, 0, 1)).eval()


def test_grad_cam_of_layers_with_channels_last_shows_the_time_at_which_something_is() -> None:
    classifier = open_model(Source(f"{__name__}:items_first", (2, 40)))
    series = torch.full((1, 2, 40), 0.5)
    series[0, :, 25:28] = 1.0
    for named in (0, 1):
        found = grad_cam(classifier, series, torch.tensor([named]))
        assert found is not None
        assert found.shape == (1, 40)
        assert set(found[0].nonzero().flatten().tolist()) == {25, 26, 27}


def test_a_map_with_time_in_front_is_read_by_nobody() -> None:
    classifier = open_model(Source(f"{__name__}:time_first", (2, 40)))
    assert grad_cam(classifier, torch.rand(3, 2, 40), torch.zeros(3, dtype=torch.long)) is None


def test_a_model_of_vectors_looks_nowhere() -> None:
    vectors = torch.from_numpy(tiny.vectors(3)[0])
    assert grad_cam(tiny.vector_classifier(), vectors, torch.zeros(3, dtype=torch.long)) is None


def test_the_nearest_prototype_is_the_nearest() -> None:
    classifier, images = tiny.image_classifier(), torch.from_numpy(tiny.data(40, 6)[0])
    layer = last_layer(classifier, images)
    found = nearest_prototypes(layer, layer, count=2)
    assert found[:, 0].tolist() == list(range(40)), "each is its own nearest"
    apart = (layer[:, None] - layer[None]).square().sum(dim=2).fill_diagonal_(float("inf"))
    torch.testing.assert_close(found[:, 1], apart.argmin(dim=1))


def test_a_concept_that_shifts_one_feature_points_along_it() -> None:
    generator = torch.Generator().manual_seed(0)
    others, examples = torch.randn((2, 500, 6), generator=generator).double()
    examples[:, 4] += 3.0
    direction = concept_direction(examples, others)
    assert float(direction.norm()) == pytest.approx(1.0)
    assert float(direction[4]) > 0.99


def test_sensitivity_to_a_concept_is_the_weight_along_it_where_the_rest_is_linear() -> None:
    classifier, network = tiny.image_classifier(), tiny.image_model()
    assert isinstance(network, nn.Sequential)
    images, classes = torch.from_numpy(tiny.data(6, 7)[0]), torch.tensor([0, 1, 2, 0, 1, 2])
    direction = torch.nn.functional.normalize(torch.randn(16, generator=torch.Generator().manual_seed(1)), dim=0)
    found = concept_sensitivity(classifier, images, classes, tap=classifier.penultimate, direction=direction)
    torch.testing.assert_close(found, (network[8].weight @ direction)[classes], rtol=1e-4, atol=1e-5)


def test_sensitivity_over_a_map_moves_every_place() -> None:
    classifier, network = tiny.image_classifier(), tiny.image_model()
    assert isinstance(network, nn.Sequential)
    images, classes = torch.from_numpy(tiny.data(6, 8)[0]).double(), torch.tensor([0, 1, 2, 0, 1, 2])
    direction = torch.randn(8, generator=torch.Generator().manual_seed(2)).double()
    rest = network[3:]
    maps = network[:3](images.float())
    step = 1e-3
    moved = [rest(maps + sign * step * direction.float()[:, None, None]) for sign in (1, -1)]
    wanted = ((moved[0] - moved[1]) / (2 * step)).gather(1, classes[:, None])[:, 0]
    found = concept_sensitivity(
        classifier, images.float(), classes, tap=classifier.taps[0].name, direction=direction.float()
    )
    torch.testing.assert_close(found, wanted, rtol=0.05, atol=0.05)
