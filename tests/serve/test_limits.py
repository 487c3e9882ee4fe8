"""How large, how many, how often: the small values behind the sidecar's bounds."""

from __future__ import annotations

import gzip
import zlib
from typing import Any

import pytest

from guard.config import ServeConfig
from guard.errors import ConfigError, TooLarge
from guard.manifest import InputSpec
from guard.serve.agreement import MIN_COMPARED_ITEMS, WINDOW_ITEMS, Agreement
from guard.serve.batcher import Batcher
from guard.serve.grpc.door import is_packed, unpacked
from guard.serve.limits import MAX_DEFAULT_IN_FLIGHT_BYTES, MIN_DEFAULT_IN_FLIGHT_BYTES, Limits, request_bytes
from guard.serve.log import Seldom
from tests.serve import tiny_bundle
from tests.serve.guarded import infer_request

MIB = 2**20
DIGITS = InputSpec("input", "FP32", (1, 8, 8), (0.0,), (1.0,), 16)
PICTURES = InputSpec("input", "FP32", (3, 224, 224), (0.0,), (1.0,), 255)


def limits(spec: InputSpec, *, memory: int | None = None, **settings: Any) -> Limits:
    batcher = Batcher(None, None, rows_per_item=4, max_rows=64, max_queue_rows=1024)  # type: ignore[arg-type]
    return Limits.of(ServeConfig(**settings), [(spec, batcher)], memory_bytes=memory)


def test_the_largest_message_is_the_largest_request_that_the_queue_can_hold() -> None:
    found = limits(DIGITS)
    assert found.message_bytes == request_bytes(DIGITS, 256)
    assert found.in_flight_bytes == MAX_DEFAULT_IN_FLIGHT_BYTES
    assert found.warning is None


def test_several_of_the_largest_fit_and_one_batch_in_any_case() -> None:
    assert limits(PICTURES).message_bytes == MAX_DEFAULT_IN_FLIGHT_BYTES // 8
    small = limits(PICTURES, memory=128 * MIB)
    assert small.in_flight_bytes == MIN_DEFAULT_IN_FLIGHT_BYTES
    assert small.message_bytes == request_bytes(PICTURES, 16)
    assert "only 3 messages" in str(small.warning)


@pytest.mark.parametrize(("memory", "wanted"), [(None, 256), (512 * MIB, 128), (64 * 2**30, 256), (64 * MIB, 32)])
def test_the_memory_for_messages_follows_the_container(memory: int | None, wanted: int) -> None:
    assert limits(DIGITS, memory=memory).in_flight_bytes == wanted * MIB


def test_what_the_operator_sets_holds_or_is_refused() -> None:
    assert limits(DIGITS, max_message_bytes=200 * MIB).in_flight_bytes == 400 * MIB
    found = limits(DIGITS, max_message_bytes=5, max_bytes_in_flight=10)
    assert (found.message_bytes, found.in_flight_bytes) == (5, 10)
    with pytest.raises(ConfigError, match="no room for two messages"):
        limits(DIGITS, max_message_bytes=6, max_bytes_in_flight=10)


@pytest.mark.parametrize("form", ["raw", "typed"])
@pytest.mark.parametrize("items", [1, 100])
def test_a_request_of_so_many_items_fits(form: str, items: int) -> None:
    images = tiny_bundle.ordinary(items)
    spec = InputSpec("input", "FP32", tiny_bundle.SHAPE, (0.0,), (1.0,), 255)
    assert len(infer_request(images, form=form).SerializeToString()) <= request_bytes(spec, items)
    whole = InputSpec("input", "UINT8", tiny_bundle.SHAPE, (0.0,), (255.0,), 255)
    loud = (images * 0 + 255).astype("uint8")
    assert len(infer_request(loud, form=form).SerializeToString()) <= request_bytes(whole, items)


@pytest.mark.parametrize("pack", [gzip.compress, zlib.compress], ids=["gzip", "zlib"])
def test_unpacking_is_bounded_and_exact(pack: Any) -> None:
    message = infer_request(tiny_bundle.ordinary(5)).SerializeToString()
    assert not is_packed(message)
    packed = pack(message)
    assert is_packed(packed)
    assert unpacked(packed, len(message)) == message
    with pytest.raises(TooLarge, match="unpacks to more"):
        unpacked(packed, len(message) - 1)
    with pytest.raises(TooLarge):
        unpacked(pack(bytes(2**24)), 2**20)
    for odd in (packed[:-1], packed + b"\0", packed[:2], b"\x78\x9c", b"\x1f\x8b"):
        assert unpacked(odd, 2**20) == odd  # whatever it is, it is nothing packed


def test_agreement_forgets_and_does_not_judge_by_a_few() -> None:
    agreement = Agreement()
    assert agreement.note(MIN_COMPARED_ITEMS - 1, MIN_COMPARED_ITEMS - 1) is None
    assert agreement.note(1, 1) == 1.0
    share = 1.0
    for _ in range(WINDOW_ITEMS // 4):
        share = agreement.note(0, 4) or 0.0
    assert share == 0.0
    assert agreement.note(WINDOW_ITEMS * 3, WINDOW_ITEMS * 3) == 1.0  # one request larger than the window


def test_seldom_lets_one_through_and_counts_the_others() -> None:
    seldom = Seldom(1.0)
    assert [seldom.due("a", now) for now in (0.0, 0.1, 0.9, 1.0, 1.5, 5.0)] == [0, None, None, 2, None, 1]
    assert seldom.due("b", 0.2) == 0
