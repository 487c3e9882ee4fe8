"""Any answer of a model server names a class of each item, or none: reading it never fails."""

from __future__ import annotations

from typing import Any

import numpy as np
from hypothesis import example, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as npst

from guard.manifest import OutputSpec
from guard.serve.grpc.answer import prediction
from guard.serve.grpc.decode import TYPED_FIELD
from guard.serve.grpc.wire.inference_pb2 import ModelInferResponse
from guard.serve.tensor import DTYPES

EXAMPLES = 100
KINDS = ("logits", "probabilities", "label")
NAN = b"\0\0\xc0\x7f"


def answer_of(shape: list[int], raw: bytes) -> ModelInferResponse:
    tensor = ModelInferResponse.InferOutputTensor(name="out", datatype="FP32", shape=shape)
    return ModelInferResponse(outputs=[tensor], raw_output_contents=[raw])


@st.composite
def answers(draw: Any) -> ModelInferResponse:
    """An answer that fits no output in particular."""
    message = ModelInferResponse()
    for _ in range(draw(st.integers(0, 2))):
        sizes = st.lists(st.integers(-3, 3) | st.sampled_from([-(2**63), 2**63 - 1]), max_size=3) | st.just([1] * 70)
        datatype = draw(st.sampled_from([*sorted(DTYPES), "BYTES", "BF16"]))
        tensor = message.outputs.add(name="out", datatype=datatype, shape=draw(sizes))
        if draw(st.booleans()):
            message.raw_output_contents.append(draw(st.binary(max_size=32)))
        elif datatype in ("FP32", "FP64"):
            getattr(tensor.contents, TYPED_FIELD[datatype]).extend(draw(st.lists(st.floats(width=32), max_size=6)))
        elif datatype in DTYPES and datatype != "FP16":
            getattr(tensor.contents, TYPED_FIELD[datatype]).extend(draw(st.lists(st.integers(0, 1), max_size=6)))
    return message


@settings(max_examples=2 * EXAMPLES)
@given(answers(), st.sampled_from(KINDS), st.integers(1, 3), st.integers(2, 3))
@example(answer_of([-2, -3], bytes(24)), "logits", 2, 3)
@example(answer_of([1] * 70, NAN), "logits", 1, 2)
@example(answer_of([1], NAN), "label", 1, 3)
def test_any_answer_names_a_class_of_each_item_or_none(answer: Any, kind: str, items: int, classes: int) -> None:
    found = prediction(answer.SerializeToString(), OutputSpec("out", kind, classes), items)
    if found is None:
        return
    assert found.shape == (items,)
    assert found.dtype == np.int64
    assert kind == "label" or ((found >= 0) & (found < classes)).all()
    assert min(answer.outputs[0].shape, default=0) >= 0


@settings(max_examples=EXAMPLES)
@given(st.data(), st.sampled_from(["FP16", "FP32", "FP64"]), st.booleans())
def test_an_answer_names_the_largest_of_its_numbers(data: st.DataObject, datatype: str, raw: bool) -> None:  # noqa: FBT001
    dtype = DTYPES[datatype]
    shape = data.draw(st.tuples(st.integers(1, 3), st.integers(2, 4)))
    numbers = data.draw(npst.arrays(dtype, shape, elements={"allow_nan": False}))
    message = ModelInferResponse()
    tensor = message.outputs.add(name="out", datatype=datatype, shape=shape)
    raw = raw or datatype == "FP16"  # which has no typed field
    if raw:
        message.raw_output_contents.append(numbers.tobytes())
    else:
        getattr(tensor.contents, TYPED_FIELD[datatype]).extend(numbers.ravel().tolist())
    found = prediction(message.SerializeToString(), OutputSpec("out", "logits", shape[1]), shape[0])
    assert found is not None
    assert np.array_equal(found, numbers.argmax(axis=1))
