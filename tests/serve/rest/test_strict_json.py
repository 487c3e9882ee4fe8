"""The strict reader of JSON reads what json reads, and refuses what two parsers could read differently."""

from __future__ import annotations

import json
import time
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as npst
from numpy.typing import NDArray

from guard.errors import MalformedRequest
from guard.serve.rest.strict_json import MAX_OTHER_CHARACTERS, Numbers, read_json

SCALARS = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text()
DOCUMENTS = st.recursive(
    SCALARS, lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4), max_leaves=20
)
ARRAYS = npst.arrays(
    np.float64,
    npst.array_shapes(min_dims=1, max_dims=4, max_side=4),
    elements={"allow_nan": False, "allow_infinity": False},
)


@given(DOCUMENTS, st.sampled_from([None, 1, "\t"]))
def test_any_document_is_read_as_json_reads_it(document: Any, indent: int | str | None) -> None:
    text = json.dumps({"x": document}, indent=indent)
    assert "data" in text or read_json(text)[0] == json.loads(text)


@settings(max_examples=300)
@given(st.text(alphabet='{}[]":,0123456789.eE+- \ntrufalsen\\', max_size=24))
def test_any_text_is_read_as_json_reads_it_or_refused(text: str) -> None:
    """What json refuses is refused; what it takes is read alike, but for keys that stand twice."""
    try:
        wanted = json.loads(text, parse_constant=lambda _: pytest.fail("not drawn"))
    except ValueError:
        with pytest.raises(MalformedRequest):
            read_json(text)
        return
    assert read_json(text)[0] == wanted


@given(ARRAYS, st.sampled_from(["flat", "nested"]), st.sampled_from([None, 1]))
def test_an_array_under_data_is_read_bit_for_bit_flat_and_nested(
    array: NDArray[np.float64], form: str, indent: int | None
) -> None:
    text = json.dumps({"data": (array.ravel() if form == "flat" else array).tolist(), "more": [1, 2]}, indent=indent)
    document, kept = read_json(text)
    assert kept == [document["data"]]
    found = document["data"].values(array.shape)
    assert found.shape == array.shape
    assert found.tobytes() == array.tobytes()
    assert document["more"] == [1, 2]


@settings(max_examples=300)
@given(st.text(alphabet="[],0 1.-e", max_size=24), st.sampled_from([(1,), (2,), (1, 1), (1, 2), (2, 2), (2, 1, 2)]))
def test_any_text_of_an_array_is_read_as_json_reads_it_or_refused(text: str, shape: tuple[int, ...]) -> None:
    """An array is taken if it is JSON, and either flat or nested as its shape says."""
    try:
        wanted = np.asarray(json.loads(text), dtype=np.float64)
    except (ValueError, TypeError):
        wanted = np.empty((0, 0))
    fits = wanted.shape in (shape, (int(np.prod(shape)),))
    try:
        document, _ = read_json(f'{{"data":{text}}}')
        found = document["data"].values(shape)
    except (MalformedRequest, AttributeError):  # a number, or a list of lists without a number
        assert not fits
    else:
        assert fits
        assert (found.ravel() == wanted.ravel()).all()


@pytest.mark.parametrize(
    "text",
    [
        "",
        " ",
        "nothing",
        '{"a": 1, "a": 2}',
        '{"a": 1, "\\u0061": 2}',
        '{"a": {"b": 1, "b": 1}}',
        '{"a": NaN}',
        '{"a": [Infinity]}',
        '{"a": -Infinity}',
        '{"a": 01}',
        '{"a": 1.}',
        '{"a": +1}',
        '{"a": .5}',
        '{"a": 0x1}',
        '{"a": 1}{"b": 2}',
        '{"a": 1} x',
        '{"a": 1,}',
        '{"a": [1,]}',
        "{'a': 1}",
        '{"a": "\n"}',
        '{"a": "\\x"}',
        '{"a": tru}',
        '\ufeff{"a": 1}',
        '{"a": 1 /* what */}',
        '{"a"\u00a0: 1}',
        '{"a": \u0661}',  # a digit, but none of JSON's
        "[" * 100_000,
        '{"a":' * 100_000,
        '{"a": ' + "9" * 5000 + "}",  # more digits than Python converts
    ],
)
def test_what_parsers_disagree_on_is_refused(text: str) -> None:
    with pytest.raises(MalformedRequest):
        read_json(text)


@pytest.mark.parametrize(
    "text",
    [
        "[1,2,3]",
        "[1,2,3,4,5]",
        "[[1,2],[3]]",
        "[[1,2,3],[4]]",
        "[[1],[2,3,4]]",
        "[[[1,2],[3,4]]]",
        "[1,2],[3,4]",
        "[[1,2],[3,4]]]",
        "[[1,2][3,4]]",
        "[[1,2],[3,4],]",
        "[[1,2],,[3,4]]",
        "[1,2,,4]",
        "[,1,2,3]",
        "[1,2,3,]",
        "[1 2,3,4,5]",
        "[1,2,3,4-]",
        "[1,2,3,1e]",
        "[]",
        "[[],[]]",
        "[[[[]]]]",
    ],
)
def test_an_array_that_is_ragged_or_of_another_size_is_refused(text: str) -> None:
    with pytest.raises(MalformedRequest):
        read_json(f'{{"data":{text}}}')[0]["data"].values((2, 2))


def test_a_number_that_no_float_holds_becomes_infinity_for_the_caller_to_refuse() -> None:
    document, _ = read_json('{"data":[1e999,' + "9" * 5000 + "]}")
    assert np.isinf(document["data"].values((2,))).all()


@pytest.mark.parametrize(
    "text",
    [
        '{"a":"' + "x" * 10_000_000 + '"}',
        '{"a":"' + '\\"' * 5_000_000 + '"}',
        '{"a":' + " " * 10_000_000 + "1}",
        '{"a":[' + "1," * 5_000_000 + "1]}",
        '{"a":[' + "[]," * 3_000_000 + "[]]}",
        '{"data":[' + '"a",' * 2_000_000 + '"a"]}',
        "{" + ",".join(f'"{i}":1' for i in range(1_000_000)) + "}",
    ],
    ids=["text", "escapes", "space", "numbers", "lists", "words", "keys"],
)
def test_what_is_no_tensor_is_bounded_and_refused_at_once(text: str) -> None:
    began = time.thread_time()
    with pytest.raises(MalformedRequest):
        read_json(text)
    assert time.thread_time() - began < 1.0


def test_the_bound_on_what_is_no_tensor_counts_no_numbers() -> None:
    text = '{"data":[' + "0.25," * MAX_OTHER_CHARACTERS + '1],"a":[]}'
    document, _ = read_json(text)
    assert isinstance(document["data"], Numbers)
    assert document["data"].values((MAX_OTHER_CHARACTERS + 1,))[-1] == 1
