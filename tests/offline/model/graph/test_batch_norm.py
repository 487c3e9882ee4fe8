"""Folding batch normalisation changes no output and leaves none behind."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, fx, nn

from guard.offline.model.graph.batch_norm import fold_batch_norm
from tests.networks import frozen, graph_of, resnet20

aten = torch.ops.aten


class SharedConvolution(nn.Module):
    """Its convolution is read by the normalisation and by somebody else."""

    def __init__(self) -> None:
        super().__init__()
        self.convolution, self.norm = nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)

    def forward(self, images: Tensor) -> Tensor:
        features = self.convolution(images)
        return torch.add(features, self.norm(features))


CASES = {
    "convolution": (nn.Sequential(nn.Conv2d(3, 4, 3, bias=False), nn.BatchNorm2d(4), nn.ReLU()), (3, 6, 6)),
    "biased, grouped": (nn.Sequential(nn.Conv2d(4, 6, 3, groups=2), nn.BatchNorm2d(6)), (4, 6, 6)),
    "not affine": (nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4, affine=False)), (3, 6, 6)),
    "in front": (nn.Sequential(nn.BatchNorm2d(3), nn.ReLU(), nn.Conv2d(3, 4, 3)), (3, 6, 6)),
    "shared": (SharedConvolution(), (3, 6, 6)),
    "linear": (nn.Sequential(nn.Linear(5, 4), nn.BatchNorm1d(4), nn.ReLU(), nn.BatchNorm1d(4)), (5,)),
    "tokens": (nn.Sequential(nn.Linear(5, 5), nn.BatchNorm1d(3)), (3, 5)),
}


def count(graph: fx.GraphModule, operator: object) -> int:
    return sum(node.target is operator for node in graph.graph.nodes)


@pytest.mark.parametrize("name", CASES)
def test_folded_equals_original(name: str) -> None:
    model, shape = CASES[name]
    frozen(model)
    inputs = torch.randn(4, *shape, generator=torch.Generator().manual_seed(0))
    folded = fold_batch_norm(graph_of(model, inputs))
    assert count(folded, aten.batch_norm.default) == 0
    torch.testing.assert_close(folded(inputs), model(inputs), rtol=1e-5, atol=1e-5)


def test_a_residual_network_folds_completely() -> None:
    graph = graph_of(resnet20(), torch.zeros(1, 3, 32, 32))
    folded = fold_batch_norm(graph)
    assert count(folded, aten.conv2d.default) == count(graph, aten.conv2d.default) == 21


def test_the_original_is_left_as_it_was() -> None:
    model = frozen(nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)))
    inputs = torch.rand(2, 3, 6, 6)
    graph = graph_of(model, inputs)
    before = graph(inputs)
    fold_batch_norm(graph)
    assert torch.equal(graph(inputs), before)
    assert count(graph, aten.batch_norm.default) == 1


def test_layers_keep_their_names_and_one_tensor_stays_one_tensor() -> None:
    model = frozen(nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(inplace=True)))
    inputs = torch.rand(2, 3, 6, 6)
    folded = fold_batch_norm(graph_of(model, inputs))
    names = [node.name for node in folded.graph.nodes if node.op == "call_function"]
    assert names == ["conv2d", "relu_"]
    assert isinstance(folded(inputs), Tensor)
