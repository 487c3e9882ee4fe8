"""Whoever exported the file, and for however many items: the import computes what it computes, and its gradient."""

from __future__ import annotations

import logging
import shutil
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from onnx import TensorProto, helper
from torch import Tensor, nn

from guard.errors import ModelError
from guard.offline.model.classifier import Classifier
from guard.offline.model.gradient.input_gradient import top_class, with_gradient
from guard.offline.model.onnx_import.importer import (
    AGREEMENT_TOLERANCE,
    check_import,
    import_onnx,
    rounded,
    run_file,
    sample_images,
)
from guard.offline.model.open_model import Source, open_model
from guard.offline.model.several_outputs import single_path
from guard.value_box import ValueBox
from tests import networks
from tests.offline import tiny
from tests.onnx_files import BATCHES, EXPORTERS, KERAS, model_of, write_onnx

SHAPE = (3, 32, 32)


def images(items: int, shape: tuple[int, ...] = SHAPE) -> Tensor:
    return torch.rand(items, *shape, generator=torch.Generator().manual_seed(3))


def agrees(classifier: Classifier, model: nn.Module, shape: tuple[int, ...]) -> None:
    """Logits and input gradients, by item, on other numbers of items than any file was made for."""
    for items in (1, 5):
        given = images(items, shape).requires_grad_()
        logits = model(given)
        (wanted,) = torch.autograd.grad(logits.amax(dim=1).sum(), given)
        found, gradient = with_gradient(classifier.graph, seed=top_class)(given.detach())
        for ours, theirs in ((found, logits.detach()), (gradient, wanted)):
            difference = (ours - theirs).flatten(1).norm(dim=1) / theirs.flatten(1).norm(dim=1)
            assert difference.max() < 1e-5


def opened(file: Path, shape: tuple[int, ...] = SHAPE) -> Classifier:
    return open_model(Source(str(file), shape))


# Exporters, networks, and numbers of items. The whole table is printed by tests/bench/importer.py.


@pytest.mark.parametrize("batch", BATCHES)
@pytest.mark.parametrize("exporter", EXPORTERS)
@pytest.mark.parametrize("name", ["vit", "small_cnn"])
def test_a_file_is_the_network_that_was_exported(name: str, exporter: str, batch: str, tmp_path: Path) -> None:
    model, shape = getattr(networks, name)(), (1, 8, 8) if name == "small_cnn" else SHAPE
    file = write_onnx(model, tmp_path / "m.onnx", shape, exporter=exporter, batch=BATCHES[batch])
    agrees(opened(file, shape), model, shape)


@pytest.mark.parametrize(
    ("name", "exporter", "batch"),
    [
        ("resnet20", "legacy", "dynamic"),
        ("mobilenet", "legacy", "fixed 1"),
        ("efficientnet", "default", "fixed 1"),
    ],
)
def test_larger_networks(name: str, exporter: str, batch: str, tmp_path: Path) -> None:
    model = getattr(networks, name)()
    file = write_onnx(model, tmp_path / "m.onnx", SHAPE, exporter=exporter, batch=BATCHES[batch])
    agrees(opened(file), model, SHAPE)


@pytest.mark.parametrize("batch", ["item", 1, 3])
def test_a_keras_file(batch: int | str, tmp_path: Path) -> None:
    """Bytes, channels last, normalisation inside, a softmax on top; the guard works on what is before the softmax."""
    classifier = opened(KERAS.write(tmp_path / "k.onnx", batch=batch), KERAS.shape)
    agrees(classifier, KERAS, KERAS.shape)
    spec = classifier.spec
    assert (spec.input.name, spec.input.datatype, spec.input.layout) == ("image", "UINT8", "NHWC")
    assert (spec.input.shape, spec.input.wire_shape) == ((3, 17, 16), (17, 16, 3))
    assert (spec.input.low, spec.input.high, spec.output.name) == ((0.0,), (255.0,), "probabilities")


def test_a_channel_last_file_that_does_not_begin_with_a_transposition(tmp_path: Path) -> None:
    """Its first operator looks along the channels, so the axes are turned for it."""
    nodes = [
        helper.make_node("Cast", ["input"], ["numbers"], to=TensorProto.FLOAT),
        helper.make_node("MatMul", ["numbers", "mix"], ["mixed"]),
        helper.make_node("Relu", ["mixed"], ["positive"]),
        helper.make_node("ReduceMean", ["positive", "axes"], ["pooled"], keepdims=0),
        helper.make_node("MatMul", ["pooled", "head"], ["output"]),
    ]
    generator = np.random.default_rng(0)
    mix, head = (generator.normal(0, 1, sizes).astype(np.float32) for sizes in ((3, 6), (6, 4)))
    constants = {"mix": mix, "head": head, "axes": np.asarray([1, 2])}
    onnx.save(model_of(nodes, constants, ["item", 5, 7, 3], kind=TensorProto.UINT8), tmp_path / "m.onnx")
    given = images(4, (3, 5, 7))
    by_hand = (given.permute(0, 2, 3, 1) * 255 @ torch.from_numpy(mix)).relu().mean(dim=(1, 2)) @ torch.from_numpy(head)
    torch.testing.assert_close(opened(tmp_path / "m.onnx", (3, 5, 7))(given), by_hand, rtol=1e-4, atol=1e-3)


def test_vectors(tmp_path: Path) -> None:
    file = write_onnx(tiny.vector_model(), tmp_path / "m.onnx", (tiny.FEATURES,), exporter="legacy")
    classifier = opened(file, (tiny.FEATURES,))
    agrees(classifier, tiny.vector_model(), (tiny.FEATURES,))
    assert classifier.spec.input.layout == "NC"


def test_normalisation_outside_the_file_is_the_value_box(file: Path) -> None:
    given = images(3, tiny.SHAPE)
    with torch.no_grad():
        boxed = open_model(Source(str(file), tiny.SHAPE, low=(-2.0,), high=(2.0,)))
        torch.testing.assert_close(boxed(given), tiny.image_model()(given * 4 - 2), rtol=1e-4, atol=1e-4)


def test_the_older_exports_still_open(tmp_path: Path) -> None:
    """Operator set 11 and weights listed among the inputs."""
    model = tiny.image_model()
    with torch.no_grad():
        file = write_onnx(model, tmp_path / "m.onnx", tiny.SHAPE, exporter="legacy", opset_version=11)
    proto = onnx.load(file)
    given = [helper.make_tensor_value_info(t.name, t.data_type, t.dims) for t in proto.graph.initializer]
    proto.graph.input.extend(given)
    onnx.save(proto, file)
    agrees(opened(file, tiny.SHAPE), model, tiny.SHAPE)


def test_a_transformer_before_its_operators_had_names(tmp_path: Path) -> None:
    """Operator set 14: layer normalisation and GELU in their parts."""
    model = networks.vit()
    file = write_onnx(model, tmp_path / "m.onnx", SHAPE, exporter="legacy", opset_version=14)
    assert {"Erf", "ReduceMean", "Sqrt"} <= {node.op_type for node in onnx.load(file).graph.node}
    agrees(opened(file), model, SHAPE)


# Taps.


@pytest.mark.parametrize("exporter", EXPORTERS)
def test_taps_are_called_what_the_file_calls_them(exporter: str, tmp_path: Path) -> None:
    """And hold what ONNX Runtime gives for that name."""
    file = write_onnx(tiny.image_model(), tmp_path / "m.onnx", tiny.SHAPE, exporter=exporter)
    classifier = opened(file, tiny.SHAPE)
    names = [tap.name for tap in classifier.taps]
    proto = onnx.load(file)
    proto.graph.output.extend(helper.make_empty_tensor_value_info(name) for name in names)
    session = onnxruntime.InferenceSession(proto.SerializeToString(), providers=["CPUExecutionProvider"])
    expected = session.run(names, {"input": images(3, tiny.SHAPE).numpy()})
    with torch.no_grad():
        found = classifier.opened(names)(images(3, tiny.SHAPE))[1:]
    assert len(names) >= 2
    for ours, theirs in zip(found, expected, strict=True):
        np.testing.assert_allclose(ours.numpy(), theirs, rtol=1e-3, atol=1e-4)


# Files that are not as they should be.


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The small network, exported once: its weights lie beside the file."""
    return write_onnx(tiny.image_model(), tmp_path_factory.mktemp("written") / "m.onnx", tiny.SHAPE).parent


@pytest.fixture
def file(written: Path, tmp_path: Path) -> Path:
    shutil.copytree(written, tmp_path, dirs_exist_ok=True)
    return tmp_path / "m.onnx"


@pytest.mark.parametrize("kept", [0, 40, -200])
def test_a_truncated_file(file: Path, kept: int) -> None:
    file.write_bytes(file.read_bytes()[:kept])
    with pytest.raises(ModelError, match=r"m\.onnx is no ONNX model") as caught:
        opened(file, tiny.SHAPE)
    assert "\n" not in str(caught.value)


def test_another_kind_of_file(tmp_path: Path) -> None:
    (tmp_path / "m.onnx").write_text("roses are red", encoding="utf-8")
    with pytest.raises(ModelError, match="is no ONNX model"):
        opened(tmp_path / "m.onnx", tiny.SHAPE)


def test_weights_beside_the_file(file: Path) -> None:
    onnx.save(onnx.load(file), file, save_as_external_data=True, location="weights.bin", size_threshold=64)
    agrees(opened(file, tiny.SHAPE), tiny.image_model(), tiny.SHAPE)
    file.with_name("weights.bin").unlink()
    with pytest.raises(
        ModelError, match=r"keeps weights in a file beside it that cannot be read.*weights\.bin"
    ) as caught:
        opened(file, tiny.SHAPE)
    assert "\n" not in str(caught.value)


def test_a_tensor_that_nothing_gives(file: Path) -> None:
    proto = onnx.load(file)
    del proto.graph.node[2]
    onnx.save(proto, file)
    with pytest.raises(ModelError, match=r"is damaged: .* reads .*, which nothing before it gives"):
        opened(file, tiny.SHAPE)


def test_other_items(file: Path) -> None:
    with pytest.raises(ModelError, match=r"items of shape \[1, 8, 8\]; the data's items have shape \[3, 8, 8\]"):
        opened(file, (3, 8, 8))


def test_a_datatype_that_the_wire_does_not_have(tmp_path: Path) -> None:
    node = helper.make_node("Identity", ["input"], ["output"])
    onnx.save(model_of([node], {}, ["item", 4], kind=TensorProto.INT64), tmp_path / "m.onnx")
    with pytest.raises(ModelError, match=r"input 'input' is int64; wanted FLOAT \(float32\), DOUBLE, FLOAT16 or UINT8"):
        opened(tmp_path / "m.onnx", (4,))


# Several inputs and outputs.


def forked(tmp_path: Path) -> Path:
    """Two inputs and three outputs: one of each input, and one of both."""
    nodes = [
        helper.make_node("MatMul", ["a", "matrix"], ["of_a"]),
        helper.make_node("MatMul", ["b", "matrix"], ["of_b"]),
        helper.make_node("Relu", ["of_a"], ["hidden"]),
        helper.make_node("MatMul", ["hidden", "matrix"], ["one"]),
        helper.make_node("Add", ["one", "of_b"], ["both"]),
    ]
    matrix = np.random.default_rng(0).normal(0, 1, (4, 4)).astype(np.float32)
    proto = model_of(nodes, {"matrix": matrix}, ["item", 4], given="a", output="one")
    proto.graph.input.append(helper.make_tensor_value_info("b", TensorProto.FLOAT, ["item", 4]))
    proto.graph.output.append(helper.make_tensor_value_info("both", TensorProto.FLOAT, ["item", 4]))
    onnx.save(proto, tmp_path / "m.onnx")
    return tmp_path / "m.onnx"


def test_the_output_is_chosen_by_name(tmp_path: Path) -> None:
    spec = open_model(Source(str(forked(tmp_path)), (4,), output_name="one")).spec
    assert (spec.input.name, spec.output.name) == ("a", "one")


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({}, r"has 2 outputs \(one, both \[item, 4\]\); say which one to guard with --output-name"),
        ({"output_name": "two"}, "has no output 'two' that counts; --output-name can be: one, both"),
        ({"output_name": "both"}, r"output 'both' depends on 2 inputs \(a, b\); exactly one can be guarded"),
        ({"output_name": "one", "input_name": "b"}, "has no input 'b' that counts; --input-name can be: a"),
    ],
)
def test_a_choice_that_is_none_says_what_there_is(given: dict[str, str], words: str, tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=words):
        open_model(Source(str(forked(tmp_path)), (4,), **given))


# The check on load.


def test_an_import_that_computes_something_else_is_found_out(file: Path) -> None:
    imported = import_onnx(file, tiny.SHAPE)
    graph = single_path(imported.program)
    assert check_import(imported, graph, ValueBox((0.0,), (1.0,), 3)) < 1e-6
    with torch.no_grad():
        next(iter(graph.buffers())).view(-1)[0] += 0.1
    with pytest.raises(ModelError, match="was imported wrongly: outputs differ from ONNX Runtime's by"):
        check_import(imported, graph, ValueBox((0.0,), (1.0,), 3))


def test_a_file_that_answers_one_item_otherwise_is_found_out(tmp_path: Path) -> None:
    """Torch takes an unknown number of items for more than one, so the import would follow the other branch."""
    branches = [
        helper.make_graph([helper.make_node(kind, ["input"], [kind])], kind, [], [info(kind, None)])
        for kind in ("Neg", "Relu")
    ]
    nodes = [
        helper.make_node("Shape", ["input"], ["sizes"]),
        helper.make_node("Gather", ["sizes", "first"], ["items"]),
        helper.make_node("Equal", ["items", "one"], ["lone"]),
        helper.make_node("If", ["lone"], ["chosen"], then_branch=branches[0], else_branch=branches[1]),
        helper.make_node("MatMul", ["chosen", "weight"], ["logits"]),
    ]
    constants = {"first": np.asarray(0), "one": np.asarray(1), "weight": np.eye(5, 3, dtype=np.float32)}
    tensors = [onnx.numpy_helper.from_array(value, name) for name, value in constants.items()]
    graph = helper.make_graph(nodes, "lone", [info("input", ["item", 5])], [info("logits", ["item", 3])], tensors)
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), tmp_path / "m.onnx")
    with pytest.raises(ModelError, match="was imported wrongly"):
        open_model(Source(str(tmp_path / "m.onnx"), (5,)))


def info(name: str, shape: list[str | int] | None) -> onnx.ValueInfoProto:
    return helper.make_tensor_value_info(name, TensorProto.FLOAT, shape)


def cancelling(path: Path, features: int) -> Path:
    """A file whose outputs are what is left of numbers some ten thousand times as large."""
    generator = np.random.default_rng(0)
    wide, narrow = generator.standard_normal((features, 64)), generator.standard_normal((64, 3))
    constants = {"wide": wide, "narrow": narrow, "both": wide @ narrow, "small": 2e-3 * wide[:, :3]}
    nodes = [
        helper.make_node("MatMul", ["input", "wide"], ["hidden"]),
        helper.make_node("MatMul", ["hidden", "narrow"], ["there"]),
        helper.make_node("MatMul", ["input", "both"], ["here"]),
        helper.make_node("MatMul", ["input", "small"], ["signal"]),
        helper.make_node("Sub", ["there", "here"], ["nothing"]),
        helper.make_node("Add", ["nothing", "signal"], ["logits"]),
    ]
    graph = helper.make_graph(
        nodes,
        "cancelling",
        [helper.make_tensor_value_info("input", TensorProto.FLOAT, ["item", features])],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["item", 3])],
        [onnx.numpy_helper.from_array(value.astype(np.float32), name) for name, value in constants.items()],
    )
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10), path)
    return path


def test_outputs_that_rounding_disturbs_are_judged_by_double_precision(tmp_path: Path) -> None:
    imported = import_onnx(cancelling(tmp_path / "file.onnx", 512), (512,))
    graph, box = single_path(imported.program), ValueBox((0.0,), (1.0,), 1)
    noise = sample_images(imported, graph, box, 4)
    with torch.no_grad():
        found = graph(torch.from_numpy(noise)).numpy()
    expected = run_file(imported, noise)
    assert np.abs(found - expected).max() > AGREEMENT_TOLERANCE * np.abs(expected).max(), "each rounds its own way"
    check_import(imported, graph, box)
    assert rounded(graph, noise, found, expected)
    assert not rounded(graph, noise, found, expected * np.float32(1.05))


def test_a_file_that_mixes_its_items(tmp_path: Path) -> None:
    """A fixed batch that is summed over: with more items the answer would be another one, so it is refused."""
    nodes = [
        helper.make_node("ReduceMean", ["input", "axes"], ["mean"]),
        helper.make_node("Sub", ["input", "mean"], ["centred"]),
        helper.make_node("MatMul", ["centred", "matrix"], ["output"]),
    ]
    constants = {"axes": np.asarray([0]), "matrix": np.eye(4, dtype=np.float32)}
    onnx.save(model_of(nodes, constants, [2, 4]), tmp_path / "m.onnx")
    with pytest.raises(
        ModelError, match=r"mixes its items: .* depends on the others of its batch; export it in evalua"
    ):
        opened(tmp_path / "m.onnx", (4,))


@pytest.fixture(autouse=True)
def quiet_torch() -> None:
    """torch prints the traceback of an operator that does not fit, which is one line of ours."""
    logging.getLogger("torch._subclasses.fake_tensor").setLevel(logging.CRITICAL)
