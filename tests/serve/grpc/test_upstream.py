"""What tells the upstream's model from the bundle's."""

from __future__ import annotations

import re
from dataclasses import replace
from typing import Any

import pytest

from guard.manifest import InputSpec, ModelSpec, OutputSpec
from guard.serve.grpc.upstream_watch import fits, mismatch
from guard.serve.grpc.wire.inference_pb2 import ModelMetadataResponse

MODEL = ModelSpec("m", "2", "f", InputSpec("x", "FP32", (3, 8, 8), (0.0,), (1.0,), 255), OutputSpec("y", "logits", 10))
Tensor = ModelMetadataResponse.TensorMetadata


def told(**changes: Any) -> ModelMetadataResponse:
    """Metadata that agree with MODEL, but for `changes`."""
    inputs = changes.get("inputs", [("x", "FP32", [-1, 3, 8, 8])])
    outputs = changes.get("outputs", [("y", "FP32", [-1, 10])])
    return ModelMetadataResponse(
        name="m",
        versions=changes.get("versions", ["1", "2"]),
        inputs=[Tensor(name=n, datatype=d, shape=s) for n, d, s in inputs],
        outputs=[Tensor(name=n, datatype=d, shape=s) for n, d, s in outputs],
    )


@pytest.mark.parametrize(
    "metadata",
    [
        told(),
        told(versions=[]),
        told(inputs=[("x", "FP32", [8, 3, -1, -1])]),
        told(inputs=[], outputs=[]),  # some servers declare nothing
        told(outputs=[("z", "FP32", [-1, 4]), ("y", "FP32", [-1, -1])]),
        told(outputs=[("y", "FP32", [-1, 10, 1, 1])]),
        told(outputs=[("y", "FP32", [-1, 1, 1, 10])]),
        told(outputs=[("y", "FP32", [-1, 10, -1, -1])]),
    ],
    ids=[
        *("the same", "no versions", "open sizes", "nothing declared", "one output more"),
        *("maps of one place", "channels last", "maps of open sizes"),
    ],
)
def test_metadata_that_agree_or_say_nothing(metadata: ModelMetadataResponse) -> None:
    assert mismatch(metadata, MODEL) is None


def test_a_channel_last_model_is_compared_as_it_is_served() -> None:
    last = replace(MODEL, input=replace(MODEL.input, layout="NHWC"))
    assert mismatch(told(inputs=[("x", "FP32", [-1, 8, 8, 3])]), last) is None
    assert "[-1, 8, 8, 3]" in str(mismatch(told(), last))


@pytest.mark.parametrize(
    ("metadata", "said"),
    [
        (told(versions=["1", "3"]), "version 2"),
        (told(inputs=[("image", "FP32", [-1, 3, 8, 8])]), "image"),
        (told(inputs=[("x", "FP32", [-1, 3, 8, 8]), ("mask", "FP32", [-1, 1])]), "x, mask"),
        (told(inputs=[("x", "UINT8", [-1, 3, 8, 8])]), "UINT8"),
        (told(inputs=[("x", "FP32", [-1, 8, 8, 3])]), r"\[-1, 8, 8, 3\]"),
        (told(inputs=[("x", "FP32", [3, 8, 8])]), r"\[3, 8, 8\]"),
        (told(outputs=[("probabilities", "FP32", [-1, 10])]), "probabilities"),
        (
            told(outputs=[("y", "FP32", [-1, 1000])]),
            "gives 1000 numbers an item; the bundle expects 10, logits of 10 classes",
        ),
        (told(outputs=[("y", "FP32", [-1, 10, 7, 7])]), "gives 490 numbers an item"),
    ],
    ids=["version", "name", "a second input", "datatype", "layout", "no item axis", "output", "classes", "maps"],
)
def test_a_difference_is_found_and_named(metadata: ModelMetadataResponse, said: str) -> None:
    found = mismatch(metadata, MODEL)
    assert found is not None
    assert re.search(said, found)


def test_fits() -> None:
    assert fits([-1, 3], (3,))
    assert not fits([3], (3,))
    assert not fits([-1, 4], (3,))


@pytest.mark.parametrize(
    ("shape", "fits"), [([-1, 1], True), ([-1], True), ([-1, -1], True), ([-1, 1, 1, 1], True), ([-1, 2], False)]
)
def test_one_number_an_item_is_expected_of_a_model_that_gives_one(*, shape: list[int], fits: bool) -> None:
    one = replace(MODEL, output=OutputSpec("y", "probabilities", 2, single=True))
    found = mismatch(told(outputs=[("y", "FP32", shape)]), one)
    assert fits is (found is None)
    assert fits or "gives 2 numbers an item; the bundle expects 1, one probability, of class 1 of 2" in str(found)
