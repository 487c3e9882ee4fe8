"""For maintainers: the memory of a guard under large, unfinished and packed messages.

    python -m tests.bench.memory            8 bodies of 120 MiB, 20 that do not end, 8 gzip bombs; exits 1 over 1 GiB
    python -m tests.bench.memory --quick    the same with bodies of a twentieth
    python -m tests.bench.memory --checkout OTHER

The guard takes messages of up to 128 MiB and is otherwise as it comes. Attackers speak HTTP/2 by hand and mind what
they are granted; a bystander asks all the time whether the guard lives, and sends clean requests.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import grpc

from guard.serve.grpc.upstream import path
from tests.bench.sidecar import ROOT, PeakMemory, serving, table, tiny
from tests.serve.bystander import BYSTANDER
from tests.serve.frames import Wire, grpc_headers, message
from tests.serve.processes import process

INFER = path("ModelInfer").encode()
STATUSES = {code.value[0]: code.name for code in grpc.StatusCode}
MOST_MIB = 1024.0
LIVE_WAIT_S, QUICK_LIVE_WAIT_S = 0.5, 5.0  # the second beside other tests
PATIENCE_S = 60.0


def whole(address: str, body: bytes, compression: grpc.Compression | None = None) -> str:
    """Send a body as any client does, and say how the call ended."""
    options = [("grpc.max_send_message_length", -1), ("grpc.use_local_subchannel_pool", 1)]
    with grpc.insecure_channel(address, options) as channel:
        infer: Any = channel.unary_unary(path("ModelInfer"))
        try:
            infer(body, timeout=PATIENCE_S, compression=compression)
        except grpc.RpcError as error:
            return str(error.code().name)
    return "OK"


def unfinished(address: str, body: bytes) -> str:
    """Send a body that announces more than it has, and say how the call ended."""
    with Wire(address) as wire:
        stream = wire.open(grpc_headers(INFER))
        try:
            wire.body(stream, message(body, length=len(body) + 1_000_000), end=False)
        except OSError:
            return "connection closed"
        status = wire.answer(stream, patience_s=PATIENCE_S).status
    return "no status" if status is None else STATUSES[status]


def scene(count: int, work: Callable[[], str]) -> Counter[str]:
    with ThreadPoolExecutor(count) as pool:
        return Counter(future.result() for future in [pool.submit(work) for _ in range(count)])


@contextmanager
def bystander(address: str) -> Iterator[list[dict[str, Any]]]:
    """Another client, in a process of its own: its calls, each with how long it waited."""
    calls: list[dict[str, Any]] = []
    with process(BYSTANDER, {"address": address}) as started:
        assert started.popen.stderr is not None

        def collect() -> None:
            assert started.popen.stderr is not None
            calls.extend(json.loads(line) for line in started.popen.stderr)

        thread = threading.Thread(target=collect)
        thread.start()
        time.sleep(0.5)
        yield calls
        started.popen.terminate()
        thread.join()


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--checkout", type=Path, default=ROOT, help="of the guard: before and after")
    parser.add_argument("--quick", action="store_true", help="bodies of 6 MiB")
    options = parser.parse_args(arguments)
    size = (6 if options.quick else 120) * 2**20
    with tempfile.TemporaryDirectory() as folder:
        bundle, model, name = tiny(Path(folder))
        settings = Path(folder) / "guard.toml"
        settings.write_text(f"max_message_bytes = {size + 8 * 2**20}\n", encoding="utf-8")
        body = bytes(size)
        with serving(bundle, model, name, "--config", str(settings), checkout=options.checkout) as guarded:
            address = guarded.address
            scenes = (
                ("8 bodies", 8, lambda: whole(address, body)),
                ("20 that do not end", 20, lambda: unfinished(address, body)),
                ("8 gzip bombs", 8, lambda: whole(address, body, grpc.Compression.Gzip)),
            )
            rows, odd = [], 0
            with PeakMemory(guarded.process.pid) as memory, bystander(address) as calls:
                for what, count, work in scenes:
                    began = time.monotonic()
                    with PeakMemory(guarded.process.pid) as at_that:
                        ended = scene(count, work)
                    odd += ended["INTERNAL"] + ended["UNKNOWN"]
                    rows.append((what, f"{at_that.most:.0f} MiB", f"{time.monotonic() - began:.1f} s", dict(ended)))
            lives = guarded.process.poll() is None
            print(table(["scene", "peak", "took", "ended"], rows))
            print(f"\nbodies of {size / 2**20:.0f} MiB; peak {memory.most:.0f} MiB, wanted at most {MOST_MIB:.0f}")
            print(f"bystander, of {len(calls)} calls:")
            waits = {}
            for method in sorted({call["method"] for call in calls}):
                own = [call for call in calls if call["method"] == method]
                waits[method] = max(call["waited_s"] for call in own)
                failures = Counter(str(call["failure"]).split(":")[0] for call in own if call["failure"])
                print(f"  {method:<12} waited {waits[method] * 1e3:.0f} ms at most; failed {dict(failures)}")
            print(f"books {dict(guarded.books())}")
    longest_s = QUICK_LIVE_WAIT_S if options.quick else LIVE_WAIT_S
    return 0 if lives and not odd and memory.most <= MOST_MIB and waits["ServerLive"] <= longest_s else 1


if __name__ == "__main__":
    sys.exit(main())
