"""Tasks are computed once, kept as soon as they are there, and what is shared and sent is what arrives."""

from __future__ import annotations

import pickle
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import fx

from guard.errors import ConfigError, NotReadyError
from guard.offline.model.classifier import Classifier
from guard.offline.model.graph.shapes import shape
from guard.offline.work import ray_cluster
from guard.offline.work.parallel import Threads
from guard.offline.work.ray_cluster import computing_on, failed, refused
from guard.offline.work.ray_task import Board, check_versions, versions
from guard.offline.work.shipping import from_bytes, to_bytes
from guard.offline.work.store import ResultStore
from guard.offline.work.tasks import TaskCallbacks, Tasks, Watch, check_sendable, resumed
from tests.offline import tiny


def scaled(factor: int, part: int, watch: Watch) -> dict[str, np.ndarray]:
    if part < 0:
        raise ValueError("negative")
    watch.look()
    watch.count(part)
    watch.note(f"part {part}")
    return {"value": np.asarray(factor * part), "threads": np.asarray(torch.get_num_threads())}


executors = pytest.mark.parametrize("executor", [Threads(1), Threads(2)], ids=str)
kinds = pytest.mark.parametrize("alone", [False, True])


@executors
@kinds
def test_results_are_in_order_and_everything_is_reported(executor: Threads, *, alone: bool) -> None:
    kept: dict[int, int] = {}
    done: list[int] = []
    steps: list[int] = []
    notes: list[str] = []
    listener = TaskCallbacks[Any](
        kept=lambda number, found: kept.update({number: int(found["value"])}),
        done=done.append,
        counted=steps.append,
        noted=notes.append,
    )
    found = executor.run(Tasks(scaled, 3, range(5), threads=2, alone=alone), listener)
    assert [int(one["value"]) for one in found] == [0, 3, 6, 9, 12]
    assert kept == {number: 3 * number for number in range(5)}
    assert sorted(done) == list(range(5))
    assert sum(steps) == 10
    assert sorted(notes) == [f"part {number}" for number in range(5)]
    assert {int(one["threads"]) for one in found} == {2 if alone else 1}
    assert executor.processes == 1


@executors
@kinds
def test_what_was_finished_before_a_failure_is_kept_and_not_computed_again(
    executor: Threads, tmp_path: Path, *, alone: bool
) -> None:
    store = ResultStore(tmp_path)

    def asked(parts: list[int], **given: Any) -> list[int]:
        places = [store.place("part", str(part)) for part in parts]
        tasks = Tasks(scaled, 3, parts, alone=alone)
        return [int(one["value"]) for one in resumed(executor, tasks, places, **given)]

    with pytest.raises(ValueError, match="negative"):
        asked([1, 2, -1])
    computed: list[int] = []
    done: list[int] = []
    assert asked([1, 2, 4, 4], done=done.append, counted=computed.append) == [3, 6, 12, 12]
    assert 1 not in computed
    assert computed.count(4) == 1, "one place is computed once"
    assert sorted(done) == [0, 1, 2, 3]
    assert asked([1, 2], anew=True, counted=computed.append) == [3, 6]
    assert computed.count(1) == 1


@pytest.mark.parametrize(
    ("classifier", "items"),
    [(tiny.image_classifier, tiny.data), (tiny.vector_classifier, tiny.vectors), (tiny.series_classifier, tiny.series)],
)
def test_a_model_that_was_sent_is_the_model(classifier: Callable[[], Classifier], items: Any) -> None:
    """Same bits, same names, same shapes: so it can be opened at its taps, attacked and compiled as the original."""
    model, inputs = classifier(), torch.from_numpy(items(20)[0])
    sent: Classifier = from_bytes(to_bytes(model))
    assert torch.equal(sent(inputs), model(inputs))
    assert (sent.spec, sent.taps, sent.item_shape, sent.dropouts) == (
        model.spec,
        model.taps,
        model.item_shape,
        model.dropouts,
    )
    assert sent.graph.code == model.graph.code
    for one, other in zip(sent.graph.graph.nodes, model.graph.graph.nodes, strict=True):
        assert (one.name, one.op, one.target) == (other.name, other.op, other.target)
        assert ("val" in one.meta) == ("val" in other.meta)
        if "val" in one.meta:
            assert shape(one) == shape(other)
            assert one.meta["val"].dtype == other.meta["val"].dtype
    taps = [tap.name for tap in model.taps]
    for mine, theirs in zip(sent.opened(taps)(inputs), model.opened(taps)(inputs), strict=True):
        assert torch.equal(mine, theirs)


def test_a_graph_within_a_graph_and_one_in_training_mode_arrive_as_they_are() -> None:
    class Inner(torch.nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return torch.relu(x - 0.5) + self.offset

    inner = Inner()
    inner.register_buffer("offset", torch.ones(1))
    outer = fx.symbolic_trace(torch.nn.Sequential(fx.symbolic_trace(inner), torch.nn.Linear(3, 2))).train()
    sent = from_bytes(to_bytes(outer))
    assert sent.training
    assert sent.eval().code == outer.eval().code
    x = torch.rand(4, 3)
    assert torch.equal(sent(x), outer(x))
    assert {name for name, _ in sent.named_parameters()} == {name for name, _ in outer.named_parameters()}


def test_what_cannot_be_sent_is_said_in_one_line() -> None:
    with pytest.raises(ConfigError, match=r"--ray: something cannot be sent to a worker \(.*local object.*installed"):
        to_bytes(lambda: None)
    with pytest.raises(ConfigError, match="--ray with --answers"):
        check_sendable(type("Elsewhere", (), {"elsewhere": True})(), closed=True)
    check_sendable(Threads(), closed=True)
    check_sendable(None, closed=True)


@pytest.mark.parametrize("address", ["", "head", "head:", ":6379", "ray://head", "local", "head:port"])
def test_an_address_that_is_none_is_refused(address: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ray_cluster, "installed", lambda: None)
    with pytest.raises(ConfigError, match=r"is no address; wanted HOST:PORT"), computing_on(address):
        pytest.fail("connected")


def test_without_ray_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    words = r"--ray takes Ray .*; install inference-guard\[ray\]"
    with pytest.raises(ConfigError, match=words), computing_on("127.0.0.1:1"):
        pytest.fail("connected")
    with computing_on(None) as none:
        assert none is None


def test_nothing_that_listens_is_said_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ray_cluster, "installed", lambda: None)
    for address in ("127.0.0.1:1", "ray://127.0.0.1:1", "[::1]:1", "127.0.0.1:99999"):
        words = r"no Ray cluster can be reached at .*; start one"
        with pytest.raises(NotReadyError, match=words), computing_on(address):
            pytest.fail("connected")


def test_what_ray_says_becomes_an_error_of_ours() -> None:
    mismatch = refused("head:1", RuntimeError("Version mismatch: The cluster was started with:\n  Ray: 2.1\n"))
    assert isinstance(mismatch, ConfigError)
    assert "has other versions: Version mismatch: The cluster was started with: Ray: 2.1" in str(mismatch)
    assert isinstance(refused("head:1", ConnectionError("no")), NotReadyError)
    wrapped = RuntimeError("a page of text")
    wrapped.cause = ValueError("own")  # type: ignore[attr-defined]
    assert failed(wrapped, "lost") is wrapped.cause  # type: ignore[attr-defined]
    lost = failed(RuntimeError("died\nand more"), "a task was lost")
    assert str(lost) == "a task was lost (RuntimeError: died); see `ray status` and the worker's log"


def test_a_worker_of_other_versions_computes_nothing() -> None:
    check_versions(versions())
    with pytest.raises(
        ConfigError, match=r"worker \S+ of the Ray cluster has torch \S+ in place of 1\.0; install there"
    ):
        check_versions({**versions(), "torch": "1.0"})
    assert pickle.loads(pickle.dumps(dict(versions()))) == versions()  # noqa: S301


def test_a_second_attempt_at_a_task_counts_once() -> None:
    board = Board()
    board.count(1, 0, 30)
    board.count(1, 1, 5)
    board.note(1, "here")
    board.count(1, 0, 10)  # its worker was lost: it begins again
    assert board.read(1) == (15, "here")
    board.count(2, 0, 1)
    board.count(1, 0, 40)  # of a run that has ended
    assert board.read(2) == (1, "")
    assert board.read(1) == (0, "")
