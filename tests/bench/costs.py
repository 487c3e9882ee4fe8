"""For maintainers: what each kind of evidence and each head costs in forwards, one program against a cascade.

    python -m tests.bench.costs ../shared/models/cifar10-resnet20.onnx [--batches 1 8] [--seconds 20]
    python -m tests.bench.costs --quick

Nothing is trained: heads are fitted on random images, so that programs cost what real ones cost and find nothing. All
take turns on one thread, and the clock counts the thread's own work, so that a busy machine disturbs little. A line is
a program of its own: what it gathers or asks, the floor (1 + backwards + rows), forwards of the bare model, and both
over each other, each the median of rounds.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from guard.offline.bench.stopwatch import race, spread
from guard.offline.data.attacked import Attacked
from guard.offline.data.dataset import Dataset
from guard.offline.denoisers.bit_depth import BitDepth
from guard.offline.denoisers.median import Median
from guard.offline.detectors.detector import Detector, Head
from guard.offline.evidence.cache import EvidenceCache
from guard.offline.evidence.gather import Gather
from guard.offline.evidence.kinds.gradients import InputGradient
from guard.offline.evidence.kinds.plain import Latent, Logits
from guard.offline.evidence.kinds.variants import DenoisedLogits, SteeredLogits
from guard.offline.evidence.needs import Need
from guard.offline.evidence.onnx_gather import INPUT, Outputs
from guard.offline.model.classifier import Classifier
from guard.offline.model.onnx_export.export import lower
from guard.offline.model.open_model import Source, open_model
from guard.offline.programs.program import Program
from guard.offline.training.fit_heads import FittingItems, fit_heads
from guard.session import GraphInMemory, Session
from tests.bench.networks import GRID, item_shape, random_images
from tests.every_pass import every_pass

ITEMS = 100  # that heads are fitted on
MODEL = "the model alone"
PLAIN = ("mahalanobis", "kernel_density", "lid")
ALL = (*PLAIN, "saliency_classifier", "summary_classifier", "feature_squeezing", "attribute_steering")


@dataclass(frozen=True)
class Contender:
    """A program that is timed, with the least that it can cost in forwards."""

    name: str
    floor: float
    session: Session
    outputs: tuple[str, ...]


def opened(module: nn.Module, images: NDArray[np.float32], outputs: Sequence[str]) -> Session:
    model = lower(module, torch.from_numpy(images[:4]), input_name=INPUT, output_names=tuple(outputs))
    return Session(GraphInMemory("program", model.SerializeToString(), {}), device="cpu", threads=1)


def of_evidence(name: str, classifier: Classifier, needs: Sequence[Need], images: NDArray[np.float32]) -> Contender:
    """A program that gathers evidence and asks no head."""
    gather = Gather(classifier, [Logits(), *needs])
    names = tuple(f"evidence_{place}" for place in range(len(gather.needs)))
    floor = 1 + gather.backwards + gather.rows + gather.forwards
    return Contender(name, floor, opened(Outputs(gather), images, names), names)


def of_heads(name: str, classifier: Classifier, heads: Sequence[Head], images: NDArray[np.float32]) -> Contender:
    """A program as it is served; it is asked for logits and scores."""
    program = Program(classifier, heads)
    floor = 1 + program.gather.backwards + program.gather.rows + program.gather.forwards
    return Contender(name, floor, opened(program, images, program.outputs), ("logits", "scores"))


def random_heads(
    classifier: Classifier, detectors: Sequence[Detector], images: NDArray[np.float32]
) -> Mapping[str, Head]:
    with torch.no_grad():
        labels = classifier(torch.from_numpy(images)).argmax(dim=1).numpy()
    attacked = random_images(len(images), images.shape[1:], seed=1)
    items = FittingItems(
        Dataset(images, labels, np.arange(len(images)).astype(str)),
        images[:0],
        Attacked(attacked, ("random",) * len(images)),
    )
    return fit_heads(detectors, items, EvidenceCache(classifier), seed=0, report=lambda _: None)


def contenders(
    classifier: Classifier, images: NDArray[np.float32], asked: Sequence[str], gathered: Sequence[str]
) -> list[Contender]:
    """Each kind of evidence alone (of `gathered`, where that names any), each detector alone, all in few programs."""
    taps = [tap.name for tap in classifier.taps]
    recipe = every_pass().fitting(classifier.kind, taps)
    detectors = [d for ds in recipe.programs(taps).values() for d in ds if d.name in asked]
    every = list(random_heads(classifier, detectors, images).values())
    steered = [n for head in every for n in head.detector.needs if isinstance(n, SteeredLogits)]
    rows = [DenoisedLogits(BitDepth(4)), DenoisedLogits(Median(2))]
    gradient, latents = InputGradient("margin"), [Latent(tap) for tap in taps]
    evidence: dict[str, list[Need]] = {
        "latents": [*latents],
        "gradient": [gradient],
        "one denoised row": [rows[0]],
        "one denoised row, median": [rows[1]],
        "two denoised rows": [*rows],
        "steered row": [*steered],
        "gradient, one denoised row": [gradient, rows[0]],
        "gradient, two denoised rows, steered row": [gradient, *rows, *steered],
    }
    plain = [head for head in every if head.detector.name in PLAIN]
    rest = [head for head in every if head.detector.name not in PLAIN]
    return [
        *(
            of_evidence(name, classifier, needs, images)
            for name, needs in evidence.items()
            if needs and name in (gathered or evidence)
        ),
        *(of_heads(f"{head.detector.name} alone", classifier, [head], images) for head in rest),
        of_heads("screen of a cascade", classifier, plain, images),
        of_heads("interpret of a cascade", classifier, rest, images),
        of_heads("one program", classifier, every, images),
    ]


def table(classifier: Classifier, batch: int, seconds: float, found: Sequence[Contender], alone: Session) -> None:
    """Print a line a program."""
    images = classifier.spec.input.box.from_unit(random_images(batch, classifier.item_shape, seed=2))
    running: dict[str, Callable[[], object]] = {MODEL: lambda: alone.run(("evidence_0",), images)}

    def runs(one: Contender) -> Callable[[], object]:
        return lambda: one.session.run(one.outputs, images)

    running |= {one.name: runs(one) for one in found}
    laps = race(running, seconds=seconds, clock=time.thread_time_ns)
    print(f"\nbatch {batch}, {laps.rounds} rounds; the model alone {spread(laps.of(MODEL)).median:,.0f} µs")
    print(f"{'program':45} {'floor':>6} {'forwards':>9} {'quartiles':>13} {'over floor':>11}")
    for one in found:
        cost = spread(laps.of(one.name) / laps.of(MODEL))
        quartiles = f"{cost.low:.2f}-{cost.high:.2f}"
        print(f"{one.name:45} {one.floor:6.3g} {cost.median:9.2f} {quartiles:>13} {cost.median / one.floor:11.2f}")


def measure(
    classifier: Classifier,
    batches: Sequence[int],
    seconds: float,
    asked: Sequence[str] = ALL,
    gathered: Sequence[str] = (),
) -> None:
    """Print a table for each batch size."""
    images = random_images(ITEMS, classifier.item_shape, seed=0)
    found, alone = contenders(classifier, images, asked, gathered), of_evidence(MODEL, classifier, [], images)
    for batch in batches:
        table(classifier, batch, seconds, found, alone.session)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", nargs="?", help="an .onnx or .pt2 file of images with 256 grey levels")
    parser.add_argument("--batches", nargs="+", type=int, default=(1, 8))
    parser.add_argument("--seconds", type=float, default=20.0, help="a batch size")
    parser.add_argument("--quick", action="store_true", help="on the tests' small network: no figures to quote")
    options = parser.parse_args()
    if options.quick:
        small = open_model(Source("tests.networks:small_cnn", (1, 8, 8), grid=GRID))
        return measure(small, (1,), 0.0, ("mahalanobis", "feature_squeezing"), ("gradient", "one denoised row"))
    if options.model is None:
        parser.error("a model is wanted: an .onnx or .pt2 file")
    model = open_model(Source(options.model, item_shape(options.model), grid=GRID))
    return measure(model, options.batches, options.seconds)


if __name__ == "__main__":
    torch.set_num_threads(1)
    main()
