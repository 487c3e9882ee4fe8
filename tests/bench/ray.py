"""Items a second that are attacked by a Ray cluster of one and of two workers, beside one process with two threads.

    python -m tests.side ray          once, 250 MB
    python -m tests.bench.ray         three minutes
    python -m tests.bench.ray --quick

A network of random weights on 3 x 32 x 32 values is attacked by PGD, in shards of 64 items; its own answers are the
labels. The first call is not counted: it starts workers, imports torch there and sends the network.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import torch
from rich.console import Console
from torch import nn

from guard.offline.attacks.methods.pgd import Pgd
from guard.offline.attacks.model import TorchModel
from guard.offline.crafting.crafter import craft
from guard.offline.crafting.shard import CraftSetup
from guard.offline.data.dataset import Dataset
from guard.offline.data.splits import content_hashes
from guard.offline.model.open_model import Source, open_model
from guard.offline.work.parallel import Threads
from guard.offline.work.ray_cluster import computing_on
from guard.offline.work.shipping import to_bytes
from guard.offline.work.store import ResultStore
from guard.offline.work.tables import counts, new_table, plain_lines
from tests.ray_node import ADDRESS, ray_node
from tests.side import ROOT

SHAPE, CLASSES, GRID = (3, 32, 32), 10, 255
THREADS = 2


def network() -> nn.Module:
    """About 13 million multiply-adds, the cost of a ResNet-8."""
    torch.manual_seed(0)
    layers: list[nn.Module] = []
    for inputs, outputs, stride in ((3, 16, 1), (16, 16, 1), (16, 32, 2), (32, 32, 1), (32, 64, 2), (64, 64, 1)):
        layers += [nn.Conv2d(inputs, outputs, 3, stride, padding=1), nn.BatchNorm2d(outputs), nn.ReLU()]
    layers += [nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(64, CLASSES)]
    return nn.Sequential(*layers).eval().requires_grad_(False)


def measured(address: str | None, items: int, steps: int, repeats: int) -> dict[str, float]:
    """Attack the items several times, and return the seconds of the first call, and the items a second of the best."""
    began = time.perf_counter()
    generator = np.random.default_rng(0)
    images = generator.integers(0, GRID + 1, (items, *SHAPE)).astype(np.float32) / np.float32(GRID)
    model = open_model(Source(f"{__name__}:network", SHAPE, grid=GRID))
    with torch.no_grad():
        labels = model(torch.from_numpy(images)).argmax(dim=1).numpy()
    data = Dataset(images, labels, content_hashes(images))
    with computing_on(address) as executor:
        connected = time.perf_counter()
        seconds = []
        for _ in range(repeats + 1):
            with tempfile.TemporaryDirectory() as folder:
                started = time.perf_counter()
                setup = CraftSetup(
                    TorchModel(model.graph),
                    GRID,
                    "bench",
                    ResultStore(Path(folder)),
                    seed=0,
                    executor=Threads(THREADS) if executor is None else executor,
                )
                craft(setup, data, [Pgd(8 / 255, steps=steps)])
                seconds.append(time.perf_counter() - started)
        return {
            "ready_s": connected - began,
            "first_s": seconds[0],
            "items_s": items / min(seconds[1:]),
            "sent_bytes": float(len(to_bytes(setup))),
        }


def in_process(address: str | None, sizes: list[str], prefix: list[str], environment: dict[str, str] | None) -> dict:
    command = [*prefix, sys.executable, "-m", "tests.bench.ray", "--measure", address or "threads", *sizes]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    if done.returncode:
        sys.exit(done.stdout + done.stderr)
    found: dict = json.loads(done.stdout.splitlines()[-1])
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--items", type=int)
    parser.add_argument("--steps", type=int)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--measure", help=argparse.SUPPRESS)
    options = parser.parse_args()
    items = options.items or (128 if options.quick else 512)
    steps = options.steps or (4 if options.quick else 20)
    if options.measure:
        address = None if options.measure == "threads" else options.measure
        print(json.dumps(measured(address, items, steps, options.repeats)))
        return
    sizes = ["--items", str(items), "--steps", str(steps), "--repeats", str(options.repeats)]
    rows = {f"one process, {THREADS} threads": in_process(None, sizes, [], None)}
    for cpus in (1, 2):
        with ray_node(cpus=cpus) as node:
            rows[f"Ray, {cpus} worker{'s' if cpus > 1 else ''}"] = in_process(
                ADDRESS, sizes, node.inside, node.environment
            )
    base = next(iter(rows.values()))["items_s"]
    table = new_table(
        f"PGD {steps} steps, {items} items", map(counts, ("items/s", "of threads", "first call", "ready"))
    )
    for name, row in rows.items():
        table.add_row(
            name,
            f"{row['items_s']:.1f}",
            f"{row['items_s'] / base:.2f}",
            f"{row['first_s']:.1f} s",
            f"{row['ready_s']:.1f} s",
        )
    for line in plain_lines([table]):
        Console().print(line, highlight=False)
    shared_mb = next(iter(rows.values()))["sent_bytes"] / 1e6
    print(f"what all tasks share: {shared_mb:.2f} MB, sent once to each worker")


if __name__ == "__main__":
    main()
