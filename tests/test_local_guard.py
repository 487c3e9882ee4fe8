"""The guard in the caller's own process: the sidecar's verdicts, on any number of threads."""

from __future__ import annotations

import asyncio
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import guard
from guard.errors import BundleError, ConfigError, DataError, PromiseError, Uninspectable
from guard.local_guard import LocalGuard
from guard.policy import Action
from guard.serve.grpc.wire.guard_pb2 import InspectRequest, InspectResponse
from tests.serve import tiny_bundle
from tests.serve.guarded import calling, guarding, infer_request

MIXED = np.concatenate([tiny_bundle.clean(70), tiny_bundle.bright(), tiny_bundle.striped(), tiny_bundle.clean(5, 9)])


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_bundle.make(tmp_path_factory.mktemp("local") / "bundle").path


@pytest.fixture(scope="module")
def local(bundle: Path) -> LocalGuard:
    return guard.open(bundle, threads=1)


def test_what_is_crafted_is_rejected_and_what_is_ordinary_passes(local: LocalGuard) -> None:
    assert local.inspect(tiny_bundle.ordinary(3)).verdict.items == (Action.PASS,) * 3
    found = local.inspect(np.concatenate([tiny_bundle.ordinary(), tiny_bundle.striped()]))
    assert found.verdict.items == (Action.PASS, Action.REJECT)
    assert found.enacted is Action.REJECT
    assert found.worst == 1


async def sidecar_verdict(bundle: Path, images: Any) -> InspectResponse:
    """What Inspect, the operator's method of the sidecar, says of a request."""
    async with guarding(bundle) as guarded, calling(guarded.serving.admin_address) as operator:
        answer = await operator.call("/guard.v1.Guard/Inspect", InspectRequest(request=infer_request(images)))
        assert answer.ok, answer.details
        return InspectResponse.FromString(answer.body)


def test_verdicts_and_p_values_are_the_sidecars(bundle: Path, local: LocalGuard) -> None:
    told = asyncio.run(sidecar_verdict(bundle, MIXED))
    found = local.inspect(MIXED)
    assert [item.action for item in told.items] == [item.value for item in found.verdict.items]
    assert np.array_equal([item.p_value for item in told.items], found.readings.p_value)
    assert told.action == found.verdict.request.value


def test_threads_share_a_guard(local: LocalGuard) -> None:
    alone = [local.inspect(MIXED[start : start + 3]).readings.p_value for start in range(0, 60, 3)]
    with ThreadPoolExecutor(8) as pool:
        beside = list(pool.map(lambda start: local.inspect(MIXED[start : start + 3]).readings.p_value, range(0, 60, 3)))
    assert all(np.array_equal(one, other) for one, other in zip(alone, beside, strict=True))


def test_a_request_can_be_judged_as_a_whole(bundle: Path) -> None:
    judged = guard.open(bundle, rows="request", reject_rate=0.1, flag_rate=0.1, threads=1)
    found = judged.inspect(np.concatenate([tiny_bundle.ordinary(4), tiny_bundle.striped()]))
    assert found.verdict.request is Action.REJECT
    assert found.request_p_value is not None
    with pytest.raises(Uninspectable, match="send at most 111"):
        judged.inspect(tiny_bundle.clean(112))


@pytest.mark.parametrize(
    ("images", "words"),
    [
        (tiny_bundle.ordinary()[0], r"shape \[1, 4, 4\]; the model takes \[item, 1, 4, 4\]"),
        (tiny_bundle.ordinary().astype(np.float64), "inputs are float64; the model takes float32"),
        (tiny_bundle.ordinary(0), "no items"),
        (tiny_bundle.ordinary() * np.float32(np.nan), "NaN or infinity"),
        ([[1.0]], r"shape \[1, 1\]"),
        (None, r"shape \[\]"),
    ],
)
def test_what_is_no_input_of_the_model_is_told(local: LocalGuard, images: Any, words: str) -> None:
    with pytest.raises(DataError, match=words):
        local.inspect(images)


def test_an_array_in_another_order_is_read_as_it_is(local: LocalGuard) -> None:
    turned = np.asfortranarray(MIXED)
    assert np.array_equal(local.inspect(turned).readings.p_value, local.inspect(MIXED).readings.p_value)


@pytest.mark.parametrize(
    ("options", "error", "words"),
    [
        ({"reject_rate": 1e-6}, PromiseError, "cannot be promised"),
        ({"reject_rate": 0.1, "flag_rate": 0.05}, ConfigError, "flag_rate = 0.05 is below"),
        ({"rows": "each"}, ConfigError, "rows = 'each'; wanted one of any, request"),
    ],
)
def test_a_promise_that_cannot_be_kept_opens_nothing(
    bundle: Path, options: dict[str, Any], error: type[Exception], words: str
) -> None:
    with pytest.raises(error, match=words):
        guard.open(bundle, **options)


def test_a_damaged_bundle_opens_nothing(tmp_path: Path) -> None:
    with pytest.raises(BundleError, match="no such directory"):
        guard.open(tmp_path / "nowhere")
    made = tiny_bundle.make(tmp_path / "bundle").path
    (made / "screen.onnx").write_bytes(b"another")
    with pytest.raises(BundleError):
        guard.open(made)


def test_the_package_alone_imports_next_to_nothing() -> None:
    code = "import sys, guard; print([m for m in ('numpy', 'grpc', 'onnxruntime', 'torch') if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"
