"""A rolling restart of two rendered pods, each the guard before a real MLServer, while sticky clients ask at load.

    python -m tests.bench.rollout [--quick] [--overlay FOLDER] [--rounds N] [--clients N]

Every round stops and starts each pod in turn, as a kubelet does: preStop hooks at once, then SIGTERM, guard last. Pods
start guard first, then model server first, in turn. Half of the clients are tritonclients and half grpc.aio's; each
keeps its connection until it is told. It fails where a call ends otherwise than with its answer or its refusal.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import grpc
import grpc.aio

from tests import side
from tests.deploy.rendered_pod import RenderedPod, render
from tests.serve import tiny_bundle
from tests.serve.guarded import Client
from tests.serve.processes import ROOT
from tests.serve.sticky_clients import asking

BASE = ROOT / "deploy/kustomize/base"
ANSWERS = ("OK", "refused")


@dataclass
class Rollout:
    """What became of a rolling restart: calls by how they ended, exit codes, and the seconds of each stop and start."""

    calls: Counter[str] = field(default_factory=Counter)
    codes: Counter[str] = field(default_factory=Counter)  # "NAME CODE" of containers and hooks
    stopped_s: list[float] = field(default_factory=list)
    started_s: list[float] = field(default_factory=list)

    @property
    def lost(self) -> dict[str, int]:
        return {how: count for how, count in self.calls.items() if how not in ANSWERS}

    @property
    def failed(self) -> list[str]:
        return [code for code in self.codes if not code.endswith(" 0")]


def roll(pods: Sequence[RenderedPod], turns: Sequence[int], *, clients: int, pause_s: float = 0.0) -> Rollout:
    """Restart pods in these turns while clients ask, half of them of each kind."""
    addresses = [pod.address() for pod in pods]
    return asyncio.run(rolled(pods, turns, addresses, clients, pause_s))


async def rolled(
    pods: Sequence[RenderedPod], turns: Sequence[int], addresses: list[str], clients: int, pause_s: float
) -> Rollout:
    found = Rollout()
    stop = asyncio.Event()
    with ExitStack() as stack:
        sticky = await asyncio.to_thread(stack.enter_context, asking(addresses, clients // 2, pause_s))
        tasks = [asyncio.create_task(hammer(addresses, stop, found.calls, pause_s)) for _ in range(clients // 2)]
        for turn, number in enumerate(turns):
            await asyncio.to_thread(restart, pods[number], found, model_first=turn % 2 == 1)
        stop.set()
        await asyncio.gather(*tasks)
        told, _ = await asyncio.to_thread(sticky.communicate)
    found.calls.update(json.loads(told))
    return found


def restart(pod: RenderedPod, found: Rollout, *, model_first: bool) -> None:
    """Stop a pod and start it again, until it is ready."""
    began = time.monotonic()
    found.codes.update(f"{name} {code}" for name, code in pod.stop().items())
    stopped = time.monotonic()
    pod.start(model_first=model_first)
    pod.until_ready()
    found.stopped_s.append(stopped - began)
    found.started_s.append(time.monotonic() - stopped)


async def hammer(addresses: list[str], stop: asyncio.Event, ended: Counter[str], pause_s: float) -> None:
    """Ask with an ordinary and a crafted input in turn, on one connection, until it is time to stop."""
    options = [("grpc.use_local_subchannel_pool", 1)]
    images = (tiny_bundle.ordinary(1), tiny_bundle.striped(1))
    async with grpc.aio.insecure_channel(f"ipv4:{','.join(addresses)}", options=options) as channel:
        client, number = Client(channel), 0
        while not stop.is_set():
            crafted = number % 2 == 1
            answer = await client.infer(images[number % 2])
            number += 1
            expected = grpc.StatusCode.PERMISSION_DENIED if crafted else grpc.StatusCode.OK
            right = "refused" if crafted else "OK"
            ended[right if answer.code is expected else f"{answer.code.name}: {answer.details}"] += 1
            await asyncio.sleep(pause_s)


@contextmanager
def replicas(overlay: Path, bundle: Path, *, pause_factor: float) -> Iterator[list[RenderedPod]]:
    """Two ready pods of an overlay; the one has started guard first, the other model server first."""
    objects = render(side.ready("kubectl"), overlay)
    pods = [RenderedPod(objects, bundle, side.ready("mlserver"), pause_factor=pause_factor) for _ in range(2)]
    try:
        for pod, model_first in zip(pods, (False, True), strict=True):
            pod.start(model_first=model_first)
        for pod in pods:
            pod.until_ready()
        yield pods
    finally:
        for pod in pods:
            pod.remove()


def main(arguments: argparse.Namespace) -> int:
    with tempfile.TemporaryDirectory() as folder:
        bundle = tiny_bundle.make(Path(folder) / "bundle").path
        factor = 0.5 if arguments.quick else 1.0
        with replicas(arguments.overlay, bundle, pause_factor=factor) as pods:
            turns = [0] if arguments.quick else [0, 1] * arguments.rounds
            began = time.monotonic()
            found = roll(pods, turns, clients=arguments.clients)
            took_s = time.monotonic() - began
    print(f"{len(turns)} restarts in {took_s:.0f} s, {arguments.clients} clients, pauses x {factor:g}")
    print(f"calls: {', '.join(f'{count:,} {how}' for how, count in sorted(found.calls.items()))}")
    print(f"exit codes: {', '.join(f'{code} ({count})' for code, count in sorted(found.codes.items()))}")
    for name, seconds in (("stop", found.stopped_s), ("start until ready", found.started_s)):
        print(f"{name}: {', '.join(f'{one:.1f}' for one in seconds)} s")
    print(f"lost: {sum(found.lost.values())}")
    return int(bool(found.lost or found.failed))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="one restart, its pauses a half")
    parser.add_argument("--overlay", type=Path, default=BASE, help="the folder that kustomize renders")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--clients", type=int, default=8)
    sys.exit(main(parser.parse_args()))
