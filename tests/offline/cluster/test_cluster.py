"""A real Ray cluster with two workers: what it computes is what one process computes, whatever is lost on the way."""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from tests.once import once
from tests.ray_node import ADDRESS, Node, can_be_made, ray_node
from tests.side import ROOT, StaleError, shelf

pytestmark = [pytest.mark.slow, pytest.mark.large]

DRIVER = [sys.executable, "-m", "tests.offline.cluster.driver"]
MEASURED = {"job.json", "seconds.json"}  # of a work directory: paths, and how long it took
TASK, WORKERS = "ray::computed", "ray::"  # titles of a worker at a task, and of any


@pytest.fixture(scope="module")
def node(no_ray: str) -> Iterator[Node]:
    try:
        shelf("ray")
    except StaleError:
        pytest.skip(no_ray)
    if not can_be_made():
        pytest.skip("no network namespaces; Ray listens on every address of a machine")
    with ray_node(cpus=2) as found:
        yield found


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of the bundle that one process trained, and its report of an evaluation."""

    def make(folder: Path) -> None:
        for what in ("train", "evaluate"):
            done = subprocess.run([*DRIVER, what, str(folder)], cwd=ROOT, capture_output=True, text=True, check=False)
            assert done.returncode == 0, done.stdout + done.stderr

    return once(tmp_path_factory, "ray-alone", make)


@pytest.fixture
def folder(alone: Path, tmp_path: Path) -> Path:
    """A folder of the same model and data, in which the sizes that were chosen by speed are the same ones."""
    for name in ("model.pt2", "data.npz", "training.npz", "fresh.npz"):
        shutil.copy2(alone / name, tmp_path / name)
    work = tmp_path / "bundle.work"
    shutil.copytree(alone / "bundle.work" / "choices", work / "choices")
    shutil.copy2(alone / "bundle.work" / "layout.json", work)
    return tmp_path


def contents(folder: Path) -> dict[str, bytes]:
    """Every file below a folder by its path, but those that say how long something took."""
    return {
        file.relative_to(folder).as_posix(): file.read_bytes()
        for file in sorted(folder.rglob("*"))
        if file.is_file() and file.name not in MEASURED
    }


def same(mine: Path, theirs: Path) -> None:
    found, wanted = contents(mine), contents(theirs)
    assert sorted(found) == sorted(wanted)
    assert [name for name in wanted if found[name] != wanted[name]] == []


def follow(driver: subprocess.Popen[str], until: str = r"\Z.") -> list[str]:
    """Read what a driver says until a line matches, or until it ends."""
    assert driver.stdout is not None
    said = []
    for line in driver.stdout:
        said.append(line)
        if re.search(until, line):
            break
    return said


def finish(driver: subprocess.Popen[str]) -> list[str]:
    with driver:
        said = follow(driver)
    assert driver.returncode == 0, "".join(said)
    return said


def kill(node: Node, title: str, driver: subprocess.Popen[str], when: Callable[[], bool]) -> int:
    """Kill the workers of this title once there are any at the wanted time; return how many."""
    while driver.poll() is None:
        if when() and (found := node.processes(title)):
            for pid in found:
                with suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            return len(found)
    return 0


def test_a_cluster_trains_and_evaluates_as_one_process_does_to_the_last_bit(
    node: Node, alone: Path, folder: Path
) -> None:
    """Bundle, report, every shard, every part of the adaptive attack, and the guards without a family."""
    for what in ("train", "evaluate"):
        finish(node.start([*DRIVER, what, str(folder), ADDRESS]))
    for name in ("bundle", "bundle.work", "report"):
        same(folder / name, alone / name)


def test_killed_workers_a_killed_driver_and_a_second_trainer_change_nothing(
    node: Node, alone: Path, folder: Path
) -> None:
    work = folder / "bundle.work"

    def shards() -> list[Path]:
        return sorted((work / "crafted").glob("*.npz"))

    driver = node.start([*DRIVER, "train", str(folder), ADDRESS])
    follow(driver, r"epoch 2 of")
    assert kill(node, TASK, driver, lambda: True), "a worker was killed as it trained"
    assert kill(node, TASK, driver, lambda: len(shards()) > 2), "and another as it attacked"

    with node.start([*DRIVER, "train", str(folder), ADDRESS]) as second:
        refused = follow(second)[-1]
    assert second.returncode == 1
    assert re.match(r"BundleError: \S+bundle\.work is in use by process \d+ on \S+ .*; wait until it ends", refused)

    with driver:
        driver.kill()
    assert driver.returncode == -signal.SIGKILL, "it was still at work"
    kept = {file: file.stat().st_mtime_ns for file in shards()}
    assert kept
    assert not (folder / "bundle").exists()
    said = finish(node.start([*DRIVER, "train", str(folder), ADDRESS]))
    assert any("going on after epoch" in line for line in said)
    assert {file: file.stat().st_mtime_ns for file in kept} == kept, "what was kept was not computed again"
    same(folder / "bundle", alone / "bundle")
    wanted = contents(alone / "bundle.work" / "crafted")  # those of the evaluation among them
    assert {name: content for name, content in contents(work / "crafted").items() if wanted[name] != content} == {}
    assert not (work / "lock").exists()


def test_a_cluster_of_other_versions_is_refused_in_one_line(node: Node, folder: Path) -> None:
    """Another Ray is refused by Ray itself, another guard by each node."""
    other_ray = "import ray; ray.__version__ = '2.1.0'"
    other_guard = (
        "import guard.offline.work.ray_task as t; import guard.offline.work.ray_cluster as c; "
        "own = dict(t.versions()); c.versions = lambda: {**own, 'guard': 'another'}"
    )
    run = "import runpy, sys; sys.argv = ['driver', *sys.argv[1:]]; "
    for patch, words in (
        (other_ray, r"ConfigError: the Ray cluster at \S+ has other versions: Version mismatch.*2\.1\.0"),
        (
            other_guard,
            r"ConfigError: worker \S+ of the Ray cluster has guard \w{12} in place of another; install there",
        ),
    ):
        program = f"{patch}; {run} runpy.run_module('tests.offline.cluster.driver', run_name='__main__')"
        with node.start([sys.executable, "-c", program, "train", str(folder), ADDRESS]) as driver:
            said = follow(driver)
        assert driver.returncode == 1, "".join(said)
        assert re.match(words, said[-1]), "".join(said)
        assert "connected\n" not in said
