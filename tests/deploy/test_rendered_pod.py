"""What kustomize renders, run as processes before a real MLServer: it starts, guards, reloads, and loses nothing.

`python -m tests.bench.rollout` does the same for longer, with the pauses as they are rendered.
"""

from __future__ import annotations

import asyncio
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.bench.rollout import BASE, Rollout, roll
from tests.deploy.rendered_pod import GUARD, RenderedPod, render
from tests.serve import tiny_bundle
from tests.serve.guarded import Answered, calling

pytestmark = pytest.mark.slow
QUICK_FACTOR = 0.5  # of the pauses as rendered; `guard drain` itself takes a second or two to start on a busy machine
PATIENCE_S = 20.0


@pytest.fixture(scope="module")
def pods(side: Callable[[str], Path], tmp_path_factory: pytest.TempPathFactory) -> Iterator[list[RenderedPod]]:
    objects = render(side("kubectl"), BASE)
    bundle = tiny_bundle.make(tmp_path_factory.mktemp("rendered") / "bundle").path
    made = [RenderedPod(objects, bundle, side("mlserver"), pause_factor=QUICK_FACTOR) for _ in range(2)]
    yield made
    for pod in made:
        pod.remove()


@pytest.fixture(scope="module")
def ready(pods: list[RenderedPod]) -> list[RenderedPod]:
    """Both pods, started in either order."""
    first, second = pods
    first.start_container(GUARD)  # a native sidecar starts, and is told to have started, without its model server
    first.until(lambda: first.probe("startupProbe"), "started")
    first.until(lambda: first.probe("livenessProbe"), "live")
    assert not first.probe("readinessProbe")
    first.start_container("model-server")
    second.start(model_first=True)
    for pod in pods:
        pod.until_ready()
    return pods


def answers(pod: RenderedPod) -> tuple[Answered, Answered]:
    """What a client gets for an ordinary and for a crafted input."""

    async def ask() -> tuple[Answered, Answered]:
        async with calling(pod.address()) as client:
            return await client.infer(tiny_bundle.ordinary(1)), await client.infer(tiny_bundle.striped(1))

    return asyncio.run(ask())


def until(holds: Callable[[], bool]) -> None:
    deadline = time.monotonic() + PATIENCE_S
    while not holds():
        assert time.monotonic() < deadline
        time.sleep(0.05)


def test_pods_start_in_any_order_and_guard(ready: list[RenderedPod]) -> None:
    for pod in ready:
        clean, crafted = answers(pod)
        assert clean.ok, clean
        assert dict(clean.trailing)["guard-verdict"] == "pass"
        assert (crafted.code.name, crafted.reason) == ("PERMISSION_DENIED", "REJECTED")


def test_the_doctor_finds_nothing_in_a_pod(ready: list[RenderedPod]) -> None:
    pod = ready[0]
    words = pod.words(["guard", "doctor", *pod.guard["args"][1:]])
    done = subprocess.run(words, env=pod.environment(pod.guard), capture_output=True, text=True, check=False)
    lines = [line for line in done.stdout.splitlines() if not line.startswith("ok ")]
    assert (lines, done.returncode, done.stderr) == ([], 0, "")
    for found in ("a guard serves on", "the guard that serves here is ready", "names the bundle's class for all 8"):
        assert found in done.stdout


def test_settings_and_bundle_are_reloaded(ready: list[RenderedPod]) -> None:
    """As a kubelet swaps a ConfigMap, and as a bundle is swapped by rename."""
    pod = ready[1]
    pod.configure(pod.settings.replace('mode = "enforce"', 'mode = "shadow"'))
    until(lambda: answers(pod)[1].ok)
    pod.configure(pod.settings)
    until(lambda: not answers(pod)[1].ok)
    tiny_bundle.make(pod.folder / "next", reject_rate=0.02)
    (pod.folder / "bundle").replace(pod.folder / "before")
    (pod.folder / "next").replace(pod.folder / "bundle")
    log = pod.folder / f"{GUARD}.log"
    until(lambda: log.read_text("utf-8").count('"event": "reloaded"') >= 3)
    assert answers(pod)[0].ok
    assert pod.probe("readinessProbe")


def test_a_rolling_restart_loses_nothing(ready: list[RenderedPod]) -> None:
    """The first pod, to which all clients keep their connections: hooks, SIGTERM, the guard last, and again."""
    found: Rollout = roll(ready, [0], clients=4, pause_s=0.05)
    assert found.lost == {}, ready[0].logs()
    assert found.calls["OK"] > 50
    assert found.calls["refused"] > 10
    assert found.failed == []
    hooks = {name for name, container in ready[0].containers.items() if container.get("lifecycle", {}).get("preStop")}
    assert {f"{name} preStop 0" for name in hooks} < set(found.codes)
    assert found.stopped_s[0] < ready[0].spec["terminationGracePeriodSeconds"]
