"""For maintainers with a CUDA device: is a bundle on it the bundle that was promised, and what does it cost there?

    python -m tests.bench.cuda BUNDLE DATA.npz [--items 1000] [--seconds 60]

DATA holds `images` and `labels` as `guard train` reads them. Printed are the device; whether a session without a device
is refused; p-values and verdicts of the items on the device and on the CPU; the nodes that the device does not take;
items a second of the bare model and of the programs in batches of 1, 8, 32 and 128, in turns within one run, on the
device and on the CPU; and what the sessions take of the device's memory with a limit and without.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from guard.arrays import to_wire
from guard.bundle import Bundle
from guard.cascade import Readings
from guard.offline.bench.bench import bench
from guard.runtime import Runtime
from guard.session import PROVIDERS, CudaOptions, Device, onnxruntime, providers

BATCHES = (1, 8, 32, 128)
PART = 128  # items that are read at once
MIB = 2**20
LIMIT_BYTES = 512 * MIB
WITHOUT_DEVICE = """
import sys
from pathlib import Path
from guard.bundle import Bundle
from guard.errors import GuardError
from guard.runtime import Runtime
try:
    Runtime.open(Bundle.open(Path(sys.argv[1])), device="cuda")
except GuardError as error:
    print(f"refused with exit code {error.exit_code}: {error}")
else:
    print("NOT REFUSED")
"""
MEMORY = """
import sys
from pathlib import Path
import numpy as np
from guard.bundle import Bundle
from guard.runtime import Runtime
from guard.session import CudaOptions
from tests.bench.cuda import used_mib
limit = int(sys.argv[2]) or None
before = used_mib()
runtime = Runtime.open(Bundle.open(Path(sys.argv[1])), device="cuda", cuda=CudaOptions(memory_bytes=limit))
samples = runtime.bundle.samples.images
loaded = used_mib()
for items in (1, 8, 32, 128, 64, 3, 128):
    runtime.read(np.resize(samples, (items, *samples.shape[1:])), complete=True)
print(f"{loaded - before} MiB once loaded, {used_mib() - before} after batches of up to 128")
"""


def main() -> None:
    parser = argparse.ArgumentParser(description="Compare a bundle on a CUDA device with itself on the CPU.")
    parser.add_argument("bundle", type=Path)
    parser.add_argument("data", type=Path)
    parser.add_argument("--items", type=int, default=1000)
    parser.add_argument("--seconds", type=float, default=60.0, help="for the timing on each device")
    arguments = parser.parse_args()
    bundle = Bundle.open(arguments.bundle)
    with np.load(arguments.data) as data:
        images = to_wire(data["images"][: arguments.items], bundle.manifest.model.input)
    print(f"onnxruntime {onnxruntime().__version__}, {os.cpu_count()} cores; {smi('name')}", flush=True)
    print(f"without a device: {in_process(WITHOUT_DEVICE, arguments.bundle, CUDA_VISIBLE_DEVICES='-1')}", flush=True)
    compare(bundle, images)
    for line in placement(bundle, images[:8]):
        print(line, flush=True)
    for device in ("cuda", "cpu"):
        throughput(bundle, device, arguments.seconds)
    for limit in (0, LIMIT_BYTES):
        told = "no limit" if limit == 0 else f"a limit of {limit // MIB} MiB a session"
        print(f"memory with {told}: {in_process(MEMORY, arguments.bundle, limit)}", flush=True)


def compare(bundle: Bundle, images: NDArray[Any]) -> None:
    """Print how far readings on the device are from the CPU's, and how many verdicts differ."""
    read = {device: readings(bundle, device, images) for device in ("cpu", "cuda")}
    logits, p_values = ([one[name] for one in read.values()] for name in ("logits", "p_value"))
    apart = np.abs(p_values[0] - p_values[1])
    rates = (bundle.manifest.reject_rate, bundle.manifest.flag_rate)
    flips = {rate: int(((p_values[0] <= rate) != (p_values[1] <= rate)).sum()) for rate in rates}
    print(
        f"{len(images)} items: logits differ by {np.abs(logits[0] - logits[1]).max():.2g} at most "
        f"(of a spread of {logits[0].std():.3g}), p-values by {apart.max():.3g} at most and {apart.mean():.2g} on "
        f"average; other verdicts: {', '.join(f'{count} at {rate:g}' for rate, count in flips.items())}",
        flush=True,
    )


def readings(bundle: Bundle, device: Device, images: NDArray[Any]) -> dict[str, NDArray[Any]]:
    runtime = Runtime.open(bundle, device=device)
    runtime.self_check()
    parts: list[Readings] = [
        runtime.read(images[start : start + PART], complete=True) for start in range(0, len(images), PART)
    ]
    return {name: np.concatenate([getattr(part, name) for part in parts]) for name in ("logits", "p_value")}


def placement(bundle: Bundle, images: NDArray[Any]) -> list[str]:
    """The lines that say which nodes of each program the device does not take, and which share of the time they are."""
    ort, lines = onnxruntime(), []
    for program in bundle.manifest.programs:
        with tempfile.TemporaryDirectory() as folder:
            options = ort.SessionOptions()
            options.enable_profiling = True
            options.profile_file_prefix = str(Path(folder) / program.name)
            source = str(bundle.path / program.file)
            session = ort.InferenceSession(source, options, providers=providers("cuda", CudaOptions()))
            for _ in range(3):
                session.run(None, {session.get_inputs()[0].name: images})
            events = json.loads(Path(session.end_profiling()).read_text("utf-8"))
        nodes = [event for event in events if "provider" in event.get("args", {})]
        elsewhere = [event for event in nodes if event["args"]["provider"] != PROVIDERS["cuda"]]
        kinds = Counter(event["args"].get("op_name", "?") for event in elsewhere)
        share = sum(event["dur"] for event in elsewhere) / max(1, sum(event["dur"] for event in nodes))
        lines.append(
            f"{program.name}: {len(elsewhere)} of {len(nodes)} node runs are not on the device ({dict(kinds)}), "
            f"{share:.1%} of the nodes' time"
        )
    return lines


def throughput(bundle: Bundle, device: Device, seconds: float) -> None:
    """Print items a second of the bare model and of all programs, which took turns."""
    result = bench(bundle, batches=BATCHES, threads=None, seconds=seconds, device=device)
    for batch in result.batches:
        bare, whole = batch.model, batch.read_microseconds
        print(
            f"{device}, batch {batch.items:3d}: bare {batch.per_second(bare):9.0f} items/s, guarded "
            f"{batch.per_second(whole):9.0f} items/s, {batch.cascade_forwards.median:.2f} forwards of programs, "
            f"{batch.read_forwards.median:.2f} with fusion and ranks, {whole.median - bare.median:.0f} us more a call",
            flush=True,
        )


def smi(column: str) -> str:
    command = ["nvidia-smi", f"--query-gpu={column}", "--format=csv,noheader,nounits"]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()


def used_mib() -> int:
    """The MiB of the device's memory that are taken, by whomever."""
    return int(smi("memory.used"))


def in_process(code: str, *arguments: object, **environment: str) -> str:
    """Run code in a process of its own and return what it printed last."""
    command = [sys.executable, "-c", code, *map(str, arguments)]
    done = subprocess.run(
        command, env={**os.environ, **environment}, capture_output=True, text=True, check=False, timeout=120
    )
    printed = (done.stdout.strip() or done.stderr.strip()).splitlines()
    return printed[-1] if printed else f"nothing (exit code {done.returncode})"


if __name__ == "__main__":
    began = time.monotonic()
    main()
    print(f"took {time.monotonic() - began:.0f} s")
