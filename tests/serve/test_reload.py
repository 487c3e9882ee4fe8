"""Reloading: what is valid comes to work without a lost call, and what is not changes nothing."""

from __future__ import annotations

import asyncio
import gc
import io
import os
import shutil
import signal
import subprocess
import sys
import weakref
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest

from guard.bundle import Bundle
from guard.config import SettingsSource
from guard.errors import BundleError, ConfigError, DeviceError, UserError
from guard.runtime import Runtime
from guard.serve import watch_files
from guard.serve.grpc.wire.guard_pb2 import ReloadRequest, ReloadResponse
from guard.serve.log import Log
from guard.serve.reload import Reloader
from guard.serve.server import running
from tests.serve import tiny_bundle
from tests.serve.fake_upstream import FakeUpstream, listening
from tests.serve.guarded import Answered, Guarded, calling, metric_of, until
from tests.serve.processes import ROOT, Process
from tests.serve.several import SeveralModels, configured, describe, settings

ORDINARY, BRIGHT = tiny_bundle.ordinary(1), tiny_bundle.bright(1)
MILD, STRICT = 0.001, 0.5  # reject rates by which two bundles judge one item differently


@dataclass
class Reloading(Guarded):
    """A guard whose settings are a file that a test changes."""

    file: Path
    address: str  # of the upstream
    head: str

    def write(self, text: str) -> None:
        self.file.write_text(settings(self.address, self.head + text), "utf-8")

    async def reload(self) -> Any:
        return await self.serving.reloader.reload("test")

    async def result(self, name: str) -> float:
        return await self.metric("guard_reload_total", result=name)


@asynccontextmanager
async def reloading(
    folder: Path, text: str, *, watch: bool = False, upstream: FakeUpstream | None = None
) -> AsyncIterator[Reloading]:
    """A ready guard of a file of settings; `watch` has it follow the files by itself."""
    head = "" if watch else "watch_files = false\n"
    fake, stream = upstream or SeveralModels(), io.StringIO()
    async with listening(fake) as address:
        source = configured(folder, address, head + text)
        assert source.file is not None
        async with (
            running(source.load(), log=Log("debug", stream), source=source) as serving,
            calling(serving.address) as client,
        ):
            guarded = Reloading(serving, fake, client, stream, source.file, address, head)
            await guarded.until_ready()
            yield guarded


@pytest.fixture(scope="module")
def mild(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_bundle.make(tmp_path_factory.mktemp("reload") / "mild", reject_rate=MILD).path


@pytest.fixture(scope="module")
def strict(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_bundle.make(tmp_path_factory.mktemp("reload") / "strict", reject_rate=0.04).path


@pytest.fixture(scope="module")
def between(strict: Path) -> Any:
    """An item that the strict bundle rejects and the mild one does not."""
    images = tiny_bundle.clean(2000, seed=11)
    p = Runtime.open(Bundle.open(strict), threads=1).read(images).p_value
    return images[np.flatnonzero((p > 2 * MILD) & (p < 0.03))[:1]]


def verdict(answer: Answered) -> str:
    """What a call came to: pass, or reject; anything else is a lost call."""
    if answer.ok:
        return str(answer.trailing["guard-verdict"])
    assert answer.code is grpc.StatusCode.PERMISSION_DENIED, answer
    return "reject"


def relink(link: Path, target: Path) -> None:
    """Have a link lead elsewhere, in one step."""
    new = link.with_name("..new")
    new.symlink_to(target)
    new.replace(link)


def test_settings_of_a_model_change_while_it_serves(bundle: Path, tmp_path: Path) -> None:
    table = f'[models.tiny]\nbundle = "{bundle}"\n'

    async def story() -> None:
        async with reloading(tmp_path, table) as guarded:
            assert (await guarded.client.infer(BRIGHT)).reason == "REJECTED"
            loaded = guarded.serving.models.table.models[0].loaded
            guarded.write(f'{table}mode = "shadow"\n')
            done = await guarded.reload()
            assert (done.result, done.changed, done.needs_restart) == ("applied", ("tiny",), ())
            assert (await guarded.client.infer(BRIGHT)).ok
            assert guarded.serving.models.table.models[0].loaded is loaded  # nothing was loaded again
            assert (await guarded.reload()).result == "unchanged"
            assert (await guarded.result("applied"), await guarded.result("unchanged")) == (1, 1)
            assert [line["result"] for line in guarded.events("reloaded")] == ["applied", "unchanged"]
            assert guarded.events("guarding")[-1]["mode"] == "shadow"

    asyncio.run(story())


def test_the_only_bundle_can_change_too(mild: Path, strict: Path, between: Any, tmp_path: Path) -> None:
    async def story() -> None:
        async with reloading(tmp_path, f'bundle = "{mild}"\n', upstream=FakeUpstream()) as guarded:
            assert verdict(await guarded.client.infer(between)) == "pass"
            old = (await describe(guarded)).bundle_digest
            guarded.write(f'bundle = "{strict}"\n')
            await guarded.reload()
            assert verdict(await guarded.client.infer(between)) == "reject"
            new = (await describe(guarded)).bundle_digest
            assert old != new
            assert await guarded.metric("guard_bundle_info") == 1
            assert await guarded.metric("guard_bundle_info", digest=new[:16]) == 1
            assert await guarded.metric("guard_promised_rate", action="reject") == 0.04

    asyncio.run(story())


def test_under_load_no_call_is_lost_and_each_is_answered_by_one_bundle_or_the_other(
    mild: Path, strict: Path, between: Any, tmp_path: Path
) -> None:
    """A request of three items, of which the middle one tells the bundles apart."""
    request = np.concatenate([tiny_bundle.ordinary(1), between, tiny_bundle.ordinary(1)])
    link = tmp_path / "bundle"
    link.symlink_to(mild)

    async def story() -> None:
        async with reloading(tmp_path, f'[models.tiny]\nbundle = "{link}"\n', watch=True) as guarded:
            stop, seen = asyncio.Event(), list[tuple[int, str]]()

            async def client() -> None:
                async with calling(guarded.serving.address) as own:
                    while not stop.is_set():
                        begun = swaps
                        seen.append((begun, verdict(await own.infer(request))))

            swaps = 0
            clients = [asyncio.create_task(client()) for _ in range(6)]
            await until(lambda: len(seen) > 30)

            async def swap(target: Path, wanted: str) -> None:
                nonlocal swaps
                applied = len(guarded.events("reloaded"))
                relink(link, target)
                await until(lambda: len(guarded.events("reloaded")) > applied)
                swaps += 1
                assert verdict(await guarded.client.infer(request)) == wanted
                await until(lambda: sum(begun == swaps for begun, _ in seen) > 30)

            await swap(strict, "reject")
            await swap(mild, "pass")
            await swap(strict, "reject")
            stop.set()
            await asyncio.gather(*clients)
            for begun, wanted in enumerate(("pass", "reject", "pass", "reject")):
                late = [found for when, found in seen if when == begun]
                assert wanted in late
            last = [found for when, found in seen if when == 3]
            assert set(last) == {"reject"}
            assert await guarded.metric("guard_unchecked_total") == 0
            assert await guarded.metric("guard_requests_total", action="refused") == 0
            assert guarded.events("reload failed") == []

    asyncio.run(story())


def test_a_call_ends_on_the_bundle_that_it_began_with_and_then_that_is_freed(
    mild: Path, strict: Path, between: Any, tmp_path: Path
) -> None:
    async def story() -> None:
        async with reloading(tmp_path, f'[models.tiny]\nbundle = "{mild}"\n') as guarded:
            runtime = guarded.serving.models.table.models[0].loaded.engine.loaded()
            guarded.upstream.hang_infer = True
            under_way = asyncio.create_task(guarded.client.infer(between))
            await until(lambda: "ModelInfer" in guarded.upstream.calls)
            guarded.write(f'[models.tiny]\nbundle = "{strict}"\n')
            assert (await guarded.reload()).result == "applied"
            assert (await guarded.client.infer(between)).reason == "REJECTED"
            guarded.upstream.hang_infer = False
            assert verdict(await under_way) == "pass"
            old = weakref.ref(runtime)
            gc.collect()
            gc.disable()
            try:
                del runtime
                await until(lambda: old() is None, lambda: str(gc.get_referrers(old())))
            finally:
                gc.enable()
            await until(lambda: len(guarded.events("bundle released")) == 1)

    asyncio.run(story())


@pytest.mark.parametrize("fault", ["toml", "setting", "no bundle", "corrupt bundle", "rate", "engine", "version"])
def test_a_reload_that_fails_changes_nothing(
    bundle: Path, mild: Path, tmp_path: Path, fault: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    corrupt, second = tmp_path / "corrupt", tmp_path / "second"
    shutil.copytree(mild, corrupt)
    (corrupt / "screen.onnx").write_bytes((corrupt / "screen.onnx").read_bytes()[:-10])
    tiny_bundle.make(second, version="1", reject_rate=0.02)
    table = f'[models.tiny]\nbundle = "{bundle}"\n'
    texts: dict[str, tuple[str, type[UserError]]] = {
        "toml": (f"{table}mode = ", ConfigError),
        "setting": (f'{table}mode = "loud"\n', ConfigError),
        "no bundle": (table.replace(str(bundle), "/nowhere"), BundleError),
        "corrupt bundle": (table.replace(str(bundle), str(corrupt)), BundleError),
        "rate": (f"{table}reject_rate = 0.2\nflag_rate = 0.1\n", ConfigError),
        "engine": (table.replace(str(bundle), str(mild)), DeviceError),
        "version": (f'{table}[models."tiny:2"]\nbundle = "{second}"\n', ConfigError),
    }
    text, kind = texts[fault]

    async def story() -> None:
        async with reloading(tmp_path, table) as guarded, calling(guarded.serving.admin_address) as admin:
            before = await describe(guarded)
            table_before = guarded.serving.models.table
            if fault == "engine":

                def fail(*_: Any, **__: Any) -> None:
                    raise RuntimeError("no memory on the device")

                monkeypatch.setattr(Runtime, "self_check", fail)
            guarded.write(text)
            with pytest.raises(kind):
                await guarded.reload()
            answer = await admin.call("/guard.v1.Guard/Reload", ReloadRequest())
            assert answer.code is grpc.StatusCode[kind.status]
            assert answer.details == guarded.events("reload failed")[0]["cause"]
            assert guarded.serving.models.table is table_before
            assert await describe(guarded) == before
            assert (await guarded.client.infer(BRIGHT)).reason == "REJECTED"
            assert verdict(await guarded.client.infer(ORDINARY)) == "pass"
            assert await guarded.result("failed") == 2
            assert await guarded.metric("guard_reload_successful") == 0
            monkeypatch.undo()
            guarded.write(table)
            assert (await guarded.reload()).result == "unchanged"
            assert await guarded.metric("guard_reload_successful") == 1

    asyncio.run(story())


def samples_of(guarded: Reloading) -> dict[tuple[str, tuple[tuple[str, str], ...]], float]:
    """All that the metrics say of guarding; what only counts reloads, or is the process's own, is left out."""
    registry = guarded.serving.reloader.metrics.registry
    return {
        (sample.name, tuple(sample.labels.items())): sample.value
        for family in registry.collect()
        for sample in family.samples
        if not sample.name.startswith(("guard_reload", "process_", "python_"))
    }


@pytest.mark.parametrize("fault", ["engine", "absent"])
def test_no_sample_of_the_metrics_changes_where_a_reload_fails(
    bundle: Path, mild: Path, tmp_path: Path, fault: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is at work is in the state in which it was: with its breaker open, and a queue that is not empty."""
    head = "drift_alarm_probability = 0.01\n"

    async def story() -> None:
        async with reloading(tmp_path, f'{head}[models.tiny]\nbundle = "{bundle}"\n') as guarded:
            assert isinstance(guarded.upstream, SeveralModels)
            for images in (ORDINARY, BRIGHT):
                await guarded.client.infer(images)
            metrics = guarded.serving.reloader.metrics
            metrics.breaker_open.labels("tiny").set(1)
            metrics.queue_rows.labels("tiny").set(7)
            guarded.upstream.absent = {"other"}
            if fault == "engine":

                def fail(*_: Any, **__: Any) -> None:
                    raise RuntimeError("no memory on the device")

                monkeypatch.setattr(Runtime, "self_check", fail)
            before = samples_of(guarded)
            other = f'[models.other]\nbundle = "{bundle}"\nmax_rows = 8\n'
            guarded.write(f'{head}[models.tiny]\nbundle = "{mild}"\n{other}')
            with pytest.raises(DeviceError if fault == "engine" else ConfigError):
                await guarded.reload()
            assert samples_of(guarded) == before
            monkeypatch.undo()
            guarded.upstream.absent = set()
            await guarded.reload()
            assert await guarded.metric("guard_breaker_open", model="tiny") == 0
            assert await guarded.metric("guard_queue_rows", model="other") == 0

    asyncio.run(story())


def test_an_alarm_stays_where_a_reload_fails_and_ends_with_its_bundle(
    bundle: Path, mild: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    head = "drift_alarm_probability = 0.01\n"

    async def story() -> None:
        async with reloading(tmp_path, f'{head}[models.tiny]\nbundle = "{bundle}"\n') as guarded:
            guarded.serving.reloader.metrics.drift.alarm.labels("tiny").set(1)
            guarded.write(f'{head}[models.tiny]\nbundle = "{mild}"\n')

            def fail(*_: Any, **__: Any) -> None:
                raise RuntimeError("no memory on the device")

            monkeypatch.setattr(Runtime, "self_check", fail)
            with pytest.raises(DeviceError):
                await guarded.reload()
            assert await guarded.metric("guard_drift_alarm", model="tiny") == 1
            monkeypatch.undo()
            await guarded.reload()
            assert await guarded.metric("guard_drift_alarm", model="tiny") == 0

    asyncio.run(story())


def test_models_come_and_go(bundle: Path, mild: Path, tmp_path: Path) -> None:
    one = f'allow_models = ["free"]\n[models.a]\nbundle = "{bundle}"\n'
    two = f'[models.a]\nbundle = "{bundle}"\n[models.b]\nbundle = "{mild}"\nmode = "shadow"\n'

    async def story() -> None:
        async with reloading(tmp_path, one) as guarded:
            client = guarded.client
            assert (await client.infer(ORDINARY, name="b")).reason == "UNKNOWN_MODEL"
            assert (await client.infer(ORDINARY, name="free")).trailing["guard-verdict"] == "unchecked"
            guarded.write(two)
            assert (await guarded.reload()).changed == ("b",)
            assert (await client.infer(BRIGHT, name="b")).ok
            assert (await client.infer(ORDINARY, name="free")).reason == "UNKNOWN_MODEL"
            assert await guarded.metric("guard_bundle_info") == 2
            assert await guarded.metric("guard_requests_total", model="b", action="would_reject") == 1
            guarded.write(one)
            assert (await guarded.reload()).changed == ("b",)
            assert (await client.infer(ORDINARY, name="b")).reason == "UNKNOWN_MODEL"
            assert await guarded.metric("guard_bundle_info") == 1
            assert guarded.serving.readiness.because is None

    asyncio.run(story())


def test_a_model_that_the_server_lacks_is_not_put_to_work(bundle: Path, tmp_path: Path) -> None:
    """It would make the guard not ready for those that it has."""
    one = f'[models.a]\nbundle = "{bundle}"\n'

    async def story() -> None:
        async with reloading(tmp_path, one) as guarded:
            assert isinstance(guarded.upstream, SeveralModels)
            guarded.upstream.absent = {"b"}
            guarded.write(f'{one}[models.b]\nbundle = "{bundle}"\n')
            with pytest.raises(ConfigError, match=r"about model 'b': NOT_FOUND"):
                await guarded.reload()
            assert guarded.serving.readiness.because is None
            guarded.upstream.absent = set()
            assert (await guarded.reload()).changed == ("b",)

    asyncio.run(story())


def test_what_needs_a_restart_stays_and_is_named(bundle: Path, tmp_path: Path) -> None:
    table = f'[models.tiny]\nbundle = "{bundle}"\n'

    async def story() -> None:
        async with (
            reloading(tmp_path, table) as guarded,
            calling(guarded.serving.admin_address) as admin,
        ):
            guarded.write(f'max_connections = 7\ngrace_s = 1\nmode = "flag"\n{table}')
            answer = await admin.call("/guard.v1.Guard/Reload", ReloadRequest())
            done = ReloadResponse.FromString(answer.body)
            assert (done.result, list(done.changed)) == ("applied", ["tiny"])
            assert list(done.needs_restart) == ["max_connections", "grace_s"]
            assert guarded.serving.reloader.config.max_connections == 1024
            (warned,) = guarded.events("restart needed")
            assert warned["settings"] == ["max_connections", "grace_s"]
            assert (await guarded.client.infer(BRIGHT)).ok

    asyncio.run(story())


def test_who_asked_may_leave_and_the_reload_goes_on(bundle: Path, tmp_path: Path) -> None:
    table = f'[models.tiny]\nbundle = "{bundle}"\n'

    async def story() -> None:
        async with reloading(tmp_path, table) as guarded:
            guarded.write(f'{table}mode = "flag"\n')
            asking = asyncio.create_task(guarded.reload())
            await asyncio.sleep(0)
            asking.cancel()
            await until(lambda: guarded.serving.models.table.models[0].policy.mode == "flag")

    asyncio.run(story())


class Mount:
    """A directory as Kubernetes mounts a ConfigMap: files are links into `..data`, which is a link that is swapped."""

    def __init__(self, root: Path, text: str) -> None:
        self.root, self.number = root, 0
        root.mkdir()
        self.swap(text)
        (root / "guard.toml").symlink_to("..data/guard.toml")

    def swap(self, text: str) -> None:
        self.number += 1
        folder = self.root / f"..{self.number}"
        folder.mkdir()
        (folder / "guard.toml").write_text(text, "utf-8")
        relink(self.root / "..data", Path(folder.name))


@pytest.mark.parametrize("notified", [True, False], ids=["notified", "polled"])
@pytest.mark.parametrize("how", ["rename", "write"])
def test_a_change_of_the_file_is_noticed(
    bundle: Path, tmp_path: Path, how: str, *, notified: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Swapped by rename or written in place; in a burst with something invalid in it the last valid one wins."""
    if notified:
        monkeypatch.setattr(watch_files, "POLL_S", 60.0)
    else:
        monkeypatch.setattr(watch_files, "POLL_S", 0.1)
        monkeypatch.setattr(watch_files.FileWatch, "notices", lambda _: asyncio.sleep(60))

    def text(mode: str) -> str:
        return settings(address, f'[models.tiny]\nbundle = "{bundle}"\nmode = "{mode}"\n')

    address = ""

    async def story() -> None:
        nonlocal address
        fake, stream = SeveralModels(), io.StringIO()
        async with listening(fake) as address:
            mount = Mount(tmp_path / "etc", text("enforce"))
            file = mount.root / "guard.toml"
            change = mount.swap if how == "rename" else (lambda text: file.write_text(text, "utf-8"))
            source = SettingsSource(file, {}, {})
            async with (
                running(source.load(), log=Log("debug", stream), source=source) as serving,
                calling(serving.address) as client,
            ):
                guarded = Guarded(serving, fake, client, stream)
                await guarded.until_ready()
                change(text("shadow"))
                await until(lambda: serving.models.table.models[0].policy.mode == "shadow")
                for content in (text("flag"), "mode = ", text("off"), text("enforce"), text("flag")):
                    change(content)
                await until(lambda: serving.models.table.models[0].policy.mode == "flag")
                applied = [line for line in guarded.events("reloaded") if line["result"] == "applied"]
                assert len(applied) <= 3  # a burst is one reload, or two where it began in the middle of a look
                change("mode = ")
                await until(lambda: bool(guarded.events("reload failed")))
                assert serving.models.table.models[0].policy.mode == "flag"
                assert (await client.infer(BRIGHT)).ok
                change(text("enforce"))
                await until(lambda: serving.models.table.models[0].policy.mode == "enforce")
                assert await guarded.metric("guard_reload_successful") == 1

    asyncio.run(story())


def rate_at_work(guarded: Reloading) -> float:
    return guarded.serving.models.table.models[0].policy.reject_rate


def test_a_change_while_the_guard_starts_is_noticed(
    bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The settings were read, and the programs are being loaded."""
    monkeypatch.setattr(watch_files, "POLL_S", 0.1)
    load, file = Reloader.begin, tmp_path / "guard.toml"
    table = f'[models.tiny]\nbundle = "{bundle}"\nreject_rate = '

    async def begin(self: Reloader) -> None:
        await load(self)
        file.write_text(file.read_text("utf-8").replace("= 0.02", "= 0.03"), "utf-8")

    monkeypatch.setattr(Reloader, "begin", begin)

    async def story() -> None:
        async with reloading(tmp_path, f"{table}0.02\n", watch=True) as guarded:
            assert guarded.file == file
            await until(lambda: rate_at_work(guarded) == 0.03)

    asyncio.run(story())


def test_a_change_while_a_reload_names_another_bundle_is_noticed(
    bundle: Path, mild: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(watch_files, "POLL_S", 0.1)
    read, changed = Reloader.changed_table, False

    def table(place: Path, rate: float) -> str:
        return f'[models.tiny]\nbundle = "{place}"\nreject_rate = {rate}\n'

    async def story() -> None:
        async with reloading(tmp_path, table(bundle, 0.02), watch=True) as guarded:

            async def changed_table(self: Reloader) -> Any:
                nonlocal changed
                found = await read(self)
                if found.result == "applied" and not changed:
                    changed = True
                    guarded.write(table(mild, 0.04))
                return found

            monkeypatch.setattr(Reloader, "changed_table", changed_table)
            guarded.write(table(mild, 0.03))
            await until(lambda: rate_at_work(guarded) == 0.04, lambda: f"at work: {rate_at_work(guarded)}")

    asyncio.run(story())


def test_a_link_that_leads_nowhere_hides_no_change_beside_it(tmp_path: Path) -> None:
    (tmp_path / "model").write_bytes(b"1")
    (tmp_path / "link").symlink_to("nowhere")
    before = watch_files.listing(tmp_path)
    (tmp_path / "model").write_bytes(b"22")
    assert watch_files.listing(tmp_path) != before
    before = watch_files.listing(tmp_path)
    (tmp_path / "link").unlink()
    (tmp_path / "link").symlink_to("elsewhere")
    assert watch_files.listing(tmp_path) != before
    assert watch_files.listing(tmp_path / "absent") == "FileNotFoundError"


def test_a_bundle_that_is_written_file_by_file_comes_to_work_once_it_is_whole(
    mild: Path, strict: Path, between: Any, tmp_path: Path
) -> None:
    place = tmp_path / "bundle"
    shutil.copytree(mild, place)

    async def story() -> None:
        async with reloading(tmp_path, f'[models.tiny]\nbundle = "{place}"\n', watch=True) as guarded:
            for file in sorted(strict.iterdir()):
                shutil.copyfile(file, place / file.name)
                assert verdict(await guarded.client.infer(tiny_bundle.ordinary(1))) == "pass"
                await asyncio.sleep(0.05)
            await until(lambda: any(line["result"] == "applied" for line in guarded.events("reloaded")))
            assert verdict(await guarded.client.infer(between)) == "reject"

    asyncio.run(story())


def test_a_bundle_that_is_written_over_while_it_serves_changes_no_answer(tmp_path: Path) -> None:
    """Its weights become zeros, then nothing: a mapped file would change the answers, and then end the process."""
    place = tiny_bundle.make(tmp_path / "bundle", outside=True).path

    async def story() -> None:
        async with reloading(tmp_path, f'[models.tiny]\nbundle = "{place}"\n', watch=True) as guarded:
            weights, images = place / "weights.bin", tiny_bundle.clean(64, seed=4)
            with weights.open("r+b") as file:
                file.write(bytes(weights.stat().st_size))
            answer = await guarded.client.infer(images[:8])
            with weights.open("r+b") as file:
                file.truncate(0)
            for start in range(0, 64, 8):
                answer = await guarded.client.infer(images[start : start + 8])
            assert answer.code in (grpc.StatusCode.OK, grpc.StatusCode.PERMISSION_DENIED)
            await until(lambda: bool(guarded.events("reload failed")))
            assert "weights.bin was altered" in guarded.events("reload failed")[0]["cause"]
            assert await guarded.metric("guard_upstream_disagreement_items_total") == 0
            assert await guarded.metric("guard_engine_failures_total") == 0
            assert guarded.serving.readiness.because is None

    asyncio.run(story())


def test_a_reload_that_failed_is_tried_again(bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The settings were right before the model server was: nothing changes in the files any more."""
    monkeypatch.setattr(watch_files, "RETRY_S", (0.2, 0.4))
    monkeypatch.setattr(watch_files, "POLL_S", 0.1)
    one = f'[models.a]\nbundle = "{bundle}"\n'

    async def story() -> None:
        async with reloading(tmp_path, one, watch=True) as guarded:
            assert isinstance(guarded.upstream, SeveralModels)
            guarded.upstream.absent = {"b"}
            guarded.write(f'{one}[models.b]\nbundle = "{bundle}"\n')
            await until(lambda: len(guarded.events("reload failed")) > 2)
            assert [line["level"] for line in guarded.events("reload failed")[:3]] == ["error", "debug", "debug"]
            guarded.upstream.absent = set()
            await until(lambda: len(guarded.serving.models.table.models) == 2)

    asyncio.run(story())


@pytest.mark.slow
def test_sighup_reloads_a_process_and_never_ends_it(bundle: Path, tmp_path: Path) -> None:
    file = configured(tmp_path, "127.0.0.1:1", f'watch_files = false\n[models.a]\nbundle = "{bundle}"\n').file
    assert file is not None
    command = [sys.executable, "-m", "guard", "serve", f"--config={file}"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    with subprocess.Popen(command, cwd=ROOT, env=environment, stderr=subprocess.PIPE, text=True) as popen:
        started = Process(popen, [])
        try:
            metrics = started.until_event("listening")["metrics"]
            popen.send_signal(signal.SIGHUP)
            file.write_text(file.read_text("utf-8").replace("[models.a]", 'mode = "flag"\n[models.a]'), "utf-8")
            popen.send_signal(signal.SIGHUP)
            while (line := started.until_event("reloaded"))["result"] != "applied":
                assert line["trigger"] == "SIGHUP"
            file.write_text("mode = ", "utf-8")
            popen.send_signal(signal.SIGHUP)
            assert "not valid TOML" in started.until_event("reload failed")["cause"]
            assert asyncio.run(metric_of(metrics, "guard_reload_total", result="failed")) == 1
            popen.terminate()
            assert popen.wait(20) == 0
        finally:
            popen.kill()


def test_a_guard_without_a_bundle_passes_all_until_it_gets_one(tmp_path: Path, strict: Path) -> None:
    """What is put in the way first can be given its bundle later, without a restart."""

    async def story() -> None:
        async with reloading(tmp_path, 'mode = "off"\n') as guarded:
            assert guarded.serving.models.table.labels == ()
            passed = await guarded.client.infer(BRIGHT)
            assert (passed.ok, passed.trailing["guard-verdict"]) == (True, "unchecked")
            assert await guarded.metric("guard_unchecked_total", reason="off") == 1
            assert (await describe(guarded)).ready
            guarded.write(f'mode = "enforce"\nbundle = "{strict}"\n')
            assert (await guarded.reload()).result == "applied"
            assert verdict(await guarded.client.infer(BRIGHT)) == "reject"
            assert verdict(await guarded.client.infer(ORDINARY)) == "pass"
            guarded.write('mode = "enforce"\n')
            with pytest.raises(ConfigError, match="bundle is not set"):
                await guarded.reload()
            assert verdict(await guarded.client.infer(BRIGHT)) == "reject"

    asyncio.run(story())
