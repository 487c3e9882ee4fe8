"""Whatever a model ends in, the guard's graph ends in logits whose softmax is the model's own answer."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import onnx
import pytest
import torch
from onnx import helper
from torch import Tensor

from guard.errors import ModelError
from guard.offline.model.final_operators import Ending, strip_final
from guard.offline.model.gradient.input_gradient import top_class, with_gradient
from guard.offline.model.open_model import Source, open_model
from tests.offline.model.test_sigmoids import ITEMS, ONE_SIGMOID, SOFTMAX_COLUMN, Ends, graph_of
from tests.onnx_files import model_of, write_onnx

Function = Callable[[Tensor], Tensor]
COLUMNS: dict[str, tuple[Function, int]] = {
    "softmax": (lambda z: z.softmax(1), 3),
    "softmax, in double": (lambda z: z.softmax(1).double(), 3),
    "normalised softmax": (lambda z: z.softmax(1) / z.softmax(1).abs().sum([1], keepdim=True).clamp(min=1e-12), 3),
    "joined": (lambda z: torch.cat([1 - z.sigmoid(), z.sigmoid()], 1), 1),
    "stacked": (lambda z: torch.stack([1 - z.sigmoid()[:, 0], z.sigmoid()[:, 0]], 1), 1),
    "one against all": (lambda z: z.sigmoid() / z.sigmoid().sum(1, keepdim=True), 3),
    # as a convolution of one place gives them
    "softmax of maps": (lambda z: maps(z).softmax(1).flatten(1), 3),
    "softmax of maps, squeezed": (lambda z: maps(z).softmax(-3).squeeze(3).squeeze(2), 3),
    "softmax of maps, reshaped": (lambda z: maps(z).softmax(1).reshape(-1, 3), 3),
    "softmax of maps, channels last": (lambda z: maps(z).permute(0, 2, 3, 1).softmax(-1).flatten(1), 3),
    "softmax of maps, turned": (lambda z: maps(z).softmax(1).permute(0, 2, 3, 1).reshape(-1, 3), 3),
    "softmax of maps, pooled": (lambda z: maps(z).softmax(1).mean((2, 3)), 3),
    "softmax of maps, indexed": (lambda z: maps(z).softmax(1)[:, :, 0, 0], 3),
    "softmax, then maps": (lambda z: maps(z.softmax(1)), 3),
    "one against all, of maps": (lambda z: (maps(z).sigmoid() / maps(z).sigmoid().sum(1, True)).flatten(1), 3),
    "joined maps": (lambda z: torch.cat([1 - maps(z).sigmoid(), maps(z).sigmoid()], 1).flatten(1), 1),
    # a softmax as people write it
    "written out": (lambda z: z.exp() / z.exp().sum(1, keepdim=True), 3),
    "from the largest": (lambda z: shares((z - z.amax(1, keepdim=True)).exp()), 3),
    "from the largest, with its place": (lambda z: shares((z - z.max(1, keepdim=True)[0]).exp()), 3),
    "from the largest, computed twice": (lambda z: small(z).exp() / small(z).exp().sum(1, keepdim=True), 3),
    "from the mean": (lambda z: shares((z - z.mean(1, keepdim=True)).exp()), 3),
    "from the mean, held from nought": (lambda z: shares((z - z.mean(1, keepdim=True) + 1).exp(), 1e-9), 3),
    "times a reciprocal": (lambda z: z.exp() * z.exp().sum(1, keepdim=True).reciprocal(), 3),
    "one over the sum": (lambda z: z.exp() * (1.0 / z.exp().sum(1)).unsqueeze(1), 3),
    "by its norm": (lambda z: torch.nn.functional.normalize(z.exp(), p=1.0, dim=1), 3),
    "of maps": (lambda z: shares(maps(z).exp()).flatten(1), 3),
    "of a log-softmax": (lambda z: z.log_softmax(1).exp(), 3),
    "of a sum's logarithm": (lambda z: (z - z.logsumexp(1, keepdim=True)).exp(), 3),
    "of a sum's logarithm, written out": (lambda z: (z - z.exp().sum(1, keepdim=True).log()).exp(), 3),
    "of a sum's logarithm, from the largest": (lambda z: from_largest(z).exp(), 3),
}
MANY: dict[str, Function] = {
    "sigmoids": torch.sigmoid,
    "written out": lambda z: 1 / (1 + torch.exp(-z)),
    "joined": lambda z: torch.cat([z[:, :1].sigmoid(), z[:, 1:].sigmoid()], 1),
    "flattened maps": lambda z: maps(z).sigmoid().flatten(1),
    "squeezed maps": lambda z: maps(z).sigmoid().squeeze(-1).squeeze(-1),
    "maps": lambda z: maps(z).sigmoid(),
    "written out, of maps": lambda z: (1 / (1 + torch.exp(-maps(z)))).reshape(-1, 3),
}
LABELS: dict[str, Function] = {
    "argmax": lambda z: z.argmax(1),
    "of probabilities": lambda z: z.softmax(1).argmax(-1),
    "of maps": lambda z: maps(z).argmax(1).flatten(1),
    "of a softmax of maps": lambda z: maps(z).softmax(1).argmax(1).flatten(),
    "kept": lambda z: z.argmax(1, keepdim=True).squeeze(1).int(),
}


def seeded() -> torch.Generator:
    return torch.Generator().manual_seed(0)


def maps(z: Tensor) -> Tensor:
    return z[:, :, None, None]


def small(z: Tensor) -> Tensor:
    return z - z.amax(1, keepdim=True)


def from_largest(z: Tensor) -> Tensor:
    """The log-softmax of numbers up to 0."""
    up_to_nought = small(z)
    return up_to_nought - up_to_nought.exp().sum(1, keepdim=True).log()


def shares(parts: Tensor, more: float = 0.0) -> Tensor:
    return parts / (parts.sum(1, keepdim=True) + more)


def probabilities(logits: Tensor) -> Tensor:
    return logits.detach().softmax(1)


@pytest.mark.parametrize("kind", ["logits", "probabilities"])
@pytest.mark.parametrize("name", [*ONE_SIGMOID, *SOFTMAX_COLUMN])
def test_one_probability_becomes_two_logits(name: str, kind: str) -> None:
    """Told or not: where it was not told, the sigmoid says it, since a probability is no logit."""
    model = Ends(ONE_SIGMOID[name]) if name in ONE_SIGMOID else Ends(SOFTMAX_COLUMN[name], outputs=2)
    graph = graph_of(model)
    assert strip_final(graph, kind) == Ending("probabilities", single=True, served="sigmoid")
    logits = graph(ITEMS)
    assert (logits.shape, logits.dtype) == ((len(ITEMS), 2), torch.float32)
    torch.testing.assert_close(probabilities(logits)[:, 1], model(ITEMS).detach().reshape(-1).float())


@pytest.mark.parametrize("exporter", ["default", "legacy"])
@pytest.mark.parametrize("name", ["softmax of maps", "from the largest", "by its norm", "of a sum's logarithm"])
def test_a_file_spells_a_softmax_with_operators_of_its_own(name: str, exporter: str, tmp_path: Path) -> None:
    model = Ends(*COLUMNS[name])
    file = write_onnx(model, tmp_path / "m.onnx", (4,), exporter=exporter)
    unit = torch.rand(5, 4, generator=seeded())
    opened = open_model(Source(str(file), (4,), output="probabilities"))
    torch.testing.assert_close(opened(unit), model.linear(unit * 0.5).detach())


ONE_LOGIT: dict[str, Function] = {
    "column": lambda z: z,
    "indexed": lambda z: z[:, 0],
    "double": lambda z: z.squeeze(1).double(),
}


@pytest.mark.parametrize("name", ONE_LOGIT)
def test_one_logit_becomes_two_around_nought(name: str) -> None:
    model = Ends(ONE_LOGIT[name])
    graph = graph_of(model)
    assert strip_final(graph, "logits") == Ending("logits", single=True, served="log-odds")
    logits = graph(ITEMS).detach()
    torch.testing.assert_close(logits[:, 0], -logits[:, 1])
    torch.testing.assert_close(2 * logits[:, 1], model(ITEMS).detach().reshape(-1).float())


@pytest.mark.parametrize("name", COLUMNS)
def test_columns_that_sum_to_one_become_logits(name: str) -> None:
    ending, outputs = COLUMNS[name]
    model = Ends(ending, outputs)
    graph = graph_of(model)
    assert strip_final(graph, "probabilities") == Ending("probabilities", single=False, served="softmax")
    torch.testing.assert_close(probabilities(graph(ITEMS)), model(ITEMS).detach().float().flatten(1))


@pytest.mark.parametrize("name", LABELS)
def test_a_label_is_of_logits(name: str) -> None:
    model = Ends(LABELS[name], 3)
    graph = graph_of(model)
    assert strip_final(graph, "label") == Ending("label", single=False, served="argmax")
    torch.testing.assert_close(graph(ITEMS), model.linear(ITEMS * 0.5))


@pytest.mark.parametrize("name", ["from the largest", "from the largest, with its place", "from the mean"])
def test_the_logits_are_those_before_they_were_made_smaller(name: str) -> None:
    """Of what is left of the largest, which is always 0, there is no gradient."""
    model = Ends(*COLUMNS[name])
    graph = graph_of(model)
    strip_final(graph, "probabilities")
    torch.testing.assert_close(graph(ITEMS), model.linear(ITEMS * 0.5))


@pytest.mark.parametrize(
    "ending", [maps, lambda z: maps(z).permute(0, 3, 2, 1), lambda z: maps(z).double()], ids=["first", "last", "double"]
)
def test_logits_with_axes_of_one_are_one_row(ending: Function) -> None:
    model = Ends(ending, 3)
    graph = graph_of(model)
    assert strip_final(graph, "logits") == Ending("logits", single=False)
    torch.testing.assert_close(graph(ITEMS), model.linear(ITEMS * 0.5))


@pytest.mark.parametrize("exporter", ["default", "legacy"])
@pytest.mark.parametrize("shift", [0.0, -60.0, 60.0], ids=["", "saturated low", "saturated high"])
def test_a_saturated_sigmoid_in_a_file_keeps_its_gradient(shift: float, exporter: str, tmp_path: Path) -> None:
    """ONNX Runtime holds a sigmoid of -60 for 1e-8 or 0, torch for 9e-27: both are 0, and the logit is -60."""
    model = Ends(torch.sigmoid)
    with torch.no_grad():
        model.linear.bias += shift
    opened = open_model(Source(str(write_onnx(model, tmp_path / "m.onnx", (4,), exporter=exporter)), (4,)))
    spec = opened.spec.output
    assert (spec.kind, spec.classes, spec.single, spec.columns) == ("probabilities", 2, True, 1)
    unit = torch.rand(5, 4, generator=torch.Generator().manual_seed(0))
    logits, gradient = with_gradient(opened.graph, seed=top_class)(unit)
    torch.testing.assert_close(2 * logits[:, 1], model.linear(unit * 0.5).detach()[:, 0])
    own_class = torch.where(logits[:, 1:] > 0, 0.5, -0.5)
    torch.testing.assert_close(gradient, own_class * 0.5 * model.linear.weight.detach())


def fully_convolutional(*ends: str) -> onnx.ModelProto:
    """Maps, pooled to one place, and what a file may end in behind them, as SqueezeNet does."""
    nodes = [helper.make_node("Conv", ["input", "weights"], ["0"])]
    for place, kind in enumerate(("Relu", "GlobalAveragePool", *ends)):
        settings = {"axis": 1} if "max" in kind else {}
        nodes.append(helper.make_node(kind, [str(place)], [str(place + 1)], **settings))
    nodes[-1].output[0] = "output"
    return model_of(nodes, {"weights": torch.randn(5, 3, 3, 3, generator=seeded()).numpy()}, ["item", 3, 8, 8])


@pytest.mark.parametrize("kind", ["logits", "probabilities"])
@pytest.mark.parametrize("ends", [("Softmax",), ("Softmax", "Flatten"), ("LogSoftmax", "Exp", "Flatten")], ids="-".join)
def test_a_file_of_convolutions_alone_ends_in_logits(ends: tuple[str, ...], kind: str, tmp_path: Path) -> None:
    onnx.save(fully_convolutional(*ends), tmp_path / "m.onnx")
    onnx.save(fully_convolutional(), tmp_path / "bare.onnx")
    images = torch.rand(4, 3, 8, 8, generator=seeded())
    found, bare = (
        open_model(Source(str(tmp_path / file), (3, 8, 8), output=output))
        for file, output in (("m.onnx", kind), ("bare.onnx", "logits"))
    )
    assert bare.spec.output.classes == 5
    torch.testing.assert_close(found(images), bare(images))


@pytest.mark.parametrize("kind", ["logits", "probabilities"])
@pytest.mark.parametrize("ends", [("Sigmoid",), ("Sigmoid", "Flatten")], ids="-".join)
def test_a_file_of_convolutions_with_several_labels_is_refused(
    ends: tuple[str, ...], kind: str, tmp_path: Path
) -> None:
    onnx.save(fully_convolutional(*ends), tmp_path / "m.onnx")
    with pytest.raises(ModelError, match="several labels at once"):
        open_model(Source(str(tmp_path / "m.onnx"), (3, 8, 8), output=kind))


@pytest.mark.parametrize("kind", ["logits", "probabilities"])
@pytest.mark.parametrize("name", MANY)
def test_several_labels_an_item_are_refused(name: str, kind: str) -> None:
    with pytest.raises(ModelError, match=r"may have several labels at once.*before the sigmoid as --output logits"):
        strip_final(graph_of(Ends(MANY[name], 3)), kind)


@pytest.mark.parametrize(
    ("ending", "outputs", "kind", "words"),
    [
        (lambda z: z, 1, "probabilities", r"aten\.linear\.default; wanted a sigmoid there.*--output logits"),
        (torch.sigmoid, 1, "label", r"aten\.sigmoid\.default; wanted a sigmoid there"),
        (lambda z: z, 3, "probabilities", "wanted a softmax or an argmax there"),
        (lambda z: z.sigmoid().clamp(0.1, 0.9), 1, "logits", r"goes on computing with its probability \(aten\.clamp"),
        (lambda z: z.softmax(0), 3, "probabilities", "softmax over axis 0 of .*wanted .item, class."),
        (lambda z: maps(z).softmax(2).flatten(1), 3, "logits", r"softmax over axis 2 of \[-1, 3, 1, 1\]; wanted"),
        (lambda z: z.argmax(0), 3, "label", r"argmax over axis 0 of \[-1, 3\]; wanted one class an item"),
        (lambda z: shares(z.abs()), 3, "probabilities", r"aten\.div.*another form, export the numbers.*--answers"),
    ],
    ids=["a logit", "no label", "three logits", "clipped", "over the items", "of one", "of no class", "another share"],
)
def test_an_ending_that_is_not_what_was_said(ending: Function, outputs: int, kind: str, words: str) -> None:
    with pytest.raises(ModelError, match=words):
        strip_final(graph_of(Ends(ending, outputs)), kind)
