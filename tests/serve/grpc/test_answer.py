"""A model server's answer names a class of each item, in numbers or in words, or none."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from guard.manifest import OutputSpec
from guard.serve.grpc.answer import prediction
from guard.serve.grpc.decode import TYPED_FIELD
from guard.serve.grpc.wire.inference_pb2 import ModelInferResponse
from guard.serve.model_server import behind_lengths

OUTPUT = OutputSpec("logits", "logits", 3)
NAMED = OutputSpec("probabilities", "probabilities", 3, ("ant", "bee", "cät"))


def answer(array: NDArray[Any], datatype: str, *, raw: bool, name: str = "logits") -> bytes:
    message = ModelInferResponse()
    message.outputs.add(name="other", datatype="INT64", shape=[1]).contents.int64_contents.append(9)
    if raw:
        message.raw_output_contents.append(np.int64(9).tobytes())
        message.raw_output_contents.append(array.tobytes())
    tensor = message.outputs.add(name=name, datatype=datatype, shape=array.shape)
    if not raw:
        getattr(tensor.contents, TYPED_FIELD[datatype]).extend(array.ravel().tolist())
    return message.SerializeToString()


@pytest.mark.parametrize("raw", [True, False])
@pytest.mark.parametrize("datatype", ["FP32", "FP64"])
def test_the_upstreams_prediction_is_read_from_logits(*, raw: bool, datatype: str) -> None:
    array = np.asarray([[0, 2, 1], [5, 4, 3]], dtype={"FP32": np.float32, "FP64": np.float64}[datatype])
    found = prediction(answer(array, datatype, raw=raw), OUTPUT, 2)
    assert found is not None
    assert found.tolist() == [1, 0]


@pytest.mark.parametrize("raw", [True, False])
def test_the_upstreams_prediction_is_read_from_labels(*, raw: bool) -> None:
    found = prediction(answer(np.asarray([2, 0], np.int64), "INT64", raw=raw), OutputSpec("logits", "label", 3), 2)
    assert found is not None
    assert found.tolist() == [2, 0]


ONE_NUMBER = {
    "probabilities": ([0.2, 0.5, 0.51, 1.0], [0, 0, 1, 1]),
    "logits": ([-3.0, 0.0, 0.2, 7.0], [0, 0, 1, 1]),
}


@pytest.mark.parametrize("raw", [True, False])
@pytest.mark.parametrize("datatype", ["FP32", "FP64"])
@pytest.mark.parametrize("shape", [(4,), (4, 1)])
@pytest.mark.parametrize("kind", ONE_NUMBER)
def test_one_number_an_item_names_one_of_two_classes(
    *, kind: str, shape: tuple[int, ...], datatype: str, raw: bool
) -> None:
    values, wanted = ONE_NUMBER[kind]
    array = np.asarray(values, dtype={"FP32": np.float32, "FP64": np.float64}[datatype]).reshape(shape)
    found = prediction(answer(array, datatype, raw=raw), OutputSpec("logits", kind, 2, single=True), 4)
    assert found is not None
    assert found.tolist() == wanted


@pytest.mark.parametrize("values", [[[0.1, 0.9]], [[np.nan]]], ids=["two numbers", "no number"])
def test_what_is_not_one_number_names_nothing(values: list[list[float]]) -> None:
    array = np.asarray(values, np.float32)
    assert prediction(answer(array, "FP32", raw=True), OutputSpec("logits", "logits", 2, single=True), 1) is None


def test_half_precision_is_read_too() -> None:
    found = prediction(answer(np.asarray([[0, 2, 1]], np.float16), "FP16", raw=True), OUTPUT, 1)
    assert found is not None
    assert found.tolist() == [1]


@pytest.mark.parametrize(
    "response",
    [
        b"\xff\xff",
        b"",
        answer(np.zeros((1, 3), np.float32), "FP32", raw=True, name="elsewhere"),
        answer(np.zeros((1, 4), np.float32), "FP32", raw=True),
        answer(np.zeros((1, 3), np.float32), "FP64", raw=True),
        answer(np.zeros((2, 3), np.float32), "FP32", raw=True),
        answer(np.zeros((1, 3), np.float32), "BF16", raw=True),
    ],
    ids=[
        "no protobuf",
        "empty",
        "no such output",
        "other classes",
        "size against shape",
        "other items",
        "unreadable type",
    ],
)
def test_an_answer_that_does_not_show_the_prediction_is_not_compared(response: bytes) -> None:
    assert prediction(response, OUTPUT, 1) is None


def worded(words: list[str], *, raw: bool, name: str = "label", shape: tuple[int, ...] | None = None) -> bytes:
    """An answer of text after one of another output, as a server gives that was asked for labels alone."""
    message = ModelInferResponse()
    message.outputs.add(name="other", datatype="INT64", shape=[1]).contents.int64_contents.append(9)
    tensor = message.outputs.add(name=name, datatype="BYTES", shape=shape or [len(words)])
    encoded = [word.encode() for word in words]
    if raw:
        message.raw_output_contents.extend([np.int64(9).tobytes(), behind_lengths(encoded)])
    else:
        tensor.contents.bytes_contents.extend(encoded)
    return message.SerializeToString()


@pytest.mark.parametrize("raw", [True, False])
@pytest.mark.parametrize("name", ["label", "probabilities"])
@pytest.mark.parametrize("shape", [(3,), (3, 1)])
def test_words_name_classes_in_the_bundles_order(*, raw: bool, name: str, shape: tuple[int, ...]) -> None:
    found = prediction(worded(["cät", "ant", "bee"], raw=raw, name=name, shape=shape), NAMED, 3)
    assert found is not None
    assert found.tolist() == [2, 0, 1]


def test_numbers_count_before_words_and_stand_where_they_may() -> None:
    """The output of the bundle's name is read, wherever it stands among several."""
    message = ModelInferResponse.FromString(worded(["ant", "ant"], raw=False))
    message.outputs.add(name="probabilities", datatype="FP32", shape=[2, 3]).contents.fp32_contents.extend(
        [0.1, 0.8, 0.1, 0.2, 0.2, 0.6]
    )
    found = prediction(message.SerializeToString(), NAMED, 2)
    assert found is not None
    assert found.tolist() == [1, 2]


@pytest.mark.parametrize(
    ("words", "spec"),
    [(["ant", "elk"], NAMED), (["ant"], NAMED), (["ant", "bee"], OutputSpec("label", "label", 3))],
    ids=["no class", "other items", "a bundle without names"],
)
@pytest.mark.parametrize("raw", [True, False])
def test_words_that_name_no_class_of_each_item_are_not_compared(
    *, words: list[str], spec: OutputSpec, raw: bool
) -> None:
    assert prediction(worded(words, raw=raw), spec, 2) is None


@pytest.mark.parametrize("keep", [1, 3, 5, 8])
def test_words_cut_short_name_nothing(keep: int) -> None:
    message = ModelInferResponse.FromString(worded(["ant", "bee"], raw=True))
    message.raw_output_contents[1] = message.raw_output_contents[1][:keep]
    assert prediction(message.SerializeToString(), NAMED, 2) is None


@pytest.mark.parametrize("raw", [True, False])
@pytest.mark.parametrize("own", [("predict", "label"), ("predict_proba", "probabilities"), ("probabilities", "logits")])
def test_both_outputs_of_mlservers_scikit_learn_runtime_are_read(own: tuple[str, str], *, raw: bool) -> None:
    """Whichever a bundle names: labels [item] or [item, 1], float64 probabilities; a label that no class has is not."""
    spec = OutputSpec(*own, 3)

    def named(values: Any, datatype: str, name: str) -> list[int] | None:
        found = prediction(answer(np.asarray(values), datatype, raw=raw, name=name), spec, 2)
        return None if found is None else found.tolist()

    assert named(np.asarray([2, 0]), "INT64", "predict") == [2, 0]
    assert named(np.asarray([[2], [0]]), "INT64", "predict") == [2, 0]
    assert named(np.asarray([[0.1, 0.2, 0.7], [0.6, 0.3, 0.1]]), "FP64", "predict_proba") == [2, 0]
    if own[0] != "predict":
        assert named(np.asarray([3, 0]), "INT64", "predict") is None
    assert named(np.asarray([2, 0]), "INT64", "transform") is None


@pytest.mark.parametrize("raw", [True, False])
def test_labels_that_do_not_run_from_0_are_the_classes_in_their_order(*, raw: bool) -> None:
    """A forest of the classes 3, 5 and 9 answers `predict` with these; a number that is none of them names none."""
    spec = OutputSpec("predict_proba", "probabilities", 3, numbers=(3, 5, 9))

    def named(labels: list[int]) -> list[int] | None:
        found = prediction(answer(np.asarray(labels), "INT64", raw=raw, name="predict"), spec, len(labels))
        return None if found is None else found.tolist()

    assert named([5, 3, 9]) == [1, 0, 2]
    assert named([5, 1, 9]) is None


@pytest.mark.parametrize("kind", ["logits", "probabilities"])
def test_scores_that_are_no_numbers_name_nothing(kind: str) -> None:
    array = np.asarray([[0.1, np.nan, 0.2], [0.1, 0.5, 0.4]], np.float32)
    assert prediction(answer(array, "FP32", raw=True), OutputSpec("logits", kind, 3), 2) is None
