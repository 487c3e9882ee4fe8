"""What kustomize and Helm render, run as processes before a real MLServer: it starts, guards, reloads, loses nothing.

`python -m tests.bench.rollout` does the same for longer, with the pauses as they are rendered.
"""

from __future__ import annotations

import asyncio
import subprocess
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import grpc
import grpc.aio
import httpx
import pytest
from cryptography.hazmat.primitives.asymmetric import ec

from guard.signing import sign
from tests.bench.rollout import BASE, Rollout, roll
from tests.deploy.chart import objects_of
from tests.deploy.rendered_pod import GUARD, RenderedPod, by_kind, render
from tests.serve import tiny_bundle
from tests.serve.authority import Authority, client_credentials
from tests.serve.guarded import Answered, Client, calling
from tests.test_signing import nobody, write_key

pytestmark = pytest.mark.slow
QUICK_FACTOR = 0.5  # of the pauses as rendered; `guard drain` itself takes a second or two to start on a busy machine
PATIENCE_S = 20.0


@pytest.fixture(scope="module")
def pods(side: Callable[[str], Path], tmp_path_factory: pytest.TempPathFactory) -> Iterator[list[RenderedPod]]:
    """One of kustomize's base, and one of the chart, which has MLServer's own command line and REST beside gRPC."""
    rendered = render(side("kubectl"), BASE), by_kind(objects_of("rest-mlserver"))
    bundle = tiny_bundle.make(tmp_path_factory.mktemp("rendered") / "bundle").path
    made = [RenderedPod(objects, bundle, side("mlserver"), pause_factor=QUICK_FACTOR) for objects in rendered]
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
    rest = ready[1].setting("GUARD_REST_LISTEN")
    for image, status in ((tiny_bundle.ordinary(1), 200), (tiny_bundle.striped(1), 403)):
        tensor = {"name": "input", "datatype": "FP32", "shape": list(image.shape), "data": image.ravel().tolist()}
        answer = httpx.post(f"http://{rest}/v2/models/{tiny_bundle.MODEL_NAME}/infer", json={"inputs": [tensor]})
        assert answer.status_code == status, answer.text


@pytest.mark.parametrize("number", [0, 1])
def test_the_doctor_finds_nothing_in_a_pod(ready: list[RenderedPod], number: int) -> None:
    pod = ready[number]
    words = pod.words(["guard", "doctor", *pod.guard["args"][1:]], pod.guard)
    done = subprocess.run(words, env=pod.environment(pod.guard), capture_output=True, text=True, check=False)
    lines = [line for line in done.stdout.splitlines() if not line.startswith("ok ")]
    assert (lines, done.returncode, done.stderr) == ([], 0, "")
    for found in ("a guard serves on", "the guard that serves here is ready", "names the bundle's class for all 8"):
        assert found in done.stdout


def test_production_speaks_tls_and_takes_signed_bundles_alone(
    ready: list[RenderedPod], side: Callable[[str], Path], tmp_path: Path
) -> None:
    """The overlay's init container, Secret, probes over HTTP and hook, before the model server of another pod."""
    authority = Authority()
    own = authority.issue()
    key = write_key(tmp_path, "signer", ec.generate_private_key(ec.SECP256R1()))
    signed = tiny_bundle.make(tmp_path / "signed")
    sign(signed, key, ask=nobody)
    volumes = {
        "guard-tls": {"tls.crt": own.chain, "tls.key": own.key},
        "guard-trusted-keys": {"signer.pub": key.with_suffix(".pub").read_bytes()},
    }
    objects = render(side("kubectl"), BASE.parent / "overlays/production")
    made = partial(RenderedPod, objects, mlserver=side("mlserver"), volumes=volumes, pause_factor=QUICK_FACTOR)
    unsigned, pod = made(bundle=ready[1].bundle), made(bundle=signed.path)
    try:
        with pytest.raises(ChildProcessError, match=r"verify-bundle ended with 5: .* is not signed"):
            unsigned.initialise()
        pod.ports["9000"] = ready[1].port("9000")
        pod.initialise()
        pod.start_container(GUARD)
        for name in ("startupProbe", "livenessProbe", "readinessProbe"):
            pod.until(lambda name=name: pod.probe(name), name)

        async def ask() -> tuple[Answered, Answered]:
            options = [("grpc.ssl_target_name_override", "localhost")]
            async with grpc.aio.secure_channel(pod.address(), client_credentials(authority), options) as channel:
                client = Client(channel)
                return await client.infer(tiny_bundle.ordinary(1)), await client.infer(tiny_bundle.striped(1))

        clean, crafted = asyncio.run(ask())
        assert clean.ok, clean
        assert crafted.reason == "REJECTED"
        assert pod.stop() == {"guard preStop": 0, GUARD: 0}
    finally:
        for one in (unsigned, pod):
            one.remove()


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
