"""Several models behind one guard: each with its bundle and its settings, and none in another's way."""

from __future__ import annotations

import asyncio
import io
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest

from guard.errors import BundleError, ConfigError, PromiseError, UnknownModel, UserError
from guard.serve.grpc.wire.guard_pb2 import InspectRequest, InspectResponse
from guard.serve.grpc.wire.inference_pb2 import (
    ModelReadyRequest,
    ModelReadyResponse,
)
from guard.serve.log import Log
from guard.serve.server import running
from tests.serve import tiny_bundle
from tests.serve.fake_upstream import FakeUpstream
from tests.serve.guarded import Client, calling, infer_request, until
from tests.serve.several import SeveralModels, configured, describe, guarding_several

ORDINARY, BRIGHT = tiny_bundle.ordinary(2), tiny_bundle.bright(1)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bundle for a model of whole numbers."""
    return tiny_bundle.make(tmp_path_factory.mktemp("models") / "whole", datatype="UINT8").path


async def is_ready(client: Client, name: str, version: str = "") -> bool:
    answer = await client.call("ModelReady", ModelReadyRequest(name=name, version=version))
    return bool(ModelReadyResponse.FromString(answer.body).ready)


def test_each_model_has_its_bundle_and_its_settings(bundle: Path, whole: Path, tmp_path: Path) -> None:
    text = f"""
mode = "flag"
[models.first]
bundle = "{bundle}"
mode = "enforce"
reject_rate = 0.02
[models.second]
bundle = "{bundle}"
mode = "shadow"
tell_flags = true
[models.whole]
bundle = "{whole}"
"""

    async def story() -> None:
        async with guarding_several(tmp_path, text) as guarded:
            client, items = guarded.client, tiny_bundle.as_wire(BRIGHT, "UINT8")
            rejected = await client.infer(BRIGHT, name="first")
            assert (rejected.code, rejected.reason) == (grpc.StatusCode.PERMISSION_DENIED, "REJECTED")
            assert (await client.infer(BRIGHT, name="second")).ok
            assert (await client.infer(items, name="whole")).ok
            for name, wrong in (("whole", BRIGHT), ("first", items)):
                refused = await client.infer(wrong, name=name)
                assert (refused.code, refused.reason) == (grpc.StatusCode.INVALID_ARGUMENT, "MALFORMED_REQUEST")
            stranger = await client.infer(ORDINARY, name=tiny_bundle.MODEL_NAME)
            assert (stranger.code, stranger.reason) == (grpc.StatusCode.NOT_FOUND, "UNKNOWN_MODEL")
            assert "'first', 'second', 'whole'" in stranger.details
            for model, action in (("first", "reject"), ("second", "would_reject"), ("whole", "would_reject")):
                assert await guarded.metric("guard_requests_total", model=model, action=action) == 1
                assert await guarded.metric("guard_p_value_count", model=model) == 1
            assert await guarded.metric("guard_promised_rate", model="first", action="reject") == 0.02
            assert await guarded.metric("guard_promised_rate", model="whole", action="reject") == 0.01
            assert await guarded.metric("guard_bundle_info") == 3
            (said,) = guarded.events("reject")
            assert said["model"] == "first"
            told = {model.label: model for model in (await describe(guarded)).models}
            assert {name: model.mode for name, model in told.items()} == {
                "first": "enforce",
                "second": "shadow",
                "whole": "flag",
            }
            assert told["first"].bundle_digest == told["second"].bundle_digest != told["whole"].bundle_digest
            assert all(model.ready for model in told.values())

    asyncio.run(story())


def test_models_of_one_bundle_share_its_engine_and_its_queue(bundle: Path, tmp_path: Path) -> None:
    """Unless their settings of the queue differ."""
    text = "\n".join(
        f'[models.{name}]\nbundle = "{bundle}"\n{more}'
        for name, more in (("a", ""), ("b", 'repair = "steps"\n'), ("c", "max_queue_rows = 8\n"))
    )

    async def story() -> None:
        async with guarding_several(tmp_path, text) as guarded:
            models = guarded.serving.models.table.models
            first, second, third = (model.loaded for model in models)
            assert first is second is not third
            assert first.engine.thread is third.engine.thread
            assert list(first.engine.loaded().repairs) == ["steps"]
            assert third.engine.loaded().repairs == {}
            refused = await guarded.client.infer(tiny_bundle.ordinary(5), name="c")
            assert "the queue holds 4" in refused.details
            assert (await guarded.client.infer(tiny_bundle.ordinary(5), name="a")).ok

    asyncio.run(story())


def test_versions_of_one_model_each_have_a_bundle(tmp_path: Path) -> None:
    one, two = (tiny_bundle.make(tmp_path / name, version=name) for name in ("1", "2"))
    text = f'[models.tiny]\nbundle = "{one.path}"\n[models."tiny:2"]\nbundle = "{two.path}"\nmode = "shadow"\n'

    async def story() -> None:
        upstream = SeveralModels({"tiny": ["1", "2", "3"]})
        async with guarding_several(tmp_path, text, upstream) as guarded:
            client = guarded.client
            assert (await client.infer(BRIGHT, model_version="1")).reason == "REJECTED"
            assert (await client.infer(BRIGHT, model_version="2")).ok
            for version, said in (("3", "versions 1, 2 of model 'tiny'; the request names '3'"), ("", "no version")):
                refused = await client.infer(ORDINARY, model_version=version)
                assert (refused.code, refused.reason) == (grpc.StatusCode.NOT_FOUND, "UNKNOWN_MODEL")
                assert said in refused.details
            assert await guarded.metric("guard_requests_total", model="tiny:2", action="would_reject") == 1
            upstream.versions = {"tiny": ["2"]}  # the server's choice can be no other now
            await until(lambda: guarded.serving.models.versions["tiny"] == ("2",))
            assert (await client.infer(BRIGHT)).ok
            assert guarded.serving.readiness.of("tiny:2") is None
            assert "made for version 1" in str(guarded.serving.readiness.of("tiny"))
            assert await is_ready(client, "tiny", "2")
            assert not await is_ready(client, "tiny", "1")

    asyncio.run(story())


def test_a_model_that_the_server_lacks_is_told_by_name(bundle: Path, tmp_path: Path) -> None:
    text = f'[models.a]\nbundle = "{bundle}"\n[models.b]\nbundle = "{bundle}"\n'

    async def story() -> None:
        upstream = SeveralModels()
        async with guarding_several(tmp_path, text, upstream) as guarded:
            upstream.absent = {"b"}
            await until(lambda: guarded.serving.readiness.because is not None)
            assert "about model 'b': NOT_FOUND" in str(guarded.serving.readiness.because)
            assert await is_ready(guarded.client, "a")
            assert not await is_ready(guarded.client, "b")
            told = {model.label: model for model in (await describe(guarded)).models}
            assert (told["a"].ready, told["b"].ready) == (True, False)
            assert (await guarded.client.infer(ORDINARY, name="a")).ok
            upstream.absent = set()
            await guarded.until_ready()

    asyncio.run(story())


def test_disagreement_is_one_models(bundle: Path, tmp_path: Path) -> None:
    text = f'max_disagreement = 0.1\n[models.a]\nbundle = "{bundle}"\n[models.b]\nbundle = "{bundle}"\n'

    async def story() -> None:
        async with guarding_several(tmp_path, text) as guarded:
            guarded.upstream.wrong = True
            for _ in range(2):
                await guarded.client.infer(tiny_bundle.ordinary(32), name="b")
            assert "of 'b'" in str(guarded.serving.readiness.of("b"))
            assert guarded.serving.readiness.of("a") is None
            assert await guarded.metric("guard_upstream_disagreement_ratio", model="b") == 1
            assert await guarded.metric("guard_upstream_disagreement_ratio", model="a") == 0
            assert not await is_ready(guarded.client, "b")
            assert await is_ready(guarded.client, "a")

    asyncio.run(story())


@pytest.mark.parametrize(
    ("request_", "passes"),
    [
        (infer_request(BRIGHT, name="off").SerializeToString(), True),
        (infer_request(BRIGHT, name="allowed").SerializeToString(), True),
        (b"\xff\xff", False),  # it names no model, so the strictest policy holds
        (infer_request(ORDINARY.astype(np.float64), name="open").SerializeToString(), True),
        (infer_request(ORDINARY.astype(np.float64), name="closed").SerializeToString(), False),
    ],
    ids=["a model in off", "an allowed model", "no message", "shadow, malformed", "enforce, malformed"],
)
def test_what_is_not_inspected_passes_where_its_own_model_says_so(
    bundle: Path, tmp_path: Path, request_: bytes, *, passes: bool
) -> None:
    text = 'allow_models = ["allowed"]\n' + "\n".join(
        f'[models.{name}]\nbundle = "{bundle}"\nmode = "{mode}"\n'
        for name, mode in (("off", "off"), ("open", "shadow"), ("closed", "enforce"))
    )

    async def story() -> None:
        async with guarding_several(tmp_path, text) as guarded:
            answer = await guarded.client.call("ModelInfer", request_)
            assert (len(guarded.upstream.requests) == 1) is passes
            assert answer.trailing.get("guard-verdict") == ("unchecked" if passes else None)
            if passes:
                assert guarded.upstream.requests == [request_]
                assert await guarded.metric("guard_unchecked_total") == 1
            else:
                assert answer.code is grpc.StatusCode.INVALID_ARGUMENT

    asyncio.run(story())


def test_a_broken_engine_is_its_own_models_trouble(
    bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Closed refuses, open passes, and the model of another bundle is inspected as before."""
    other = tiny_bundle.make(tmp_path / "other", reject_rate=0.02).path
    text = f"""
[models.closed]
bundle = "{bundle}"
[models.open]
bundle = "{bundle}"
on_failure = "open"
[models.well]
bundle = "{other}"
"""

    async def story() -> None:
        async with guarding_several(tmp_path, text) as guarded:
            broken = guarded.serving.models.table.models[0].loaded.engine.loaded()

            def fail(*_: Any, **__: Any) -> None:
                raise RuntimeError("the device is gone")

            object.__setattr__(broken, "read", fail)
            assert (await guarded.client.infer(ORDINARY, name="closed")).reason == "UNCHECKED"
            assert (await guarded.client.infer(ORDINARY, name="open")).trailing["guard-verdict"] == "unchecked"
            assert (await guarded.client.infer(ORDINARY, name="well")).trailing["guard-verdict"] == "pass"
            assert (await guarded.client.infer(BRIGHT, name="well")).reason == "REJECTED"
            await until(lambda: guarded.serving.readiness.of("closed") is not None)
            assert "self-check failed" in str(guarded.serving.readiness.of("closed"))
            assert guarded.serving.readiness.of("well") is None
            assert await guarded.metric("guard_engine_failures_total", model="closed,open") > 0
            assert await guarded.metric("guard_engine_failures_total", model="well") == 0

    asyncio.run(story())


@pytest.mark.parametrize(
    ("tables", "kind", "said"),
    [
        ('[models.a]\nbundle = "/nowhere"\n', BundleError, "models.a: /nowhere is not a bundle"),
        ('[models.a]\nbundle = "{bundle}"\nreject_rate = 0.0001\n', PromiseError, "models.a: "),
        ('[models.a]\nbundle = "{bundle}"\nreject_rate = 0.2\nflag_rate = 0.1\n', ConfigError, "models.a: flag_rate"),
        ('[models.a]\nbundle = "{bundle}"\nrepair = "median"\n', BundleError, "models.a: the bundle cannot repair"),
        ('[models."a:2"]\nbundle = "{second}"\n', ConfigError, "table is for version 2"),
        (
            '[models.a]\nbundle = "{bundle}"\n[models."a:2"]\nbundle = "{bundle}"\n',
            ConfigError,
            "name the version in each table",
        ),
        (
            '[models.a]\nbundle = "{second}"\n[models."a:1"]\nbundle = "{bundle}"\n',
            ConfigError,
            "guard the same model 'a', version 1",
        ),
        ('[models.a]\nbundle = "{bundle}"\nforward = "before"\n', BundleError, "models.a: forward = 'before'"),
    ],
)
def test_a_table_that_cannot_be_kept_is_named(
    bundle: Path, tmp_path: Path, tables: str, kind: type[UserError], said: str
) -> None:
    second = tiny_bundle.make(tmp_path / "second", version="1").path
    config = configured(tmp_path, "127.0.0.1:1", tables.format(bundle=bundle, second=second)).load()

    async def story() -> None:
        async with running(config, log=Log("error", io.StringIO())):
            raise AssertionError("it started")

    with pytest.raises(kind) as caught:
        asyncio.run(story())
    assert said in str(caught.value)
    assert "guard.toml" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_inspect_asks_the_model_that_the_request_names(bundle: Path, whole: Path, tmp_path: Path) -> None:
    text = f'[models.a]\nbundle = "{bundle}"\n[models.whole]\nbundle = "{whole}"\n'

    async def story() -> None:
        async with guarding_several(tmp_path, text) as guarded, calling(guarded.serving.admin_address) as admin:
            for name, images in (("a", BRIGHT), ("whole", tiny_bundle.as_wire(BRIGHT, "UINT8"))):
                request = InspectRequest(request=infer_request(images, name=name))
                answer = InspectResponse.FromString((await admin.call("/guard.v1.Guard/Inspect", request)).body)
                assert answer.action == "reject"
            request = InspectRequest(request=infer_request(BRIGHT, name="b"))
            assert (await admin.call("/guard.v1.Guard/Inspect", request)).reason == UnknownModel().reason
            told = await describe(guarded)
            assert told.bundle_digest == ""  # of several, none stands for all
            assert len(told.models) == 2

    asyncio.run(story())


def test_the_largest_message_follows_the_largest_model(bundle: Path, tmp_path: Path) -> None:
    text = f'[models.a]\nbundle = "{bundle}"\nmax_queue_rows = 4\n[models.b]\nbundle = "{bundle}"\n'

    async def story() -> None:
        async with guarding_several(tmp_path, text) as several:
            (said,) = several.events("listening")
        async with guarding_several(tmp_path, f'bundle = "{bundle}"\n', FakeUpstream()) as one:
            (alone,) = one.events("listening")
        assert said["max_message_bytes"] == alone["max_message_bytes"]

    asyncio.run(story())


@pytest.mark.alone
def test_a_flood_on_one_model_does_not_starve_another(bundle: Path, tmp_path: Path) -> None:
    """The device is made slow: a batch takes 50 ms. 200 requests wait for one model; the other's wait two batches."""
    other = tiny_bundle.make(tmp_path / "other", reject_rate=0.02).path
    text = f'[models.busy]\nbundle = "{bundle}"\nmax_rows = 2\n[models.calm]\nbundle = "{other}"\n'

    async def story() -> None:
        async with guarding_several(tmp_path, text) as guarded:
            for model in guarded.serving.models.table.models:
                runtime = model.loaded.engine.loaded()
                object.__setattr__(runtime, "read", slowed(runtime.read))
            flood = [
                asyncio.create_task(guarded.client.infer(tiny_bundle.ordinary(1), name="busy")) for _ in range(100)
            ]
            await until(lambda: len(guarded.upstream.requests) > 2)
            loop = asyncio.get_running_loop()
            waits = []
            for _ in range(5):
                began = loop.time()
                async with calling(guarded.serving.address) as another:
                    assert (await another.infer(tiny_bundle.ordinary(1), name="calm")).ok
                waits.append(loop.time() - began)
            assert not all(task.done() for task in flood)
            assert min(waits) < 0.5, waits  # behind the flood, the first would wait for all of it
            for task in flood:
                task.cancel()
            await asyncio.gather(*flood, return_exceptions=True)

    def slowed(read: Any) -> Any:
        import time

        def slow(*given: Any, **options: Any) -> Any:
            time.sleep(0.05)
            return read(*given, **options)

        return slow

    asyncio.run(story())
