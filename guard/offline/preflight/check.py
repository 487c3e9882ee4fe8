"""What would stop or spoil a training, and what it will cost, said in its first minute: `guard check`, and each start.

Rule 1: a line is said as soon as it is known.
Rule 2: what would stop a training raises its error here, before anything is crafted; nothing is written.
"""

from __future__ import annotations

import textwrap
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from guard.calibration import smallest_rate
from guard.errors import ConfigError, ModelError
from guard.offline.attacks.model import TorchModel
from guard.offline.attacks.objective import Gap
from guard.offline.data.dataset import Dataset
from guard.offline.data.splits import Split
from guard.offline.detectors.detector import Detector
from guard.offline.evidence.batches import one_batch
from guard.offline.evidence.gather import distinct
from guard.offline.job.accuracy import check_accuracy
from guard.offline.job.job import Job, by_file, check_data, open_job
from guard.offline.model.classifier import Classifier
from guard.offline.preflight.cost import Cost, cost_of
from guard.offline.programs.model_parity import check_model
from guard.offline.work.text import duration
from guard.offline.work.threads import choose_threads

Line = tuple[str, str]  # (what it is about, what was found)

MAX_NAMED_CLASSES = 10
TOLD_EVERY_S = 5.0
MIN_GRADIENT_SHARE = 0.9  # of the items; where fewer have a gradient, attacks have little to climb
GIB_BYTES = 2**30


@dataclass(frozen=True)
class Sound:
    """A job's model and data, found to be sound."""

    classifier: Classifier
    data: Dataset


def check(job: Job, say: Callable[[str, str], None]) -> Sound:
    """Open, answer, differentiate, compile and time a model on its data, one line each; return both.

    Raises:
        GuardError: what would stop `guard train`.
    """
    classifier, data = open_job(job, told(say))
    choose_threads(classifier.graph, one_batch(data.images), job.threads)
    for about, text in (*model_lines(classifier), *data_lines(classifier, data)):
        say(about, text)
    for part in by_file(job, data):
        say("accuracy", f"{part.name}: {check_accuracy(classifier, part, accepted=job.accept_accuracy)}")
    check_data(job, data)
    say("splits", splits_text(data))
    say("gradient", gradient_text(classifier, data))
    programs = job.recipe.programs([tap.name for tap in classifier.taps])
    if not job.recipe.adaptive_budgets:
        raise ConfigError(f"recipe {job.recipe.name}: [adaptive] budgets = [...] is missing: no report without it")
    for name, detectors in programs.items():
        say("program", f"{name}: {forwards_text(detectors)}")
    check_model(classifier, [d for ds in programs.values() for d in ds], data.part(Split.COMBINER).images)
    say("ONNX", "ONNX Runtime and torch agree on logits, layers and gradient")
    for about, text in cost_lines(job, cost_of(job, classifier, data)):
        say(about, text)
    return Sound(classifier, data)


def told(say: Callable[[str, str], None]) -> Callable[[int, int], None]:
    """Return a listener to long reading that says every few seconds how far it is."""
    last = time.monotonic()

    def tell(done: int, total: int) -> None:
        nonlocal last
        if time.monotonic() - last >= TOLD_EVERY_S:
            last = time.monotonic()
            say("reading", f"{done:,} of {total:,} pictures")

    return tell


def wrapped(about: str, text: str, width_columns: int) -> list[str]:
    """Return a finding as lines: what it is about, and the text beside it."""
    return textwrap.wrap(text, width_columns, initial_indent=f"{about:<10}", subsequent_indent=" " * 10)


def model_lines(classifier: Classifier) -> list[Line]:
    """Describe the model's input and output as they are on the wire, and the layers that detectors may read."""
    spec, output = classifier.spec.input, classifier.spec.output
    low, high = (f"{bounds[0]:g}" if len(set(bounds)) == 1 else "one a channel" for bounds in (spec.low, spec.high))
    shape = ", ".join(map(str, spec.wire_shape))
    return [
        ("input", f"{spec.name}, {spec.datatype} [item, {shape}] {spec.layout}, black {low}, white {high}"),
        ("output", f"{output.name}, {output.in_words}"),
        ("layers", ", ".join(tap.name for tap in classifier.taps)),
        *(("precision", str(found)) for found in (classifier.difference,) if found),
    ]


def data_lines(classifier: Classifier, data: Dataset) -> list[Line]:
    """Describe the items, their values and their classes as they were understood."""
    images, spec = data.images, classifier.spec.input
    low, high = (float(found) for found in (images.min(), images.max()))
    steps = f", on a grid of {spec.grid} steps" if spec.grid else ", on no grid"
    names = classifier.spec.output.labels or tuple(map(str, range(classifier.spec.output.classes)))
    shown = ", ".join(names[:MAX_NAMED_CLASSES]) + (", …" if names[MAX_NAMED_CLASSES:] else "")
    counts = np.bincount(data.labels, minlength=len(names))
    return [
        ("data", f"{len(data)} items, from {low:.0%} to {high:.0%} of black to white{steps}"),
        ("classes", f"in this order: {shown}; {counts.min()} to {counts.max()} items each"),
        *(("data", note) for note in data.notes),
    ]


def splits_text(data: Dataset) -> str:
    """Return how many items fall to each split, and the smallest rate that can be promised."""
    sizes = {split: len(data.part(split)) for split in Split}
    listed = ", ".join(f"{split.value} {size}" for split, size in sizes.items())
    return f"{listed}; the smallest rate that can be promised is {smallest_rate(sizes[Split.CALIBRATE]):.2g}"


def gradient_text(classifier: Classifier, data: Dataset) -> str:
    """Return on how many items the model has a gradient to climb. Raises ModelError where it has none."""
    images = one_batch(data.images)
    with torch.no_grad():
        labels: Tensor = classifier(images).argmax(dim=1)
    _, _, gradient = TorchModel(classifier.graph).value_and_gradient(images, Gap(labels))
    share = float((gradient.flatten(1).abs().amax(dim=1) > 0).float().mean())
    if share == 0:
        raise ModelError(
            f"the input gradient is zero on all of {len(images)} items, so no attack can be crafted and no gradient "
            "read: a step, a rounding or an integer lies between input and output; give the float model, or one "
            "whose output is not saturated"
        )
    few = " (attacks have little to climb on the others)" if share < MIN_GRADIENT_SHARE else ""
    return f"the answer changes with the input on {share:.0%} of {len(images)} items{few}"


def forwards_text(detectors: Sequence[Detector]) -> str:
    """Return the least cost of a program's detectors in forwards of the model."""
    needs = distinct([need for detector in detectors for need in detector.needs])
    backwards, rows = max((n.backwards for n in needs), default=0), sum(n.rows_per_item for n in needs)
    parts = [f"{backwards} backward"] * (backwards > 0) + [f"{rows} rows"] * (rows > 0)
    counted = f" (1 + {' + '.join(parts)})" if parts else ""
    return f"{1 + backwards + rows} forwards{counted} for {', '.join(detector.name for detector in detectors)}"


def cost_lines(job: Job, cost: Cost) -> list[Line]:
    """Return what a training will take."""
    minutes = "" if job.minutes is None else f", sized to --minutes {job.minutes:g}"
    over = job.minutes is not None and cost.least_s > 60 * job.minutes
    beyond = f"; {duration(cost.least_s)} is the least, whatever --minutes says" if over else ""
    return [
        ("speed", f"{1000 * cost.forward_s:.2g} ms a forward, {1000 * cost.gradient_s:.2g} ms with its gradient"),
        (
            "time",
            f"at least {duration(cost.least_s)}{minutes}: attacks {duration(cost.crafting_s)}, fitting "
            f"{duration(cost.fitting_s)}, report {duration(cost.report_s)}, a third for the adaptive attack{beyond}",
        ),
        ("memory", f"about {cost.memory_bytes / GIB_BYTES:.1f} GiB"),
    ]
