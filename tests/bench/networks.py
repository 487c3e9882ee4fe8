"""For maintainers: `guard bench` on networks of tests/networks.py with random weights, or on any exported model.

    python -m tests.bench.networks --threads 1 2
    python -m tests.bench.networks resnet20 path/to/model.pt2 --batches 1 8 --profile --cpu-time
    python -m tests.bench.networks lite0        EfficientNet-Lite0, pretrained (python -m tests.side efficientnet)

Nothing is trained. Heads are fitted on random images, so that the programs cost what real ones cost and find nothing.
"""

from __future__ import annotations

import argparse
import math
import tempfile
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from rich.console import Console

from guard.bundle import Bundle, write_bundle
from guard.calibration import Calibration
from guard.fusion import unfitted
from guard.manifest import DetectorSpec, Manifest, NeedSpec
from guard.offline.bench.bench import bench
from guard.offline.bench.table import lines_of
from guard.offline.data.attacked import Attacked
from guard.offline.data.dataset import Dataset
from guard.offline.data.grid import snap
from guard.offline.evidence.cache import EvidenceCache
from guard.offline.model.onnx_import.graph import read_graph
from guard.offline.model.open_model import Source, load_exported, open_model
from guard.offline.programs.program import Program
from guard.offline.programs.write_programs import compile_programs
from guard.offline.training.calibrator import made_by, npz
from guard.offline.training.fit_fusion import early_reject
from guard.offline.training.fit_heads import FittingItems, fit_heads, settled
from guard.offline.work.tables import print_lines
from guard.runtime import Runtime
from tests.bench import efficientnet
from tests.every_pass import every_pass

NETWORKS = ("resnet20", "mobilenet")  # of tests/networks.py
SHAPE = (3, 32, 32)
GRID = 255
ITEMS, SAMPLES = 100, 32
LARGE, FEW = 64 * 64, 32  # of images with more pixels than this, so many items
REJECT_RATE, FLAG_RATE = 0.01, 0.05


def main() -> None:
    options = parse()
    console = Console(width=max(80, Console().width))
    for model in options.models:
        with tempfile.TemporaryDirectory() as folder:
            bundle = random_bundle(model, Path(folder) / "bundle")
            for threads in options.threads:
                result = bench(
                    bundle,
                    batches=options.batches,
                    threads=threads,
                    seconds=options.seconds,
                    profiled=options.profile,
                    clock=time.thread_time_ns if options.cpu_time and threads == 1 else time.perf_counter_ns,
                )
                if options.json:
                    print(result.to_json())
                else:
                    print_lines(console, [*lines_of(result), ""])


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "models", nargs="*", default=NETWORKS, help="networks of tests/networks.py, or .onnx and .pt2 files"
    )
    parser.add_argument("--batches", nargs="+", type=int, default=(1, 8, 32))
    parser.add_argument("--threads", nargs="+", type=int, default=(1,))
    parser.add_argument("--seconds", type=float, default=60.0, help="a model and thread count")
    parser.add_argument("--profile", action="store_true", help="where every program's time goes")
    parser.add_argument("--cpu-time", action="store_true", help="with one thread, time work instead of latency")
    parser.add_argument("--json", action="store_true")
    return parser.parse_args()


def random_bundle(
    model: str,
    path: Path,
    *,
    shape: tuple[int, ...] = SHAPE,
    programs: Sequence[str] = ("screen", "interpret"),
    without: Sequence[str] = (),
) -> Bundle:
    """A bundle of these programs with every kind of pass, `without` some detectors, fitted on random images."""
    if model.endswith((".onnx", ".pt2")):
        shape = item_shape(model)
        source = Source(model, shape, serves=Path(model).stem)
    elif model == "lite0":
        shape = efficientnet.SHAPE
        source = Source("tests.bench.efficientnet:lite0", shape, serves=model)
    else:
        source = Source(f"tests.networks:{model}", shape, serves=model)
    classifier = open_model(replace(source, grid=GRID))
    items = FEW if math.prod(shape[1:]) > LARGE else ITEMS
    images, attacked = random_images(items, shape, seed=0), random_images(items, shape, seed=1)
    with torch.no_grad():
        labels = classifier(torch.from_numpy(images)).argmax(dim=1).numpy()
    cascade = replace(every_pass(), cascade=True)
    recipe = cascade.programs([tap.name for tap in classifier.taps])
    asked = {name: [detector for detector in recipe[name] if detector.name not in without] for name in programs}
    heads = fit_heads(
        [detector for members in asked.values() for detector in members],
        FittingItems(
            Dataset(images, labels, np.arange(items).astype(str)), images[:0], Attacked(attacked, ("random",) * items)
        ),
        EvidenceCache(classifier),
        seed=0,
        report=lambda _: None,
    )
    detectors = settled(asked, heads)
    modules = {name: Program(classifier, [heads[d.name] for d in members]) for name, members in detectors.items()}
    compiled = compile_programs(modules, {}, images)
    with torch.no_grad():
        scores = (
            torch.cat([program(torch.from_numpy(images))[1] for program in modules.values()], dim=1).double().numpy()
        )
    calibration = calibrate(scores, {name: program.names for name, program in modules.items()})
    manifest = Manifest(
        model=classifier.spec,
        programs=compiled.programs,
        detectors=tuple(
            DetectorSpec(d.name, repr(d), tuple(NeedSpec(repr(need), need.rides) for need in d.needs))
            for ds in detectors.values()
            for d in ds
        ),
        repairs=(),
        reject_rate=REJECT_RATE,
        flag_rate=FLAG_RATE,
        recipe={"name": "every pass"},
        seed=0,
        made_by=made_by(),
    )
    files = {**compiled.files, "calibration.npz": npz(calibration.to_arrays())}
    wire = images[:SAMPLES]
    draft: dict[str, NDArray[Any]] = {
        "images": wire,
        "logits": np.zeros((SAMPLES, classifier.spec.output.classes), dtype=np.float32),
        "scores": np.zeros((SAMPLES, scores.shape[1])),
        "p_values": np.zeros(SAMPLES),
    }
    readings = Runtime.open(
        write_bundle(path.with_suffix(".draft"), manifest, {**files, "samples.npz": npz(draft)})
    ).read(wire, complete=True)
    samples: dict[str, NDArray[Any]] = {
        "images": wire,
        "logits": readings.logits,
        "scores": readings.scores,
        "p_values": readings.p_value,
    }
    return write_bundle(path, manifest, {**files, "samples.npz": npz(samples)})


def item_shape(model: str) -> tuple[int, ...]:
    """What one item of an exported model looks like, channel first."""
    if model.endswith(".onnx"):
        first, *rest = (int(size or 0) for size in read_graph(Path(model)).sizes[1:])
        return (rest[-1], first, rest[0]) if len(rest) == 2 and rest[-1] in (1, 3) else (first, *rest)
    graph = load_exported(Path(model)).module().graph
    (start,) = [node for node in graph.nodes if node.op == "placeholder"]
    return tuple(int(size) for size in start.meta["val"].shape[1:])


def random_images(items: int, shape: tuple[int, ...], *, seed: int) -> NDArray[np.float32]:
    return snap(np.random.default_rng(seed).random((items, *shape), dtype=np.float32), GRID)


def calibrate(scores: NDArray[np.float64], programs: dict[str, tuple[str, ...]]) -> Calibration:
    """Ranks among the random images, with the bands that `guard train` would draw."""
    sizes: Sequence[int] = [len(names) for names in programs.values()]
    ends = np.cumsum(sizes)
    fusions = tuple(unfitted(scores[:, :end]) for end in ends)
    bands = tuple(
        early_reject(fusion.risk(scores[:, :end]), REJECT_RATE)
        for fusion, end in zip(fusions[:-1], ends[:-1], strict=True)
    )
    names = tuple(name for members in programs.values() for name in members)
    return Calibration(names, tuple(sizes), fusions, bands, fusions[-1].risk(scores), scores)


if __name__ == "__main__":
    main()
