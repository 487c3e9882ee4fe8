"""For maintainers: a guard of a table with words, whole numbers and a one-hot group, trained, evaluated and served.

    python -m tests.bench.tabular           4,000 generated applications, 1,500 unseen ones, preset tabular; two minutes
    python -m tests.bench.tabular --quick   1,600 and 500, a short recipe; exits 1 where an item is invalid

The model looks its words up in embeddings and is exported to ONNX. Every attacked and every noisy item is checked
against the features, and what the sidecar answers against what the bundle reads.
"""

from __future__ import annotations

import argparse
import resource
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import grpc
import numpy as np
from rich.console import Console

from guard.arrays import read_examples, to_wire
from guard.bundle import Bundle
from guard.columns import ColumnChoice
from guard.feature_values import check_values
from guard.offline.crafting.crafted_set import CraftedSet
from guard.offline.crafting.stage import craft_all
from guard.offline.evaluate import Wish, evaluate_bundle
from guard.offline.findings.evaluation import Evaluation
from guard.offline.job.feature_file import load_features
from guard.offline.job.job import Job, open_job
from guard.offline.job.recipe import Recipe, load_recipe, parse
from guard.offline.report.terminal import lines_of
from guard.offline.train import train
from guard.offline.work.progress import Stages
from guard.runtime import Runtime
from guard.serve.grpc.upstream import path
from tests.bench.sidecar import serving
from tests.offline import loans
from tests.serve.guarded import infer_request

NAME = "applications"
SENT_ITEMS = 64  # through the sidecar, of each kind
SHORT: dict[str, Any] = {
    "inputs": "tabular",
    "detector": [
        {"name": "mahalanobis", "program": "screen"},
        {"name": "kernel_density", "program": "screen"},
        {"name": "feature_squeezing", "program": "interpret", "squeezers": [{"name": "bit_depth", "bits": 4}]},
    ],
    "attack": [{"name": "pgd", "budget": 0.2, "steps": 10}, {"name": "tabular_evasion", "queries": 200}],
    "left_out": [{"name": "deepfool"}],
    "adaptive": {"budgets": [0.2]},
}


def job_in(folder: Path, *, quick: bool) -> Job:
    """Write model, tables and features into a folder; return what `guard train` would be asked for."""
    recipe: Recipe = parse(SHORT, "short") if quick else load_recipe("tabular")
    sizes: dict[str, Any] = {"craft_items": 150, "attack_items": 80, "adaptive_items": 6, "adaptive_steps": 8}
    return Job(
        model=str(loans.write_model(folder / "model.onnx")),
        data=loans.write_csv(folder / "data.csv", 1600 if quick else 4000, seed=1),
        out=folder / "bundle",
        recipe=recipe,
        features=load_features(loans.write_features(folder / "features.toml")),
        serves=NAME,
        reject_rate=0.02,
        flag_rate=0.05,
        **(sizes if quick else {"minutes": 1.0, "adaptive_items": 20, "adaptive_steps": 20}),
    )


def invalid(crafted: CraftedSet, bundle: Bundle) -> None:
    """Check every attacked and noisy item against the features. Raises DataError, or AssertionError."""
    spec = bundle.manifest.model.input
    still = [place for place, feature in enumerate(spec.features) if feature.immutable]
    clean = spec.box.from_unit(crafted.clean)
    for name, images in (("attacked", crafted.attacked), ("noisy", crafted.noise)):
        wire = spec.box.from_unit(images)
        check_values(wire, spec.features, f"{name} items of {crafted.attack}", steps=True)
        if not np.array_equal(wire[:, still], clean[:, still]):
            raise AssertionError(f"{crafted.attack}: an immutable feature moved in {name} items")


def served_as_read(bundle: Bundle, model: Path, wire: Any) -> tuple[int, int]:
    """Send items through the sidecar; return how many were rejected, and how many the bundle says should be."""
    read = Runtime.open(bundle, threads=1).read(wire).p_value <= bundle.manifest.reject_rate
    rejected = 0
    with serving(bundle.path, model, NAME) as guard, grpc.insecure_channel(guard.address) as channel:
        call = channel.unary_unary(path("ModelInfer"))
        for item in wire:
            message = infer_request(item[None], name=NAME)
            message.inputs[0].name = bundle.manifest.model.input.name
            try:
                call(message.SerializeToString(), timeout=20)
            except grpc.RpcError as error:
                if error.code() != grpc.StatusCode.PERMISSION_DENIED:  # type: ignore[attr-defined]
                    raise
                rejected += 1
    return rejected, int(read.sum())


def run(folder: Path, *, quick: bool) -> Evaluation:
    """Train, check, evaluate on a table of another order, serve; print all of it."""
    stages, began = Stages(Console()), time.monotonic()
    job = job_in(folder, quick=quick)
    bundle = train(job, stages)
    trained_s = time.monotonic() - began
    with stages.stage("check what was crafted") as progress:
        classifier, data = open_job(job)
        crafted = craft_all(job.fitting(classifier), classifier, data, progress)  # all of it is kept
        for one in crafted:
            invalid(one, bundle)
    new = loans.write_csv(folder / "new.csv", 500 if quick else 1500, 2, ("label", *reversed(loans.COLUMNS)))
    evaluation = evaluate_bundle(bundle, new, folder / "report", Wish(quick=True, minutes=1), stages)
    spec = bundle.manifest.model.input
    known = replace(ColumnChoice(), features=spec.features)
    clean = to_wire(read_examples(new, choice=known, classes=loans.CLASSES).images, spec)[:SENT_ITEMS]
    attacked = spec.box.from_unit(np.concatenate([one.attacked[: SENT_ITEMS // len(crafted)] for one in crafted]))
    print("\n".join(lines_of(evaluation)))
    print(f"\n{sum(len(one) for one in crafted):,} attacked items and as many noisy ones are valid")
    for name, wire in (("clean", clean), ("attacked", attacked)):
        found, wanted = served_as_read(bundle, Path(job.model), wire)
        print(f"{name}: {found} of {len(wire)} rejected by the sidecar, {wanted} by the bundle")
        if found != wanted:
            raise SystemExit("the sidecar answers otherwise than the bundle reads")
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    print(f"trained in {trained_s:.0f} s, all in {time.monotonic() - began:.0f} s; peak {peak:.0f} MiB")
    return evaluation


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true")
    wanted = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        run(Path(folder), quick=wanted.quick)
    return 0


if __name__ == "__main__":
    sys.exit(main())
