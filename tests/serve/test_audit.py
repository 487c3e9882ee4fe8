"""The audit while serving: requests of note leave a line, the sample is unbiased, and no request waits for either."""

from __future__ import annotations

import asyncio
import base64
import errno
import json
import os
import shutil
import stat
import subprocess
import threading
import time
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from prometheus_client import CollectorRegistry

from guard import audit_log
from guard.audit_log import AuditLog, kept_tensor, log_files, read_lines
from guard.bundle import Bundle
from guard.errors import ConfigError, DataError, PromiseError
from guard.manifest import InputSpec
from guard.recalibrate import recalibrate
from guard.serve.audit import audit, traffic_sampling
from guard.serve.audit.background import Background
from guard.serve.audit.events import kept_item, line_of, tensor_fields
from guard.serve.audit.metrics import AuditMetrics
from guard.serve.audit.traffic_sampling import TrafficSampling
from guard.serve.check_settings import check_complete
from guard.traffic_sample import SampledItems, SampleSpec, SampleWriter, TrafficSample
from tests.serve import tiny_bundle
from tests.serve.guarded import Guarded, config_for, guarding, until

LABEL = tiny_bundle.MODEL_NAME
DAY_S = 86400.0


def attacked(items: int = 1, seed: int = 0) -> NDArray[np.float32]:
    noise = np.random.default_rng(seed).uniform(-0.15, 0.15, (items, *tiny_bundle.SHAPE))
    return (tiny_bundle.striped(items) + noise).clip(0, 1).astype(np.float32)


def lines_of(folder: Path) -> list[dict[str, Any]]:
    return list(read_lines(folder)) if folder.exists() and log_files(folder) else []


def test_every_request_of_note_leaves_one_line(bundle: Path, tmp_path: Path) -> None:
    asyncio.run(every_request_of_note_leaves_one_line(bundle, tmp_path / "audit"))


async def every_request_of_note_leaves_one_line(bundle: Path, folder: Path) -> None:
    async with guarding(bundle, audit_dir=str(folder)) as guarded:
        await guarded.client.infer(tiny_bundle.clean(3, seed=1))
        rejected = await guarded.client.infer(attacked(), id="mine")
        assert rejected.reason == "REJECTED"
        await until(lambda: len(lines_of(folder)) == 1)
        (line,) = lines_of(folder)
        assert await guarded.metric("guard_audit_written_total", of="log") == 1
        assert await guarded.metric("guard_audit_lost_total") == 0
        (logged,) = guarded.events("reject")
    assert line["action"] == "reject"
    assert line["atlas"] == ["AML.T0015", "AML.T0043"]
    assert (line["model"], line["request_id"], line["end"]) == (LABEL, "mine", "refused")
    assert {name: line[name] for name in ("id", "p_value", "detectors", "worst_item")} == {
        name: logged[name] for name in ("id", "p_value", "detectors", "worst_item")
    }
    assert "input" not in line
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    assert {stat.S_IMODE(file.stat().st_mode) for file in folder.iterdir()} == {0o600}


def test_inputs_only_on_request(bundle: Path, tmp_path: Path) -> None:
    asyncio.run(inputs_only_on_request(bundle, tmp_path / "audit"))


async def inputs_only_on_request(bundle: Path, folder: Path) -> None:
    images = np.concatenate([tiny_bundle.clean(2, seed=2), attacked()])
    async with guarding(bundle, audit_dir=str(folder), audit_inputs=True, mode="shadow") as guarded:
        await guarded.client.infer(images)
        await until(lambda: len(lines_of(folder)) == 1)
    (line,) = lines_of(folder)
    assert (line["action"], line["end"], line["worst_item"]) == ("would_reject", "answered", 2)
    kept = np.frombuffer(base64.b64decode(line["input"]["base64"]), line["input"]["dtype"])
    assert np.array_equal(kept.reshape(line["input"]["shape"]), images[2])
    assert set(line["evidence"]) == {"scores", "logits"}


@pytest.mark.parametrize("shape", [(1, 4, 4), (3, 200, 224), (5,), (0,)])
@pytest.mark.parametrize("dtype", ["<f4", ">f4", "u1", "<f2"])
def test_a_kept_input_is_the_same_text(shape: tuple[int, ...], dtype: str) -> None:
    """What the thread writes is the JSON that one call would have made of the event and its input."""
    batch = (np.random.default_rng(0).random((3, *shape)) * 200).astype(dtype)
    event = {"action": "reject", "id": "7", "principal": 'a "quoted" name', "p_value": 0.1}
    kept = kept_item(batch[1])
    assert kept is not None
    assert kept.base is None  # it holds nothing of its message
    line = line_of(json.dumps(event).encode(), kept)
    assert line.endswith(b"}\n")
    assert json.loads(line) == {**event, "input": tensor_fields(batch[1])}
    again = kept_tensor(json.loads(line))
    assert again is not None
    assert np.array_equal(again, batch[1])


def test_a_large_input_is_left_out() -> None:
    large = np.zeros((3, 400, 400), np.float32)
    assert kept_item(large) is None
    assert "left_out" in tensor_fields(large)


def test_what_passes_unchecked_is_told(bundle: Path, tmp_path: Path) -> None:
    asyncio.run(what_passes_unchecked_is_told(bundle, tmp_path / "audit"))


async def what_passes_unchecked_is_told(bundle: Path, folder: Path) -> None:
    async with guarding(bundle, audit_dir=str(folder), mode="shadow") as guarded:
        await guarded.client.infer(np.zeros((1, 1, 5, 5), np.float32))
        await until(lambda: len(lines_of(folder)) == 1)
    (line,) = lines_of(folder)
    assert (line["action"], line["reason"], line["atlas"]) == ("unchecked", "malformed_request", [])


def test_the_sample_is_all_traffic_and_calibrates(bundle: Path, tmp_path: Path) -> None:
    folder = asyncio.run(sampled(bundle, tmp_path / "audit"))
    sample = TrafficSample.open(folder)
    shards = list(sample.shards())
    rejected = np.concatenate([shard.rejected for shard in shards])
    p_values = np.concatenate([shard.p_values for shard in shards])
    drawn = len(rejected)
    assert abs(drawn - 0.5 * 6060) < 5 * np.sqrt(0.25 * 6060)
    assert int(rejected.sum()) >= 60 * 0.5 - 5 * np.sqrt(15)
    assert np.isnan(p_values).sum() == 0
    try:
        told = recalibrate(
            Bundle.open(bundle), folder, tmp_path / "new", unnoticed_share=0.03, max_rejected_share=0.2, threads=1
        )
    except PromiseError as error:  # pragma: no cover  says what was too few
        raise AssertionError(str(error)) from error
    assert Bundle.open(tmp_path / "new").calibration.items == told.items


async def sampled(bundle: Path, folder: Path) -> Path:
    images = tiny_bundle.clean(6000, seed=3)
    odd = np.array_split(attacked(60), 60)
    async with guarding(bundle, audit_dir=str(folder), sample_share=0.5, drift_alarm_probability=None) as guarded:
        for number, part in enumerate(np.array_split(images, 60)):
            await guarded.client.infer(part)
            await guarded.client.infer(odd[number])
    (store,) = (folder / "sample").iterdir()
    return store


def test_a_full_disk_is_no_requests_matter(bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asyncio.run(a_full_disk_is_no_requests_matter(bundle, tmp_path / "audit", monkeypatch))


async def a_full_disk_is_no_requests_matter(bundle: Path, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "no space left")

    async with guarding(bundle, audit_dir=str(folder), sample_share=1.0) as guarded:
        monkeypatch.setattr(audit_log, "write_all", full)
        monkeypatch.setattr(np, "savez", full)
        assert (await guarded.client.infer(tiny_bundle.clean(2))).ok
        assert (await guarded.client.infer(attacked())).reason == "REJECTED"
        await lost(guarded, 1, of="log", reason="disk_full")
        monkeypatch.undo()
        shutil.rmtree(folder)  # a directory that vanishes is made anew
        assert (await guarded.client.infer(attacked())).reason == "REJECTED"
        await until(lambda: len(lines_of(folder)) == 1)


async def lost(guarded: Guarded, count: int, **labels: str) -> None:
    for _ in range(400):
        if await guarded.metric("guard_audit_lost_total", **labels) >= count:
            return
        await asyncio.sleep(0.05)
    raise AssertionError(f"{labels} were never counted")


def test_a_disk_that_hangs_holds_no_request(bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asyncio.run(a_disk_that_hangs_holds_no_request(bundle, tmp_path / "audit", monkeypatch))


async def a_disk_that_hangs_holds_no_request(bundle: Path, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    free = threading.Event()
    monkeypatch.setattr(audit_log, "write_all", lambda *_: free.wait(60))
    monkeypatch.setattr(audit, "MAX_WAITING_BYTES", 2000)
    async with guarding(bundle, audit_dir=str(folder)) as guarded:
        for seed in range(30):
            assert (await guarded.client.infer(attacked(seed=seed))).reason == "REJECTED"
        await lost(guarded, 20, of="log", reason="queue_full")
        free.set()


def test_the_log_is_bounded_in_bytes_and_age(tmp_path: Path) -> None:
    log = AuditLog(tmp_path / "log", max_bytes=8000, max_age_s=DAY_S)
    line = json.dumps({"action": "reject", "filler": "x" * 80}).encode() + b"\n"
    now = time.time()
    for _ in range(400):
        log.append(line, now)
        assert sum(file.stat().st_size for _, file in log_files(log.folder)) <= 8000
    assert 1000 // len(line) * 6 <= len(list(read_lines(log.folder))) <= 8000 // len(line)
    log.append(line, now + 2 * DAY_S)
    assert len(log_files(log.folder)) <= 2


def test_no_line_is_older_than_the_bound(tmp_path: Path) -> None:
    """A line a day, so that no file is ever full: each goes within 30 days, and the younger ones stay."""
    log, now = AuditLog(tmp_path / "log", max_bytes=1 << 28, max_age_s=30 * DAY_S), time.time()
    for day in range(200):
        moment = datetime.fromtimestamp(now + day * DAY_S, UTC).isoformat().replace("+00:00", "Z")
        if day % 40 == 20:
            log = AuditLog(log.folder, log.max_bytes, log.max_age_s)  # a guard that was restarted
        log.append(json.dumps({"time": moment, "action": "reject", "day": day}).encode() + b"\n", now + day * DAY_S)
        days = [line["day"] for line in read_lines(log.folder)]
        assert days == list(range(days[0], day + 1))
        assert day - 30 <= days[0]
        assert days[0] <= max(0, day - 26)
    assert len(log_files(log.folder)) <= 10


def test_a_guard_that_is_idle_keeps_the_bound_of_age(
    bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Neither its log, nor its sample, nor that of a bundle that is retired, outlives it; what is younger stays."""
    asyncio.run(a_guard_that_is_idle_keeps_the_bound_of_age(bundle, tmp_path / "audit", monkeypatch))


async def a_guard_that_is_idle_keeps_the_bound_of_age(
    bundle: Path, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(audit, "PRUNE_S", 0.05)
    monkeypatch.setattr(traffic_sampling, "FLUSH_S", 0.05)
    retired, new = folder / "sample" / "retired", folder / "sample" / "new"
    spec = SampleSpec(1.0, "d" * 64, "tiny", "FP32", tiny_bundle.SHAPE)
    for store, age_s in ((retired, 3 * DAY_S), (new, 0.0)):
        images = tiny_bundle.clean(3)
        writer = SampleWriter(store, spec, np.random.default_rng(0))
        writer.add(SampledItems(images, np.zeros(3, bool), np.ones(3), np.full(3, time.time() - age_s)))
        writer.flush()
        os.utime(store / "sample.json", (time.time() - age_s, time.time() - age_s))
    settings = {"audit_dir": str(folder), "audit_max_age_s": DAY_S, "sample_share": 1.0}
    async with guarding(bundle, **settings) as guarded:
        await guarded.client.infer(attacked())
        await until(lambda: len(list(folder.glob("sample/tiny-*/*.npz"))) == len(lines_of(folder)) == 1)
        await until(lambda: not retired.exists())
        for file in (*folder.glob("*.jsonl"), *folder.glob("sample/tiny-*/*.npz")):
            os.utime(file, (time.time() - 2 * DAY_S,) * 2)
        await until(lambda: not list(folder.glob("*.jsonl")) and not list(folder.glob("sample/tiny-*/*.npz")))
        assert len(list(new.glob("*.npz"))) == 1
        await guarded.client.infer(attacked(seed=1))
        await until(lambda: len(lines_of(folder)) == 1)


def test_several_guards_share_a_log(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """They write at once, one of them to a disk that takes a part of a line and fails, and all remove old files."""
    monkeypatch.setattr(audit_log, "write_all", halting(audit_log.write_all))
    lost = []

    def write(name: str) -> None:
        log = AuditLog(tmp_path, max_bytes=20_000, max_age_s=DAY_S)
        for number in range(100):
            try:
                log.append(json.dumps({"action": "flag", "name": name, "number": number}).encode() + b"\n", time.time())
            except OSError as error:
                if error.errno != errno.EIO:
                    raise
                lost.append(number)

    threads = [threading.Thread(target=write, args=(name,)) for name in "abc"]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    whole = b"".join(file.read_bytes() for _, file in log_files(tmp_path)).splitlines()
    assert all(json.loads(line)["action"] == "flag" for line in whole)
    assert len(whole) == len(set(whole)) == 300 - len(lost)
    assert len(lost) > 10


def halting(write: Callable[[int, bytes], None]) -> Callable[[int, bytes], None]:
    """Write in two halves between which others get their turn; of every seventh line the second half fails."""

    def halves(descriptor: int, content: bytes) -> None:
        write(descriptor, content[:10])
        time.sleep(0.0005)
        if b"7}" in content:
            raise OSError(errno.EIO, "nothing more is taken")
        write(descriptor, content[10:])

    return halves


def test_a_large_request_enters_the_sample(tmp_path: Path) -> None:
    """It goes into the queue in pieces, though it is larger than the whole queue may be at first sight."""
    metrics = AuditMetrics(registry := CollectorRegistry())
    sampling = TrafficSampling(tmp_path, 1.0, 1 << 30, DAY_S, metrics)
    free = threading.Event()
    sampling.background.submit(0, lambda: bool(free.wait(10)) and None)
    images = np.zeros((64, 3, 224, 224), np.float32)
    spec = InputSpec("input", "FP32", (3, 224, 224), (0.0,), (1.0,), None)
    bundle: Any = SimpleNamespace(
        digest="d" * 64, manifest=SimpleNamespace(model=SimpleNamespace(input=spec, name="m"))
    )
    sampling.keep(bundle, SampledItems(images, np.zeros(64, bool), np.ones(64), np.full(64, time.time())))
    free.set()
    sampling.background.close(60)
    written = registry.get_sample_value("guard_audit_written_total", {"of": "sample"})
    lost = registry.get_sample_value("guard_audit_lost_total", {"of": "sample", "reason": "queue_full"})
    assert written is not None
    assert written >= 48  # a queue's worth, since its thread was held up meanwhile
    assert written + (lost or 0) == 64


def test_a_line_is_there_whole_or_not_at_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    log = AuditLog(tmp_path, max_bytes=1 << 20, max_age_s=DAY_S)
    log.append(b'{"action": "flag"}\n', 0.0)
    write = os.write

    def nearly_full(descriptor: int, content: memoryview) -> int:
        if len(content) < 10:
            raise OSError(errno.ENOSPC, "full")
        return write(descriptor, content[:10])

    monkeypatch.setattr(os, "write", nearly_full)
    with pytest.raises(OSError, match="full"):
        log.append(b'{"action": "reject"}\n', 0.0)
    monkeypatch.undo()
    (_, file), *_ = log_files(tmp_path)
    with file.open("ab") as stream:
        stream.write(b'{"action": "rej')  # a crash
    assert [line["action"] for line in read_lines(tmp_path)] == ["flag"]


def test_what_is_no_log_is_refused(tmp_path: Path) -> None:
    for folder in (tmp_path, tmp_path / "absent"):
        with pytest.raises(DataError, match="no audit log"):
            list(read_lines(folder))


def test_a_queue_is_bounded_and_a_fault_ends_nothing() -> None:
    metrics = AuditMetrics(registry := CollectorRegistry())
    free, done = threading.Event(), threading.Event()
    background = Background("test", max_waiting_bytes=100, lost=metrics.losing("log"))

    def broken() -> None:
        raise ValueError("broken")

    assert background.submit(60, lambda: bool(free.wait(10)) and None)
    assert background.submit(40, broken)
    assert not background.submit(1, done.set)
    free.set()
    background.submit(0, done.set)
    assert done.wait(10)
    background.close()
    assert not background.thread.is_alive()
    assert background.waiting_bytes == 0
    found = {
        reason: registry.get_sample_value("guard_audit_lost_total", {"of": "log", "reason": reason})
        for reason in ("queue_full", "error", "disk_full")
    }
    assert found == {"queue_full": 1, "error": 1, "disk_full": 0}


@pytest.mark.parametrize("settings", [{"audit_inputs": True}, {"sample_share": 0.1}])
def test_what_is_kept_needs_a_place(settings: dict[str, Any], tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="audit_dir is not set"):
        check_complete(config_for(tmp_path, "127.0.0.1:1", **settings))


def test_a_small_disk_is_used_in_turn(tmp_path: Path) -> None:
    """A disk far smaller than the bound: the oldest lines go, and the newest is there."""
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=6m", "tmpfs", str(disk)]
    if subprocess.run(mount, capture_output=True, check=False).returncode:
        pytest.skip("a tmpfs cannot be mounted here")
    try:
        log = AuditLog(disk / "log", max_bytes=1 << 28, max_age_s=DAY_S)
        for number in range(150):
            filler = "x" * (100 << 10)
            log.append(json.dumps({"action": "reject", "number": number, "filler": filler}).encode() + b"\n", 0.0)
        kept = [line["number"] for line in read_lines(log.folder)]
    finally:
        subprocess.run(["umount", str(disk)], check=True)
    assert kept == list(range(kept[0], 150))
    assert 20 <= len(kept) < 60
