"""For maintainers: whether two versions of the code make the same guards, from the same plan.

    python -m tests.bench.same_numbers --out after.json                              the demo's guard
    python -m tests.bench.same_numbers --out before.json --checkout OTHER            of another checkout
    python -m tests.bench.same_numbers … --fashion ../shared/models/fashion-resnet8.onnx ../shared/data/fashion-test.npz
    python -m tests.bench.same_numbers --compare before.json after.json

How it works. Each guard is trained from nothing in a process of that checkout, with the numbers of items and steps, the
seed and one thread fixed, since `--minutes` sizes attacks by measured speed. Then it is served, and the admin listener
is asked for the p-values of the first 500 items of the data: so only the command line and the wire have to be the same
in both versions. Written down are also the report's figures, the sizes of the bundle's files, what `guard bench` says,
and time and memory of the training.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import grpc
import numpy as np
from numpy.typing import NDArray

from guard.serve.grpc.wire.guard_pb2 import InspectRequest, InspectResponse
from tests.bench.sidecar import ROOT, started, table
from tests.serve.guarded import infer_request

ITEMS, AT_ONCE = 500, 4
PLAN = ["--craft-items", "240", "--attack-items", "60", "--adaptive-items", "4", "--adaptive-steps", "5", "--seed", "0"]
ENVIRONMENT = {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
MOST_SHOWN = 12
SAME = 1e-9  # p-values no further apart than this


def guard(checkout: Path, *arguments: str | Path) -> tuple[float, float]:
    """Run a guard command of a checkout; the seconds it took and its peak memory in MiB. Raises SystemExit."""
    began = time.monotonic()
    process = subprocess.Popen(
        [sys.executable, "-m", "guard", *map(str, arguments)],
        cwd=checkout,
        env=os.environ | ENVIRONMENT | {"PYTHONPATH": str(checkout)},
    )
    _, status, usage = os.wait4(process.pid, 0)
    if status:
        raise SystemExit(f"guard {arguments[0]} failed in {checkout}")
    return time.monotonic() - began, usage.ru_maxrss / 1024


def p_values(checkout: Path, bundle: Path, model: Path, images: NDArray[np.float32], name: str) -> list[float]:
    """Of items [item, channel, row, column] in 0 … 1, as the served guard gives them to its operator."""
    manifest = json.loads((bundle / "manifest.json").read_text("utf-8"))
    input_name = manifest["model"]["input"]["name"]
    found: list[float] = []
    with ExitStack() as stack:
        served = ("--model", model, "--name", name)
        _, lines = stack.enter_context(started(checkout, None, "model-server", *served, "--threads", "1"))
        flags = ("--bundle", bundle, "--upstream", lines["inference"], "--threads", "1")
        _, lines = stack.enter_context(started(checkout, None, "serve", *flags))
        channel = stack.enter_context(grpc.insecure_channel(lines["admin"]))
        inspect = channel.unary_unary("/guard.v1.Guard/Inspect")
        for first in range(0, len(images), AT_ONCE):
            message = infer_request(images[first : first + AT_ONCE], name=name)
            message.inputs[0].name = input_name
            body = InspectRequest(request=message).SerializeToString()
            answer = InspectResponse.FromString(inspect(body, timeout=60))
            found += [item.p_value for item in answer.items]
    return found


def figures(report: Any, path: str = "") -> Iterator[tuple[str, float]]:
    """Every number of a report, by where it stands."""
    if isinstance(report, dict):
        for key, value in report.items():
            yield from figures(value, f"{path}/{key}")
    elif isinstance(report, list):
        for index, value in enumerate(report):
            yield from figures(value, f"{path}/{index}")
    elif isinstance(report, (int, float)):
        yield path, float(report)


def measured(
    checkout: Path, bundle: Path, model: Path, images: NDArray[np.float32], name: str, spent: tuple[float, float]
) -> dict[str, Any]:
    bench = subprocess.run(
        [sys.executable, "-m", "guard", "bench", str(bundle), "--threads", "1", "--seconds", "30", "--json"],
        cwd=checkout,
        env=os.environ | ENVIRONMENT | {"PYTHONPATH": str(checkout)},
        capture_output=True,
        text=True,
        check=True,
    )
    return {
        "p_values": p_values(checkout, bundle, model, images[:ITEMS], name),
        "report": dict(figures(json.loads((bundle / "report.json").read_text("utf-8")))),
        "bytes": {file.name: file.stat().st_size for file in sorted(bundle.iterdir())},
        "bench": dict(figures(json.loads(bench.stdout))),
        "training": {"seconds": spent[0], "peak MiB": spent[1]},
    }


def images_of(data: Path) -> NDArray[np.float32]:
    """[item, channel, row, column] in 0 … 1."""
    images = np.load(data)["images"]
    if images.dtype == np.uint8:
        images = images.transpose(0, 3, 1, 2).astype(np.float32) / 255
    return np.ascontiguousarray(images, np.float32)


def write_down(out: Path, checkout: Path, fashion: Sequence[Path]) -> None:
    commit = subprocess.run(["git", "rev-parse", "HEAD"], cwd=checkout, capture_output=True, text=True, check=True)
    guards = {}
    with tempfile.TemporaryDirectory() as folder:
        demo = Path(folder) / "demo"
        spent = guard(checkout, "demo", "--folder", demo)
        guards["demo"] = measured(
            checkout, demo / "bundle", demo / "model.onnx", images_of(demo / "data.npz"), "digits", spent
        )
        if fashion:
            model, data = fashion
            bundle = Path(folder) / "fashion"
            flags = ("--model", model, "--data", data, "--serves", "fashion", "--threads", "1", "--out", bundle)
            spent = guard(checkout, "train", *flags, *PLAN)
            guards["fashion"] = measured(checkout, bundle, model, images_of(data), "fashion", spent)
    text = json.dumps({"commit": commit.stdout.strip(), "guards": guards})
    out.write_text(text, "utf-8")


def compare(before: Path, after: Path) -> bool:
    """Print what differs; whether all p-values are the same."""
    first, second = (json.loads(file.read_text("utf-8")) for file in (before, after))
    print(f"{first['commit'][:9]} and {second['commit'][:9]}")
    same = True
    for name, one in first["guards"].items():
        other = second["guards"][name]
        apart = [abs(a - b) for a, b in zip(one["p_values"], other["p_values"], strict=True)]
        moved = sum(distance > SAME for distance in apart)
        same &= not moved
        print(f"\n{name}: {moved} of {len(apart)} p-values differ, by at most {max(apart):.3g}")
        for part in ("report", "bytes", "training", "bench"):
            a, b = one[part], other[part]
            names = [name for name in {**a, **b} if part != "bench" or name.endswith("forwards/median")]
            keys = [name for name in names if not math.isclose(a.get(name, math.nan), b.get(name, math.nan))]
            print(f"{part}: {len(names)} figures, {len(keys)} differ")
            shown = keys if part in ("training", "bench") else keys[:MOST_SHOWN]
            if shown:
                print(table(["", "before", "after"], [(key, a.get(key, ""), b.get(key, "")) for key in shown]))
    return same


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--out", type=Path)
    parser.add_argument("--checkout", type=Path, default=ROOT)
    parser.add_argument("--fashion", type=Path, nargs=2, default=(), metavar=("MODEL", "DATA"))
    parser.add_argument("--compare", type=Path, nargs=2, metavar=("BEFORE", "AFTER"))
    options = parser.parse_args(arguments)
    if options.compare:
        return 0 if compare(*options.compare) else 1
    if options.out is None:
        parser.error("--out or --compare is needed")
    write_down(options.out, options.checkout.resolve(), [file.resolve() for file in options.fashion])
    return 0


if __name__ == "__main__":
    sys.exit(main())
