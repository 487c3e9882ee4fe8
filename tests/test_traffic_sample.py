"""The store of sampled traffic: what is written is read, bounds hold, and nothing without the mark is opened."""

from __future__ import annotations

import json
import os
import stat
from pathlib import Path

import numpy as np
import pytest

from guard.errors import DataError
from guard.traffic_sample import MANIFEST, SampledItems, SampleSpec, SampleWriter, TrafficSample, prune

SPEC = SampleSpec(0.25, "b" * 64, "tiny", "FP32", (1, 4, 4))


def writer(folder: Path, **settings: float) -> SampleWriter:
    return SampleWriter(folder, SPEC, np.random.default_rng(0), **settings)  # type: ignore[arg-type]


def items(count: int, *, at: float = 0.0, seed: int = 0) -> SampledItems:
    images = np.random.default_rng(seed).random((count, 1, 4, 4)).astype(np.float32)
    return SampledItems(images, np.arange(count) % 5 == 0, np.linspace(0, 1, count), np.full(count, at))


def test_what_is_written_is_read_in_its_order(tmp_path: Path) -> None:
    one = writer(tmp_path / "store")
    for seed in range(3):
        one.add(items(4, at=float(seed), seed=seed))
        one.flush()
    one.flush()  # nothing waits
    found = list(TrafficSample.open(tmp_path / "store").shards())
    assert [float(shard.seconds[0]) for shard in found] == [0.0, 1.0, 2.0]
    assert np.array_equal(found[1].images, items(4, seed=1).images)
    assert found[1].rejected.tolist() == [True, False, False, False]


def test_a_writer_goes_on_where_another_stopped(tmp_path: Path) -> None:
    for at in (0.0, 1.0):
        one = writer(tmp_path)
        one.add(items(2, at=at))
        one.flush()
    assert sorted(file.name for file in tmp_path.glob("*.npz")) == ["shard-00000001.npz", "shard-00000002.npz"]


def test_only_the_owner_may_read(tmp_path: Path) -> None:
    one = writer(tmp_path / "store")
    one.add(items(2))
    one.flush()
    modes = {stat.S_IMODE(file.stat().st_mode) for file in (tmp_path / "store").iterdir()}
    assert modes == {0o600}
    assert stat.S_IMODE((tmp_path / "store").stat().st_mode) == 0o700


def test_draws_are_the_share_and_look_at_nothing(tmp_path: Path) -> None:
    one = writer(tmp_path)
    drawn = np.concatenate([one.draw(7) for _ in range(4000)])
    assert abs(drawn.mean() - 0.25) < 4 * np.sqrt(0.25 * 0.75 / len(drawn))
    assert one.draw(0).shape == (0,)


def test_full_shards_are_written_and_the_oldest_go(tmp_path: Path) -> None:
    one = writer(tmp_path, shard_bytes=640, max_bytes=6000)
    for at in range(30):
        one.add(items(10, at=float(at)))
    sizes = [file.stat().st_size for file in tmp_path.glob("*.npz")]
    assert sum(sizes) <= 6000
    assert float(list(TrafficSample.open(tmp_path).shards())[-1].seconds[0]) == 29.0


def test_what_is_too_old_goes(tmp_path: Path) -> None:
    one = writer(tmp_path, shard_bytes=640, max_age_s=5.0)
    for at in range(30):
        one.add(items(10, at=float(at)))
    assert [float(shard.seconds[0]) for shard in TrafficSample.open(tmp_path).shards()] == list(range(24, 30))


@pytest.mark.parametrize("links", [True, False])
def test_several_writers_share_a_store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, *, links: bool) -> None:
    """Two guards on one directory: neither overwrites what the other wrote, whether or not the disk knows links."""

    def refused(*_: object) -> None:
        raise PermissionError("no links here")

    if not links:
        monkeypatch.setattr(os, "link", refused)
    both = [writer(tmp_path) for _ in range(2)]
    for at in range(10):
        both[at % 2].add(items(2, at=float(at), seed=at))
        both[at % 2].flush()
    assert [float(shard.seconds[0]) for shard in TrafficSample.open(tmp_path).shards()] == list(range(10))
    assert {file.suffix for file in tmp_path.iterdir()} == {".json", ".npz"}


@pytest.mark.parametrize("content", [b"", b"damaged"])
def test_a_damaged_shard_is_as_old_as_its_file(tmp_path: Path, content: bytes) -> None:
    """It goes in its turn, and holds up neither writing nor the bounds."""
    one = writer(tmp_path, shard_bytes=640, max_bytes=6000)
    one.add(items(10, at=0.0))
    (tmp_path / "shard-00000001.npz").write_bytes(content)
    for at in range(1, 30):
        one.add(items(10, at=float(at)))
    assert sum(file.stat().st_size for file in tmp_path.glob("*.npz")) <= 6000
    assert not (tmp_path / "shard-00000001.npz").exists()
    assert len(list(TrafficSample.open(tmp_path).shards())) > 2


@pytest.mark.parametrize("content", [b"", b'{"format"'])
def test_a_manifest_that_a_crash_cut_off_is_written_anew(tmp_path: Path, content: bytes) -> None:
    one = writer(tmp_path)
    one.add(items(4, at=1.0))
    one.flush()
    (tmp_path / MANIFEST).write_bytes(content)
    with pytest.raises(DataError, match="cannot be read"):
        TrafficSample.open(tmp_path)
    another = writer(tmp_path)
    another.add(items(4, at=2.0))
    another.flush()
    assert [float(shard.seconds[0]) for shard in TrafficSample.open(tmp_path).shards()] == [1.0, 2.0]


def test_what_a_crash_left_half_written_goes(tmp_path: Path) -> None:
    one = writer(tmp_path)
    for name, age_s in (("shard-0.partial", 7200.0), ("shard-1.partial", 60.0)):
        (tmp_path / name).write_bytes(b"half")
        os.utime(tmp_path / name, (1e6 - age_s, 1e6 - age_s))
    one.add(items(4, at=1e6))
    one.flush()
    assert [file.name for file in tmp_path.glob("*.partial")] == ["shard-1.partial"]


def test_the_last_shard_goes_by_age_alone(tmp_path: Path) -> None:
    one = writer(tmp_path)
    one.add(items(10, at=100.0))
    one.flush()
    prune(tmp_path, 100.0, max_bytes=1, max_age_s=5.0)
    assert len(list(tmp_path.glob("*.npz"))) == 1
    prune(tmp_path, 106.0, max_bytes=1 << 20, max_age_s=5.0)
    assert len(list(tmp_path.glob("*.npz"))) == 0
    with pytest.raises(DataError, match="no shards"):
        TrafficSample.open(tmp_path)


def test_a_full_disk_costs_what_was_to_be_written_and_nothing_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    one = writer(tmp_path)

    def full(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(np, "savez", full)
        one.add(items(4, at=1.0))
        with pytest.raises(OSError, match="No space"):
            one.flush()
    assert sorted(file.name for file in tmp_path.iterdir()) == [MANIFEST]
    one.add(items(4, at=2.0))
    one.flush()
    assert [float(shard.seconds[0]) for shard in TrafficSample.open(tmp_path).shards()] == [2.0]


def changed(folder: Path, **fields: object) -> Path:
    one = writer(folder)
    one.add(items(4))
    one.flush()
    raw = json.loads((folder / MANIFEST).read_text("utf-8"))
    kept = {key: value for key, value in {**raw, **fields}.items() if value is not None}
    (folder / MANIFEST).write_text(json.dumps(kept), encoding="utf-8")
    return folder


@pytest.mark.parametrize("mark", [False, None, "yes", 1])
def test_without_the_mark_nothing_is_opened(tmp_path: Path, mark: object) -> None:
    with pytest.raises(DataError, match="not marked as an unbiased sample"):
        TrafficSample.open(changed(tmp_path, unbiased=mark))


@pytest.mark.parametrize("fields", [{"format": 2}, {"format": None}, {"shape": 7}, {"share": "much"}, {"model": None}])
def test_a_manifest_that_cannot_be_read_is_told(tmp_path: Path, fields: dict[str, object]) -> None:
    with pytest.raises(DataError, match=r"sample\.json"):
        TrafficSample.open(changed(tmp_path, **fields))


def test_what_is_no_store_is_told(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"no sample of traffic"):
        TrafficSample.open(tmp_path / "nowhere")
    writer(tmp_path / "empty")
    with pytest.raises(DataError, match="no shards"):
        TrafficSample.open(tmp_path / "empty")
    with pytest.raises(DataError, match="another sample"):
        SampleWriter(tmp_path / "empty", SampleSpec(0.5, "c", "tiny", "FP32", (1, 4, 4)), np.random.default_rng(0))


@pytest.mark.parametrize("damage", ["cut", "other", "short", "pickle"])
def test_a_damaged_shard_is_told(tmp_path: Path, damage: str) -> None:
    folder = changed(tmp_path)
    file = folder / "shard-00000001.npz"
    one = items(4)
    arrays = {"images": one.images, "rejected": one.rejected, "p_values": one.p_values, "seconds": one.seconds}
    if damage == "cut":
        file.write_bytes(file.read_bytes()[:200])
    elif damage == "other":
        np.savez(file, **{**arrays, "images": np.zeros((4, 2, 2))})
    elif damage == "short":
        np.savez(file, **{**arrays, "rejected": np.zeros(3, dtype=bool)})
    else:
        np.savez(file, **{**arrays, "p_values": np.asarray([{}] * 4)})
    with pytest.raises(DataError, match="shard-00000001"):
        list(TrafficSample.open(folder).shards())
