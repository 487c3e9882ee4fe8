"""For maintainers: what it costs that a model is closed, and a forest in real MLServer behind the guard.

    python -m tests.bench.forest            generated data, 5,000 items
    python -m tests.bench.forest --quick    fewer items, two cheap detectors: under a minute
    python -m tests.bench.forest --forest   the forest alone, with 5,000 answers and 250 items an attack

A perceptron is guarded twice, once opened and once through a student of its answers, and both guards meet the same
attacks, crafted on the perceptron's own gradient. A forest is guarded through its student; its attacks climb the
student and count once the forest's own answer is wrong; beside them stand a walk that asks the forest for its labels
and knows nothing of the student, and one that asks through the guard until it passes. MLServer's scikit-learn runtime
then serves the forest behind its guard, after the verdict and before it (`forward`). Exits with 1 unless every promise
is kept, what passed equals MLServer's direct answer, verdicts are the bundle's, and every answer was compared.
`python -m tests.side sklearn` first.
"""

from __future__ import annotations

import argparse
import asyncio
import io
import os
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from rich.console import Console

from guard.answer_evidence import evidence_of
from guard.bundle import Bundle
from guard.cascade import jitter
from guard.offline.attacks.model import TorchModel
from guard.offline.crafting.crafted_set import CraftedSet
from guard.offline.crafting.crafter import craft
from guard.offline.crafting.shard import CraftSetup
from guard.offline.data.splits import Split
from guard.offline.findings.intervals import rejections_band, wilson
from guard.offline.job.job import Job, open_job
from guard.offline.job.recipe import Recipe, load_recipe, parse
from guard.offline.model.answering import Answering
from guard.offline.programs.read import read
from guard.offline.train import train
from guard.offline.work.progress import Stages
from guard.offline.work.store import ResultStore
from guard.runtime import Runtime
from guard.serve.grpc.wire.inference_pb2 import ModelInferRequest
from tests.bench.asked_attack import Fools, walk
from tests.serve.guarded import calling, config_for, metric_of
from tests.serve.mlserver_process import mlserver_process
from tests.serve.processes import guard_process
from tests.side import ready

ROOT = Path(__file__).resolve().parent.parent.parent
ITEMS, QUICK_ITEMS = 5000, 1000
REJECT_RATE, FLAG_RATE = 0.05, 0.1
QUICK_RECIPE: dict[str, Any] = {
    "detector": [{"name": "mahalanobis", "program": "screen"}, {"name": "kernel_density", "program": "screen"}],
    "attack": [{"name": "pgd", "budget": 0.1, "steps": 10}, {"name": "fgsm", "budget": 0.1}],
    "adaptive": {"budgets": [0.1]},
}
WALKED_STEPS = (0, 50, 300)
RUNTIME = "mlserver_sklearn.SKLearnModel"
SERVED_ITEMS = 200


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.bench.forest", description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--forest", action="store_true")
    given = parser.parse_args(arguments)
    quick: bool = given.quick
    began = time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        faults = run(Path(folder), quick=quick, forest_alone=given.forest)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    print(f"took {time.monotonic() - began:.0f} s on {os.cpu_count()} cores, peak {peak:.0f} MiB")
    for fault in faults:
        print(f"WRONG    {fault}")
    return int(bool(faults))


def run(folder: Path, *, quick: bool, forest_alone: bool) -> list[str]:
    script = ROOT / "tests" / "bench" / "forest_models.py"
    python = ready("sklearn") / "python"
    done = subprocess.run(
        [python, script, folder, str(QUICK_ITEMS if quick else ITEMS)],
        check=True,
        capture_output=True,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    print("right on unseen items: " + ", ".join(done.stdout.split("\n")[:2]))
    recipe = parse(QUICK_RECIPE, "quick") if quick else load_recipe("vectors")
    faults = [] if forest_alone else perceptrons(folder, recipe, quick=quick)
    small = forest_alone and not quick
    forest = Guard.trained(folder, "forest", recipe, quick=quick, small=small, answers=str(folder / "forest.onnx"))
    faults += forest.promise()
    own = forest.attacked(recipe)
    asked = forest.asked(quick=quick)
    faults += answers_held(forest, own, asked)
    forest.asked_through(quick=quick)
    each = SERVED_ITEMS // 5 if quick else SERVED_ITEMS
    sent = np.concatenate([own[0].attacked[:each], *(items[: each // 2] for items in asked.values())])
    for forward in ("before",) if quick else ("after", "before"):
        faults += asyncio.run(served(folder / forward, forest, each, sent, folder / "forest.joblib", forward))
    return faults


def perceptrons(folder: Path, recipe: Recipe, *, quick: bool) -> list[str]:
    """Guard the perceptron twice, and print what both guards make of the same attacks."""
    opened = Guard.trained(folder, "opened", recipe, quick=quick, model=str(folder / "perceptron.onnx"))
    through = Guard.trained(folder, "through", recipe, quick=quick, answers=str(folder / "perceptron.onnx"))
    faults = [*opened.promise(), *through.promise()]
    print(f"caught at {REJECT_RATE:.0%} promised false alarms, [95 % intervals], of so many items")
    print("attack | perceptron opened | the same items, through a student")
    for one in opened.attacked(recipe):
        print(f"{one.attack} | {opened.caught(one.attacked)} | {through.caught(one.attacked)}")
    return faults


def answers_held(forest: Guard, crafted: Sequence[CraftedSet], asked: dict[str, NDArray[np.float32]]) -> list[str]:
    """Print what the forest's own answers find beside the programs alone, and check the promise with them."""
    print(f"forest | caught at {REJECT_RATE:.0%} by the programs alone | with its answer held | before it | same class")
    rows = {
        f"{one.attack} (transfer {one.transfer.share:.0%})" if one.transfer is not None else one.attack: one.attacked
        for one in crafted
    }
    for name, items in {**rows, **asked}.items():
        found = forest.judged(items)
        shares = (share_text(p_value <= REJECT_RATE) for p_value in (found.alone, found.held, found.before))
        agreed = (found.student == found.named).mean()
        print(f"{name} | {' | '.join(shares)} | {agreed:.0%}")
    _, data = open_job(forest.job, kept=forest.job.work)
    test = data.part(Split.TEST).images[:]
    count = int((forest.judged(test).held <= REJECT_RATE).sum())
    low, high = rejections_band(REJECT_RATE, forest.bundle.calibration.items, len(test))
    print(f"with answers held: {count} of {len(test)} clean items rejected, band {low} to {high}")
    return [] if low <= count <= high else [f"answers held: {count} clean rejections, band {low} to {high}"]


@dataclass(frozen=True, eq=False)
class Judged:
    """Items [item] as the forest's guard judges them, and the classes that student and forest name."""

    alone: NDArray[np.float64]  # p-values: by the programs,
    before: NDArray[np.float64]  # before the forest's answer where that is held,
    held: NDArray[np.float64]  # and with it
    student: NDArray[np.int64]
    named: NDArray[np.int64]


def share_text(rejected: NDArray[np.bool_]) -> str:
    low, high = wilson(int(rejected.sum()), len(rejected))
    return f"{rejected.mean():.0%} [{100 * low:.0f}, {100 * high:.0f}] of {len(rejected)}"


@dataclass(frozen=True, eq=False)
class Guard:
    """A trained guard, with the job that it was trained by."""

    job: Job
    bundle: Bundle

    @staticmethod
    def trained(folder: Path, name: str, recipe: Recipe, *, quick: bool, small: bool = False, **model: Any) -> Guard:
        settings: dict[str, Any] = {"model": "", "craft_items": 150 if quick else 800, "attack_items": 100}
        settings |= {"questions": 3000} if quick else {}
        settings |= {"questions": 5000, "craft_items": 250, "attack_items": 60} if small else {}
        job = Job(
            **{**settings, **model},
            data=folder / "data.npz",
            out=folder / name,
            recipe=recipe,
            reject_rate=REJECT_RATE,
            flag_rate=FLAG_RATE,
            adaptive_items=4,
            adaptive_steps=2,
            threads=1,
            serves="forest",
            input_name=None if "model" in model else "values",
        )
        began = time.monotonic()
        bundle = train(job, Stages(Console(file=io.StringIO())))
        found = bundle.manifest.provenance["student"]
        said = (
            f"agreement {found['agreed']:.1%} of {found['items']} clean, "
            f"{found['attacked']['agreed'] / found['attacked']['tried']:.1%} of {found['attacked']['tried']} attacked, "
            f"transfer {found['transfer']:.0%}, {found['questions']} answers; "
            if found
            else ""
        )
        print(f"{name}: {said}trained in {time.monotonic() - began:.0f} s")
        return Guard(job, bundle)

    def p_values(self, unit: NDArray[np.float32]) -> NDArray[np.float64]:
        return read(self.runtime.cascade, unit).p_value

    def promise(self) -> list[str]:
        """Print how many held-out clean items are rejected; what lies outside of the law's band is a fault."""
        _, data = open_job(self.job, kept=self.job.work)
        test = data.part(Split.TEST).images
        count = int((self.p_values(test) <= REJECT_RATE).sum())
        low, high = rejections_band(REJECT_RATE, self.bundle.calibration.items, len(test))
        print(f"{self.job.out.name}: {count} of {len(test)} clean items rejected, band {low} to {high}")
        return [] if low <= count <= high else [f"{self.job.out.name}: {count} clean rejections, band {low} to {high}"]

    def attacked(self, recipe: Recipe) -> tuple[CraftedSet, ...]:
        """Craft the recipe's attacks, and those left out of it, on held-out items."""
        classifier, data = open_job(self.job, kept=self.job.work)
        spec = classifier.spec
        store = ResultStore(self.job.work.path / "bench")
        setup = CraftSetup(
            TorchModel(classifier.graph),
            spec.input.grid,
            spec.fingerprint,
            store,
            1,
            workers=1,
            answering=classifier.answering,
        )
        items = data.part(Split.TEST).take(slice(400))
        return craft(setup, replace(items, splits={}), (*recipe.attacks, *recipe.left_out))

    def asked(self, *, quick: bool) -> dict[str, NDArray[np.float32]]:
        """Walk along the model's own boundary from held-out items, and return the items that fool it, by the steps."""
        clean, labels, others = self.asked_about(100 if quick else 400)
        found = {}
        for steps in WALKED_STEPS[:1] if quick else WALKED_STEPS:
            generator = np.random.default_rng(steps)
            items = walk(self.fools, clean, labels, others, steps=steps, generator=generator)
            size = float(np.linalg.norm(items - clean, axis=1).mean())
            found[f"walk along the forest's boundary, {steps} steps, L2 {size:.2f}"] = items
        return found

    def asked_through(self, *, quick: bool) -> None:
        """Print how far from clean items a walk ends that asks through the guard: what it ends at fools and passes."""
        clean, labels, others = self.asked_about(20 if quick else 100)
        passing: dict[str, Fools] = {
            "without a guard": lambda items, _: np.ones(len(items), np.bool_),
            "through the guard, forward = 'after'": lambda items, _: self.judged(items).alone > REJECT_RATE,
            "through the guard, forward = 'before'": lambda items, _: self.judged(items).held > REJECT_RATE,
        }
        for name, passes in passing.items():

            def fools(
                items: NDArray[np.float32], labels: NDArray[np.int64], passes: Fools = passes
            ) -> NDArray[np.bool_]:
                return self.fools(items, labels) & passes(items, labels)

            steps = 10 if quick else WALKED_STEPS[-1]
            items = walk(fools, clean, labels, others, steps=steps, generator=np.random.default_rng(0))
            sizes = np.linalg.norm(items - clean, axis=1)
            low, middle, high = np.quantile(sizes, [0.25, 0.5, 0.75])
            print(f"walk {name}, {steps} steps: fools and passes at L2 {middle:.2f} [quartiles {low:.2f}, {high:.2f}]")

    def asked_about(self, items: int) -> tuple[NDArray[np.float32], NDArray[np.int64], NDArray[np.float32]]:
        """The first held-out items that the model has right, their classes, and further items to begin from."""
        _, data = open_job(self.job, kept=self.job.work)
        test = data.part(Split.TEST)
        right = np.flatnonzero(~self.fools(test.images[:], test.labels))[:items]
        return test.images[right], test.labels[right], data.part(Split.HEADS).images[:]

    def fools(self, items: NDArray[np.float32], labels: NDArray[np.int64]) -> NDArray[np.bool_]:
        return self.answering.predict(items) != labels

    @cached_property
    def answering(self) -> Answering:
        """The closed model behind the guard's student."""
        found = open_job(self.job, kept=self.job.work)[0].answering
        assert found is not None
        return found

    @cached_property
    def runtime(self) -> Runtime:
        return Runtime.open(self.bundle, threads=1)

    def judged(self, unit: NDArray[np.float32]) -> Judged:
        """Judge unit-space items as the sidecar does, with the model's answers and without."""
        known, cascade = evidence_of(self.bundle), self.runtime.cascade
        assert known is not None
        readings, named = read(cascade, unit), self.answering.predict(unit)
        held = known.after(readings, jitter(cascade.spec.box.from_unit(unit)), named)
        return Judged(readings.p_value, known.before(readings).p_value, held.p_value, readings.prediction, named)

    def caught(self, unit: NDArray[np.float32]) -> str:
        return share_text(self.p_values(unit) <= REJECT_RATE)


async def served(
    folder: Path, guard: Guard, clean_items: int, attacked: NDArray[np.float32], model: Path, forward: str
) -> list[str]:
    """Send clean and attacked items to MLServer, directly and through the guard, for labels and for probabilities."""
    _, data = open_job(guard.job, kept=guard.job.work)
    unit = np.concatenate([data.part(Split.TEST).images[:clean_items], attacked])
    found = guard.judged(unit)
    rejected = (found.held if forward == "before" else found.alone) <= REJECT_RATE
    spared = found.before <= REJECT_RATE if forward == "before" else rejected
    folder.mkdir()
    with (
        mlserver_process(ready("sklearn"), folder, model, "forest", runtime=RUNTIME) as upstream,
        guard_process(config_for(guard.bundle.path, upstream, forward=forward)) as process,
    ):
        listening = process.until_event("listening")
        process.until_event("ready")
        passed = equal = 0
        for number, one in enumerate(unit):
            request = infer_request(one, outputs=("predict_proba",) if number % 2 else ())
            async with calling(upstream) as direct, calling(listening["inference"]) as guarded:
                plain, seen = await direct.call("ModelInfer", request), await guarded.call("ModelInfer", request)
            if seen.ok:
                passed, equal = passed + 1, equal + (seen.body == plain.body)
        compared = await metric_of(listening["metrics"], "guard_upstream_compared_items_total")
        different = await metric_of(listening["metrics"], "guard_upstream_disagreement_items_total")
    print(f"forward = {forward!r}: {passed} of {len(unit)} passed, ", end="")
    print(f"{equal} equal to MLServer's direct answer byte for byte; {int(spared.sum())} it never saw; ", end="")
    print(f"{compared:.0f} compared, on {different:.0f} the student names another class")
    checks = {
        "an answer that passed is not the direct answer": passed == equal,
        "the guard rejected others than its bundle does": passed == int((~rejected).sum()),
        "the guard did not compare every answer": compared == len(unit) - spared.sum(),
    }
    return [f"forward = {forward!r}: {fault}" for fault, holds in checks.items() if not holds]


def infer_request(item: NDArray[np.float32], outputs: tuple[str, ...]) -> ModelInferRequest:
    """Build a request for one item, as a client of MLServer's scikit-learn runtime sends it."""
    message = ModelInferRequest(model_name="forest")
    tensor = message.inputs.add(name="values", datatype="FP32", shape=[1, len(item)])
    tensor.parameters["content_type"].string_param = "np"
    message.raw_input_contents.append(item.tobytes())
    for name in outputs:
        message.outputs.add(name=name)
    return message


if __name__ == "__main__":
    sys.exit(main())
