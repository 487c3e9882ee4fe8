"""What answers for a closed model: files, functions and servers, the form of their answers, what is kept of them."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import onnx
import pytest
from numpy.typing import NDArray

from guard.errors import ConfigError, ModelError
from guard.offline.closed.answer_form import AnswerForm, form_of
from guard.offline.closed.closed_model import ClosedModel
from guard.offline.closed.kept_answers import KeptAnswers
from guard.offline.closed.open_answers import AnswersWish, open_answers
from guard.offline.closed.server_answers import MAX_TRIES, Negotiated, Server
from guard.offline.closed.v2_messages import message_classes
from guard.serve.grpc.wire.inference_pb2 import (
    ModelInferRequest,
    ModelInferResponse,
    ModelMetadataRequest,
    ModelMetadataResponse,
)
from guard.serve.model_server import ServedModel, serving
from guard.value_box import ValueBox
from tests.offline import tiny
from tests.offline.closed.forest import write_forest

WORDS = ("ant", "bee", "cat")
ITEMS, LABELS = tiny.vectors(60, seed=5)


def votes(wire: NDArray[np.float32]) -> NDArray[np.int64]:
    """A closed model for `module:function`: on which side of the middle most features lie."""
    return (wire.mean(axis=1) > 0.5).astype(np.int64)


def broken(wire: NDArray[np.float32]) -> NDArray[np.float32]:
    raise ValueError(f"no {len(wire)} items today")


NO_FUNCTION = 3


@pytest.mark.parametrize("zipped", [False, True])
@pytest.mark.parametrize("words", [(), WORDS], ids=["numbers", "words"])
def test_a_forest_answers_with_labels_and_shares_of_the_same_classes(
    words: tuple[str, ...], tmp_path: Path, *, zipped: bool
) -> None:
    file = str(write_forest(tmp_path / "forest.onnx", words=words, zipped=zipped))
    shares = []
    for wanted in ("logits", "label"):
        model = open_answers(AnswersWish(file, output=wanted))
        answer = model.ask(ITEMS)
        form = form_of(answer, len(ITEMS), source="it", wanted=wanted, names=model.names, numbers=model.numbers)
        assert (form.kind, form.classes) == ("label" if wanted == "label" else "probabilities", 3)
        shares.append(form.shares(answer, len(ITEMS)))
    np.testing.assert_array_equal(shares[0].argmax(axis=1), shares[1].argmax(axis=1))
    assert (shares[0].argmax(axis=1) == LABELS).mean() > 0.8


@pytest.mark.parametrize(
    ("answer", "wanted", "kind", "predicted"),
    [
        (np.asarray([2, 0]), "logits", "label", [2, 0]),
        (np.asarray([[2], [0]]), "logits", "label", [2, 0]),
        (np.asarray([2.0, 0.0]), "logits", "label", [2, 0]),
        (np.asarray([0.7, 0.2]), "logits", "probabilities", [1, 0]),
        (np.asarray([1.0, 0.0]), "label", "label", [1, 0]),
        (np.asarray([1.0, 0.0]), "logits", "label", [1, 0]),
        (np.asarray([1.0, 0.0]), "probabilities", "probabilities", [1, 0]),
        (np.asarray([0.7, 1.0]), "logits", "probabilities", [1, 1]),
        (np.asarray([[0.1, 0.9], [0.6, 0.4]]), "logits", "probabilities", [1, 0]),
        (np.asarray([[-3.0, 4.0, 1.0], [9.0, 2.0, 0.0]]), "logits", "logits", [1, 0]),
        (np.asarray([[-3.0, 4.0, 1.0], [9.0, 2.0, 0.0]])[:, :, None, None], "logits", "logits", [1, 0]),
        (np.asarray(["c", "a"], object), "logits", "label", [2, 0]),
        (np.asarray([b"c", b"a"], object), "logits", "label", [2, 0]),
    ],
    ids=str,
)
def test_the_form_of_an_answer_is_told(answer: Any, wanted: str, kind: str, predicted: list[int]) -> None:
    form = form_of(answer, 2, source="it", wanted=wanted, names=("a", "b", "c") if answer.dtype == object else ())
    assert form.kind == kind
    assert form.with_classes(3).shares(answer, 2).argmax(axis=1).tolist() == predicted


@pytest.mark.parametrize(
    ("answer", "words"),
    [
        (np.asarray([0.5, np.nan]), "NaN or infinity"),
        (np.asarray([-1, 2]), "one number an item, -1 to 2; wanted a label from 0 on"),
        (np.asarray([1.5, 2.5]), "--output-name"),
        (np.zeros((2, 3, 4)), r"answered 2 items with \[2, 3, 4\]"),
        (np.zeros((3, 2)), r"answered 2 items with \[3, 2\]"),
        (np.asarray(["a", "b"], object), "label the data with the same words"),
    ],
    ids=str,
)
def test_an_answer_of_no_known_form_is_refused(answer: Any, words: str) -> None:
    with pytest.raises(ModelError, match=words):
        form_of(answer, 2, source="it")


def test_a_later_answer_of_another_form_is_refused() -> None:
    form = AnswerForm("it", "label", 3)
    for answer, words in ((np.asarray([0, 3]), "names the class 3.0; known are 0, 1, 2"), (np.zeros((2, 3)), "as it")):
        with pytest.raises(ModelError, match=words):
            form.shares(answer, 2)


@pytest.mark.parametrize(
    ("first", "later", "words"),
    [
        ([0.2, 0.9], [0.5, 2.0], "answers with 2, where .*--output label"),
        ([0.2, 0.9], [0.5, -0.5], "answers with -0.5, where"),
        ([0.0, 1.0], [0.0, 0.4], "names the class 0.4; .*--output probabilities, as it seems to be"),
        ([[0.2, 0.8], [0.9, 0.1]], [[0.2, 0.8], [3.0, -2.0]], "answers with 3, where"),
        ([[0.2, 0.8], [0.9, 0.1]], [[0.2, 0.8], [0.9, 0.8]], "sum to 1.7, where"),
    ],
    ids=str,
)
def test_later_answers_that_contradict_the_first_are_refused(first: Any, later: Any, words: str) -> None:
    form = form_of(np.asarray(first), 2, source="it")
    form.shares(np.asarray(first), 2)
    with pytest.raises(ModelError, match=words):
        form.shares(np.asarray(later), 2)


def test_a_function_answers_and_its_faults_are_told() -> None:
    model = open_answers(AnswersWish(f"{__name__}:votes"))
    np.testing.assert_array_equal(model.ask(ITEMS), votes(ITEMS))
    with pytest.raises(ModelError, match=r"raised ValueError on inputs \[60, 12\] float32: no 60 items today"):
        open_answers(AnswersWish(f"{__name__}:broken")).ask(ITEMS)


@pytest.mark.parametrize(
    ("wish", "error", "words"),
    [
        (AnswersWish("127.0.0.1:9000"), ConfigError, "name its model with --name"),
        (AnswersWish("some.module:f", name="x"), ConfigError, "--name x names the model of a server"),
        (AnswersWish("forest.joblib"), ModelError, "a pickled model is put behind one of these"),
        (AnswersWish("nowhere.onnx"), ModelError, "does not exist"),
        (AnswersWish("no_such_module:f"), ModelError, "cannot be imported"),
        (AnswersWish(f"{__name__}:NO_FUNCTION"), ModelError, "is int; wanted a function"),
    ],
    ids=str,
)
def test_what_does_not_answer_is_refused(wish: AnswersWish, error: type[Exception], words: str) -> None:
    with pytest.raises(error, match=words):
        open_answers(wish)


def test_messages_are_the_serving_sides() -> None:
    """Each of the client's messages, filled, is read by the serving side's classes field by field, and back."""
    made = message_classes()
    request = made["InferRequest"](model_name="m", model_version="2", raw_input_contents=[b"12"])
    tensor = request.inputs.add(name="x", datatype="FP32", shape=[1, 2])
    for field, value in (("bool", True), ("int", -1), ("int64", -2), ("uint", 3), ("uint64", 4), ("bytes", b"w")):
        getattr(tensor.contents, f"{field}_contents").append(value)
    tensor.contents.fp32_contents.append(0.5)
    tensor.contents.fp64_contents.append(0.25)
    request.outputs.add(name="y")
    response = made["InferResponse"](model_name="m", model_version="2", raw_output_contents=[b"3"])
    response.outputs.add(name="y", datatype="INT64", shape=[1])
    metadata = made["Metadata"](name="m", versions=["1"])
    metadata.inputs.add(name="x", datatype="FP32", shape=[-1])
    metadata.outputs.add(name="y", datatype="FP32", shape=[-1])
    for mine, theirs in (
        (request, ModelInferRequest),
        (response, ModelInferResponse),
        (made["Model"](name="m", version="1"), ModelMetadataRequest),
        (metadata, ModelMetadataResponse),
    ):
        read = theirs.FromString(mine.SerializeToString())
        assert type(mine).FromString(read.SerializeToString()) == mine


@contextmanager
def model_server(file: Path) -> Iterator[str]:
    """Our own model server on a thread of its own, so that a client may block."""
    started, stop, found = threading.Event(), asyncio.Event(), []

    async def run() -> None:
        async with serving(ServedModel(file, name="forest", version="1", threads=1), "127.0.0.1:0") as address:
            found.extend([address, asyncio.get_running_loop()])
            started.set()
            await stop.wait()

    thread = threading.Thread(target=lambda: asyncio.run(run()))
    thread.start()
    assert started.wait(20)
    try:
        yield found[0]
    finally:
        found[1].call_soon_threadsafe(stop.set)
        thread.join(20)


@pytest.mark.parametrize("words", [(), WORDS], ids=["numbers", "words"])
def test_a_server_answers_as_its_file_does(words: tuple[str, ...], tmp_path: Path) -> None:
    file = write_forest(tmp_path / "forest.onnx", words=words)
    expected = open_answers(AnswersWish(str(file))).ask(ITEMS)
    with model_server(file) as address:
        scores, labels = (
            open_answers(AnswersWish(address, "forest:1", output_name=name, labels=words))
            for name in ("probabilities", "label")
        )
        np.testing.assert_array_equal(scores.ask(ITEMS), expected)
        form = AnswerForm("it", "label", 3, names=words)
        np.testing.assert_array_equal(form.shares(labels.ask(ITEMS), 60).argmax(axis=1), expected.argmax(axis=1))
        assert scores.sizes == (tiny.FEATURES,)
        with pytest.raises(ModelError, match="answers with outputs label, probabilities; say which"):
            open_answers(AnswersWish(address, "forest", labels=words)).ask(ITEMS)
        with pytest.raises(ModelError, match=r"NOT_FOUND.*wanted the name of a model that it serves"):
            open_answers(AnswersWish(address, "other"))


class Status(grpc.RpcError):
    def __init__(self, status: grpc.StatusCode, words: str = "") -> None:
        super().__init__(words)
        self.status, self.words = status, words

    def code(self) -> grpc.StatusCode:
        return self.status

    def details(self) -> str:
        return self.words


def limited(server: Server, largest: int, status: grpc.StatusCode, monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Let a server answer batches of at most so many items; return the list to which the sizes asked for are added."""
    sizes: list[int] = []

    def asked(wire: NDArray[Any]) -> NDArray[Any]:
        sizes.append(len(wire))
        if len(wire) > largest:
            raise Status(status, f"batch-size of {len(wire)} must be <= {largest}")
        return wire.sum(axis=1)

    monkeypatch.setattr(server, "asked", asked)
    return sizes


@pytest.mark.parametrize(
    "status",
    [
        grpc.StatusCode.RESOURCE_EXHAUSTED,
        grpc.StatusCode.OUT_OF_RANGE,
        grpc.StatusCode.INVALID_ARGUMENT,  # Triton's own
        grpc.StatusCode.INTERNAL,
        grpc.StatusCode.UNKNOWN,
    ],
)
@pytest.mark.parametrize("largest", [1, 4, 20])
def test_a_batch_that_is_too_large_is_halved(
    status: grpc.StatusCode, largest: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    server = Server("127.0.0.1:1", "forest")
    sizes = limited(server, largest, status, monkeypatch)
    np.testing.assert_array_equal(server.ask(ITEMS), ITEMS.sum(axis=1))
    assert max(sizes[-4:]) <= largest
    assert sizes[:2] == [60, 30]
    asked = len(sizes)
    np.testing.assert_array_equal(server.ask(ITEMS[:20]), ITEMS[:20].sum(axis=1))
    assert max(sizes[asked:]) <= largest, "what was found out once is kept to"


@pytest.mark.parametrize("status", [grpc.StatusCode.INVALID_ARGUMENT, grpc.StatusCode.INTERNAL])
def test_what_fails_for_one_item_too_is_told_as_it_was_said_first(
    status: grpc.StatusCode, monkeypatch: pytest.MonkeyPatch
) -> None:
    server = Server("127.0.0.1:1", "forest")
    sizes = limited(server, 0, status, monkeypatch)
    with pytest.raises(ModelError, match=f"{status.name}, batch-size of 60"):
        server.ask(ITEMS)
    assert sizes == [60, 30, 15, 7, 3, 1]
    assert server.batch_items == Server("127.0.0.1:1", "forest").batch_items
    limited(server, 60, status, monkeypatch)
    server.ask(ITEMS)
    sizes = limited(server, 59, status, monkeypatch)
    with pytest.raises(ModelError, match=status.name):
        server.ask(ITEMS)  # so many were answered before: the batch is not too large
    assert sizes == [60]


def test_other_statuses_halve_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    server = Server("127.0.0.1:1", "forest")
    sizes = limited(server, 4, grpc.StatusCode.NOT_FOUND, monkeypatch)
    with pytest.raises(ModelError, match="NOT_FOUND"):
        server.ask(ITEMS)
    assert sizes == [60]


@pytest.mark.parametrize(
    ("status", "falls_back"),
    [
        (grpc.StatusCode.INVALID_ARGUMENT, True),
        (grpc.StatusCode.UNKNOWN, True),
        (grpc.StatusCode.NOT_FOUND, True),
        (grpc.StatusCode.DEADLINE_EXCEEDED, False),
        (grpc.StatusCode.UNAVAILABLE, False),
        (grpc.StatusCode.RESOURCE_EXHAUSTED, False),
    ],
)
def test_labels_are_learned_from_only_where_there_are_no_shares(
    status: grpc.StatusCode, *, falls_back: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    server = Server("127.0.0.1:1", "forest", output_name="predict_proba")
    is_away = True

    def asked(wire: NDArray[Any]) -> NDArray[Any]:
        if server.output_name is not None and is_away:
            raise Status(status)
        return np.zeros((len(wire), 2)) if server.output_name else np.zeros(len(wire))

    monkeypatch.setattr(server, "asked", asked)
    ask = Negotiated(server, guessed=True)
    if falls_back:
        assert ask(ITEMS).shape == (60,)
        return
    with pytest.raises(ModelError, match=status.name):
        ask(ITEMS)
    is_away = False
    assert ask(ITEMS).shape == (60, 2)


def test_a_server_that_is_fixed_to_a_batch_is_asked_in_such(monkeypatch: pytest.MonkeyPatch) -> None:
    sizes: list[int] = []

    def asked(self: Server, wire: NDArray[Any]) -> NDArray[Any]:
        sizes.append(len(wire))
        if len(wire) != 8:
            raise Status(grpc.StatusCode.INVALID_ARGUMENT, "unexpected shape")
        return wire.sum(axis=1)

    def metadata(self: Server) -> Any:
        said = message_classes()["Metadata"](name="forest")
        said.inputs.add(name="x", datatype="FP32", shape=[8, tiny.FEATURES])
        said.outputs.add(name="y", datatype="FP32", shape=[8])
        return said

    monkeypatch.setattr(Server, "asked", asked)
    monkeypatch.setattr(Server, "metadata", metadata)
    model = open_answers(AnswersWish("127.0.0.1:1", "forest"))
    np.testing.assert_array_equal(model.ask(ITEMS), ITEMS.sum(axis=1))
    assert sizes == [8] * 8
    assert model.sizes == (tiny.FEATURES,)


def test_a_model_of_whole_numbers_is_told_to_take_floats(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def metadata(self: Server) -> Any:
        said = message_classes()["Metadata"](name="forest")
        said.inputs.add(name="x", datatype="INT64", shape=[-1, 3])
        return said

    monkeypatch.setattr(Server, "metadata", metadata)
    with pytest.raises(ModelError, match=r"takes INT64; .*export it from X\.astype\(numpy\.float32\)"):
        open_answers(AnswersWish("127.0.0.1:1", "forest"))
    forest = onnx.load(write_forest(tmp_path / "forest.onnx"))
    forest.graph.input[0].type.tensor_type.elem_type = onnx.TensorProto.INT64
    onnx.save(forest, tmp_path / "forest.onnx")
    with pytest.raises(ModelError, match=r"is tensor\(int64\); .*export it from X\.astype\(numpy\.float32\)"):
        open_answers(AnswersWish(str(tmp_path / "forest.onnx")))


def test_a_server_that_is_away_is_asked_again_and_then_named() -> None:
    waited: list[float] = []
    with pytest.raises(ModelError, match=r"at 127.0.0.1:1 answered UNAVAILABLE.*start again when it runs"):
        Server("127.0.0.1:1", "forest", timeout_s=5.0, wait=waited.append).metadata()
    assert len(waited) == MAX_TRIES - 1
    assert waited == sorted(waited)


def test_answers_are_asked_once_and_outlive_a_torn_file(tmp_path: Path) -> None:
    asked: list[int] = []

    def ask(wire: NDArray[Any]) -> NDArray[Any]:
        asked.append(len(wire))
        return votes(wire)

    model, box = ClosedModel("it", "it", "one", ask, batch_items=16), ValueBox((0.0,), (1.0,), 1)
    form = AnswerForm("it", "label", 2)
    first = KeptAnswers(model, form, box, tmp_path)
    shares = first(np.concatenate([ITEMS, ITEMS[:5]]))
    assert asked == [16, 16, 16, 12]
    np.testing.assert_array_equal(shares[60:], shares[:5])
    (file,) = tmp_path.iterdir()
    file.write_bytes(file.read_bytes()[:-7])  # a run that was killed while it wrote
    np.testing.assert_array_equal(KeptAnswers(model, form, box, tmp_path)(ITEMS), shares[:60])
    assert asked[4:] == [1]
    other = ClosedModel("it", "it", "another", ask)
    KeptAnswers(other, form, box, tmp_path)(ITEMS)
    assert sum(asked[5:]) == 60
