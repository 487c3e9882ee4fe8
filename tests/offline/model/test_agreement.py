"""What is opened answers as the model does, with its gradient; each way to miss that is told apart."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from pathlib import Path

import pytest
import torch
from onnx import helper, save_model
from torch import Tensor, fx, nn
from torch.nn import functional

from guard.errors import ModelError
from guard.offline.model.agreement import compared_items, fault_of, response_of
from guard.offline.model.gradient.input_gradient import ADJOINTS, top_class, with_gradient
from guard.offline.model.gradient.tape import from_operand
from guard.offline.model.open_model import Source, open_model
from guard.offline.model.several_outputs import single_path
from guard.value_box import ValueBox
from tests.onnx_files import model_of

Function = Callable[[Tensor], Tensor]
SHAPE = (3, 6, 6)
BOX = ValueBox((0.0,), (1.0,), 3)


class Head(nn.Module):
    """A function of an image's maps, and a linear layer."""

    def __init__(self, function: Function) -> None:
        super().__init__()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            self.first, self.function, self.last = nn.Conv2d(3, 4, 3, 2, bias=False), function, nn.LazyLinear(3)
            with torch.no_grad():
                self(torch.rand(2, *SHAPE))
        self.eval().requires_grad_(False)

    def forward(self, images: Tensor) -> Tensor:
        logits: Tensor = self.last(self.function(self.first(images)).flatten(1))
        return logits


def graph_for(function: Function) -> fx.GraphModule:
    shapes = ({0: torch.export.Dim("item")},)
    return single_path(torch.export.export(Head(function), (torch.rand(2, *SHAPE),), dynamic_shapes=shapes))


MODEL: Function = torch.relu
OTHERS: Mapping[str, tuple[Function, Function, str | None]] = {
    "itself": (MODEL, MODEL, None),
    "the same in other operators": (lambda x: x.clamp_min(0.0), MODEL, None),
    "other answers": (lambda x: x.relu() + 0.01, MODEL, "the model answers otherwise"),
    "another gradient": (lambda x: x.relu().detach() + 0 * x, MODEL, "the model's gradient differs from torch's"),
    "no number": (
        lambda x: x.relu() + torch.where(x == 0, 0.0, 0.0 * x.abs().log()),
        MODEL,
        "the model's gradient is no number where torch's is one",
    ),
    "rounding alone": (lambda x: 1e7 * x + 1 - 1e7 * x, lambda x: 1e7 * x - 1e7 * x + 1, None),
    "an operator without an adjoint": (lambda x: torch.special.entr(x.relu()), MODEL, "special_entr.* has no adjoint"),
}


@pytest.mark.parametrize("name", OTHERS)
def test_a_fault_is_told(name: str) -> None:
    candidate, model, told = OTHERS[name]
    fault = fault_of(graph_for(candidate), graph_for(model), BOX)
    assert (fault is None) if told is None else re.search(told, fault or "")


def test_nothing_is_said_of_a_model_that_is_not_the_same_twice() -> None:
    """That a model draws random numbers is said by `guard check`."""
    assert fault_of(graph_for(MODEL), graph_for(lambda x: x + torch.rand_like(x)), BOX) is None


def test_half_of_the_second_item_is_black() -> None:
    items = compared_items(graph_for(MODEL), ValueBox((-2.0, 0.0, 1.0), (2.0, 1.0, 3.0), 3))
    assert (items[1, :, :, :3] == torch.tensor([-2.0, 0.0, 1.0]).view(3, 1, 1)).all()
    assert (items[1, :, :, 3:] > torch.tensor([-2.0, 0.0, 1.0]).view(3, 1, 1)).all()


def test_a_rule_that_stumbles_over_its_arguments_names_the_operator() -> None:
    def too_few(gradient: Tensor) -> Tensor:
        return gradient

    table = {**ADJOINTS, torch.ops.aten.relu.default: from_operand(too_few)}
    with pytest.raises(ModelError, match=r"aten.relu.default \(relu\) has no adjoint for the arguments"):
        with_gradient(graph_for(MODEL), seed=top_class, adjoints=table)


def test_an_adjoint_that_cannot_be_computed_names_the_operator(monkeypatch: pytest.MonkeyPatch) -> None:
    def of_other_sizes(gradient: Tensor, operand: Tensor) -> Tensor:
        return gradient.reshape(-1, 5) + operand

    monkeypatch.setitem(ADJOINTS, torch.ops.aten.relu.default, from_operand(of_other_sizes))  # type: ignore[arg-type]
    graph = graph_for(MODEL)
    assert "the adjoint of aten.relu.default (relu) cannot be computed" in str(fault_of(graph, graph, BOX))


def test_a_model_that_torch_cannot_differentiate_has_answers() -> None:
    def parts(x: Tensor) -> Tensor:
        left, right = x.chunk(2, 1)
        left.mul_(3.0)
        return torch.cat([left, right], 1)

    graph = graph_for(parts)
    response = response_of(graph, compared_items(graph, BOX))
    assert response is not None
    assert response.gradient is None
    assert fault_of(graph, graph, BOX) is None


def norms(x: Tensor) -> Tensor:
    """Norms and deviations of maps that are 0 where the image is black, or throughout."""
    x = functional.relu(x * torch.tensor([1.0, 1.0, 1.0, 0.0]).view(4, 1, 1))
    unit = functional.normalize(x, dim=1).flatten(1)
    return torch.cat([unit, torch.linalg.vector_norm(x, dim=(2, 3)), x.flatten(2).std(2)], 1)


def factory() -> nn.Module:
    return Head(norms)


def test_norms_of_nothing_send_back_nothing_as_torchs_do() -> None:
    opened = open_model(Source(f"{__name__}:factory", SHAPE)).graph
    images = torch.rand(4, *SHAPE, generator=torch.Generator().manual_seed(1))
    images[1, :, :, :3], images[2], images[3, :2] = 0.0, 0.0, 0.0
    moving = images.clone().requires_grad_()
    (wanted,) = torch.autograd.grad(factory()(moving).max(1).values.sum(), moving)
    (climbed,) = torch.autograd.grad(opened(moving).max(1).values.sum(), moving)
    own = with_gradient(opened, seed=top_class)(images)[-1]
    assert wanted.isfinite().all()
    assert torch.allclose(climbed, wanted, atol=1e-6)
    assert torch.allclose(own, wanted, atol=1e-6)


@pytest.mark.parametrize("ending", ["Sigmoid", "none"])
def test_a_file_whose_last_layer_is_a_vector_has_a_gradient(ending: str, tmp_path: Path) -> None:
    """One number an item for two classes, as a product of [item, feature] with [feature]."""
    generator = torch.Generator().manual_seed(2)
    first, last = torch.randn(6, 5, generator=generator), torch.randn(5, generator=generator)
    nodes = [
        helper.make_node("MatMul", ["input", "first"], ["inner"]),
        helper.make_node("Relu", ["inner"], ["hidden"]),
        helper.make_node("MatMul", ["hidden", "last"], ["score"]),
        helper.make_node("Sigmoid" if ending == "Sigmoid" else "Identity", ["score"], ["logits"]),
    ]
    constants = {"first": first.numpy(), "last": last.numpy()}
    file = tmp_path / "model.onnx"
    save_model(model_of(nodes, constants, ["item", 6], output="logits", output_shape=["item"]), str(file))
    kind = "probabilities" if ending == "Sigmoid" else "logits"
    opened = open_model(Source(str(file), (6,), output=kind)).graph
    items = torch.rand(3, 6, generator=generator)
    logits, own = with_gradient(opened, seed=lambda one: torch.ones_like(one) * torch.tensor([-1.0, 1.0]))(items)
    moving = items.clone().requires_grad_()
    (wanted,) = torch.autograd.grad((torch.relu(moving @ first) @ last).sum(), moving)
    assert torch.allclose(logits[:, 1] - logits[:, 0], torch.relu(items @ first) @ last, atol=1e-5)
    assert torch.allclose(own, wanted, atol=1e-5)
