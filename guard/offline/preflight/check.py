"""What would stop or spoil a training, and what it will cost, said in its first minute: `guard check`, and each start.

Rule 1: a line is said as soon as it is known.
Rule 2: what would stop a training raises its error here, before anything is crafted; nothing is written.
"""

from __future__ import annotations

import textwrap
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from guard.calibration import smallest_rate
from guard.errors import ConfigError, ModelError
from guard.features import only_names
from guard.offline.attacks.model import TorchModel
from guard.offline.attacks.objective import Gap
from guard.offline.closed.open_answers import open_answers
from guard.offline.crafting.checks import check_budgets, lifted, one_step
from guard.offline.data.dataset import Dataset
from guard.offline.data.grid import Grid, grid_for, stuck
from guard.offline.data.splits import Split
from guard.offline.detectors.detector import Detector
from guard.offline.evidence.batches import one_batch
from guard.offline.evidence.forwards import floor_of
from guard.offline.evidence.gather import Gather
from guard.offline.job.accuracy import check_accuracy
from guard.offline.job.job import Job, by_file, check_data, check_rates, open_job
from guard.offline.job.recipe import Recipe
from guard.offline.model.asking import asked
from guard.offline.model.classifier import Classifier
from guard.offline.model.declared_input import declared_input
from guard.offline.preflight.cost import Cost, cost_of
from guard.offline.preflight.feature_lines import feature_lines
from guard.offline.preflight.sample import sample_of
from guard.offline.programs.model_parity import MODEL_ITEMS, check_model
from guard.offline.second.asked import SecondsAsked, find_asked
from guard.offline.training.candidates import candidates_of, check_cost
from guard.offline.work.directory import WorkDirectory
from guard.offline.work.text import duration
from guard.offline.work.threads import choose_threads

Line = tuple[str, str]  # (what it is about, what was found)

MAX_NAMED_CLASSES = 10
TOLD_EVERY_S = 5.0
MIN_GRADIENT_SHARE = 0.9  # of the items; where fewer have a gradient, attacks have little to climb
GIB_BYTES = 2**30
MATES_ITEMS = 8  # that are answered together and alone
MAX_MATES_SHARE = 1e-3  # of the largest logit: batches of other sizes round otherwise, by far less


@dataclass(frozen=True)
class Sound:
    """A job's model and data, found to be sound, the second networks that it asks, and what its training will cost."""

    classifier: Classifier
    data: Dataset
    asked: SecondsAsked
    cost: Cost


def check(job: Job, say: Callable[[str, str], None], *, kept: WorkDirectory | None = None) -> Sound:
    """Open, answer, differentiate, compile and time a model on its data, one line each; return both.

    What was read of data that does not fit into memory is kept in the work directory `kept`, and a sample is returned;
    so are a student, and what a closed model has answered.

    Raises:
        GuardError: what would stop `guard train`.
    """
    check_rates(job)
    check_cost(job)
    if not job.recipe.adaptive_budgets:
        raise ConfigError(
            f"recipe {job.recipe.name} has no [adaptive] block, and no report is written without the adaptive attack; "
            "add [adaptive] with budgets = [0.03] or those that count for you"
        )
    check_model_named(job)
    classifier, data = open_job(job, told(say), tell=lambda text: say("student", text), kept=kept)
    job = job.fitting(classifier)
    grid = grid_for(classifier.spec.input)
    check_grid(job.recipe, grid, classifier.item_shape)
    for line in lifted((*job.recipe.attacks, *job.recipe.left_out), grid):
        say("budget", line)
    check_mates(classifier, data)
    choose_threads(classifier.graph, one_batch(data.images), job.threads)
    lines = (*model_lines(classifier), *data_lines(classifier, data), *feature_lines(job, classifier, data))
    for about, text in lines:
        say(about, text)
    for skipped in job.recipe.skipped:
        say("skipped", skipped)
    check_answers(job, classifier, data, say)
    for warning in check_data(job, data):
        say("promise", warning)
    say("splits", splits_text(data))
    sample = sample_of(job, classifier, data, kept)
    if sample.line is not None:
        data = sample.data
        say("sample", sample.line)
        for warning in check_data(job, data):
            say("promise", warning)
    say("gradient", gradient_text(classifier, data))
    asked = find_asked(job, classifier, data, say, told(say))
    job = asked.forecast
    taps = [tap.name for tap in classifier.taps]
    programs = job.recipe.programs(taps)
    if job.cost is not None:
        say("cost", cost_text(job.cost, job.recipe, taps))
    for name, detectors in programs.items():
        gather = Gather(classifier, [need for detector in detectors for need in detector.needs])
        say("program", f"{name}: {forwards_text(gather.backwards, gather.rows, detectors, gather.forwards)}")
    check_model(classifier, [d for ds in programs.values() for d in ds], data.part(Split.COMBINER).images[:MODEL_ITEMS])
    say("ONNX", "compiled for ONNX Runtime, the model gives torch's logits, layers and gradient")
    second_s = 0.0 if asked.training is None else asked.training.seconds_all
    cost = cost_of(job, classifier, data)
    for about, text in cost_lines(job, cost, second_s):
        say(about, text)
    return Sound(classifier, data, asked, cost)


def check_model_named(job: Job) -> None:
    """Check that there is one model, and what its file declares, before data are read for long.

    Raises ConfigError, ModelError.
    """
    if job.answers is not None:
        for flag, given in (("--model", job.model), ("--served", job.served)):
            if given:
                raise ConfigError(f"{flag} and --answers exclude each other: a model is opened, or it is asked")
        open_answers(job.study(keep=False).answers)
        return
    if job.name is not None:
        raise ConfigError(f"--name {job.name} names the model of a server; it goes with --answers HOST:PORT")
    if not job.model:
        raise ConfigError("there is no model: give --model, or --answers for one that cannot be opened")
    declared_input(job.model, job.input_name, job.output_name)


def check_grid(recipe: Recipe, grid: Grid, item_shape: Sequence[int]) -> None:
    """Check that the data's grid can hold the budgets of attacks and adaptive attack. Raises ConfigError."""
    check_budgets((*recipe.attacks, *recipe.left_out), grid, item_shape)
    if small := [budget for budget in recipe.adaptive_budgets if stuck(budget, grid)]:
        raise ConfigError(f"recipe {recipe.name}: the adaptive budget {small[0]:g} is below {one_step(grid)}")


def check_mates(classifier: Classifier, data: Dataset) -> None:
    """Check that an item's answer depends on its batch in no way. Raises ModelError."""
    images = torch.from_numpy(data.images[:MATES_ITEMS])
    together, alone = asked(classifier, images), torch.cat([asked(classifier, one[None]) for one in images])
    off = (together - alone).abs().amax(dim=1)
    if bool((off > MAX_MATES_SHARE * together.abs().max()).any()):
        raise ModelError(
            f"the model answers item {int(off.argmax())} otherwise among {len(images)} items than alone: a logit "
            f"differs by {float(off.max()):.3g}. It mixes the items of a batch (means over it, batch statistics) or "
            "draws random numbers; wanted one answer for one item: export it in evaluation mode, take out what mixes"
        )


def check_answers(job: Job, classifier: Classifier, data: Dataset, say: Callable[[str, str], None]) -> None:
    """Say on how many items of each file the model is right. Raises DataError where that is doubtful."""
    parts = by_file(job, data)
    for part in parts:
        name = f"{Path(part.name).name}: " if len(parts) > 1 else ""
        say("accuracy", f"{name}{check_accuracy(classifier, part, accepted=job.accept_accuracy)}")


def told(say: Callable[[str, str], None], clock: Callable[[], float] = time.monotonic) -> Callable[[int, int], None]:
    """Return a listener to long reading that says every few seconds how far it is."""
    last = clock()

    def tell(done: int, total: int) -> None:
        nonlocal last
        if clock() - last >= TOLD_EVERY_S:
            last = clock()
            say("reading", f"{done:,} of {total:,} items")

    return tell


def wrapped(about: str, text: str, width_columns: int) -> list[str]:
    """Return a finding as lines: what it is about, and the text beside it."""
    return textwrap.wrap(text, width_columns, initial_indent=f"{about:<10}", subsequent_indent=" " * 10)


def model_lines(classifier: Classifier) -> list[Line]:
    """Describe the model's input and output as they are on the wire, and the layers that detectors may read."""
    spec, output = classifier.spec.input, classifier.spec.output
    shape = ", ".join(map(str, spec.wire_shape))
    return [
        ("input", f"{spec.name!r}: {spec.datatype} [item, {shape}] ({spec.layout}), {range_text(classifier)}"),
        ("output", f"{output.name!r}: {output.in_words}"),
        ("layers", f"detectors may read {', '.join(tap.name for tap in classifier.taps)}"),
        *(("precision", str(found)) for found in (classifier.difference,) if found),
        *(("closed", str(found.study)) for found in (classifier.answering,) if found),
    ]


def range_text(classifier: Classifier) -> str:
    """Return what the ends of the value range are on the wire."""
    spec = classifier.spec.input
    low, high = (
        f"{bounds[0]:g}" if len(set(bounds)) == 1 else f"{min(bounds):.3g} to {max(bounds):.3g} by channel or feature"
        for bounds in (spec.low, spec.high)
    )
    least, most = spec.axes.ends
    return f"{least} is {low}, {most} {high}"


def data_lines(classifier: Classifier, data: Dataset) -> list[Line]:
    """Describe the items, their values and their classes as they were understood."""
    spec, output = classifier.spec.input, classifier.spec.output
    low, high = (f"{end:.0%}" for end in data.ends())
    ends = " to ".join(spec.axes.ends)
    steps = f"in whole steps of 1/{spec.grid}" if spec.grid else "in no whole steps"
    steps = steps if only_names(spec.features) else "in each feature's own steps"
    counts = np.bincount(data.labels, minlength=output.classes)
    return [
        ("data", f"{len(data):,} items; values fill {low} to {high} of the way from {ends}, {steps}"),
        ("classes", f"{classes_text(classifier)}; {counts.min():,} to {counts.max():,} items each"),
        *(("data", note) for note in data.notes),
    ]


def classes_text(classifier: Classifier) -> str:
    """Return the classes in the order of the model's numbers, by name where there are names."""
    output = classifier.spec.output
    if not output.labels:
        return f"numbers 0 to {output.classes - 1}"
    shown = [f"{number} {name}" for number, name in enumerate(output.labels[:MAX_NAMED_CLASSES])]
    return ", ".join(shown) + (", …" if output.labels[MAX_NAMED_CLASSES:] else "")


def splits_text(data: Dataset) -> str:
    """Return how many items fall to each split, and the smallest rate that can be promised."""
    parts = {split: data.part(split) for split in Split}
    listed = ", ".join(f"{split.value} {size_text(part)}" for split, part in parts.items())
    return f"{listed} items; rates from {smallest_rate(parts[Split.CALIBRATE].effective):.2g} on can be promised"


def size_text(data: Dataset) -> str:
    """Return how many items there are, and how many of them differ where not all do."""
    return f"{len(data):,}" + (f" ({data.distinct:,} distinct)" if data.distinct < len(data) else "")


def gradient_text(classifier: Classifier, data: Dataset) -> str:
    """Return on how many items the model has a gradient to climb.

    Raises:
        ModelError: it has none on any item, or what should be one is not a number.
    """
    images = one_batch(data.images)
    with torch.no_grad():
        labels: Tensor = classifier(images).argmax(dim=1)
    _, _, gradient = TorchModel(classifier.graph).value_and_gradient(images, Gap(labels))
    sizes = gradient.flatten(1).abs().amax(dim=1)
    if broken := int((~sizes.isfinite()).sum()):
        raise ModelError(
            f"the input gradient is not a number, or infinite, on {broken} of {len(images)} items, so attacks would "
            "spoil these: the model takes a logarithm or reciprocal of 0, divides by 0, or has such a slope on its "
            "way; add a small number before it, as in log(x + 1e-6)"
        )
    share = float((sizes > 0).float().mean())
    if share == 0:
        raise ModelError(
            f"the input gradient is zero on all of {len(images)} items, so no attack can be crafted and no gradient "
            "read: a step, a rounding or an integer lies between input and output; give the float model, or one "
            "whose output is not saturated"
        )
    few = " (attacks have little to climb on the others)" if share < MIN_GRADIENT_SHARE else ""
    return f"the answer changes with the input on {share:.0%} of {len(images)} items{few}"


def forwards_text(backwards: int, rows: int, detectors: Sequence[Detector], second: float = 0.0) -> str:
    """Return the least cost of a program's detectors in forwards of the model, beside the item's own."""
    counts = ((backwards, "backward"), (rows, "row"))
    parts = [counted_text(number, what) for number, what in counts if number]
    parts += [f"{second:.2g} of second networks"] if second else []
    added = f" (1 + {' + '.join(parts)})" if parts else ""
    learning = ", ".join(detector.name for detector in detectors if detector.learns)
    more = f"; what {learning} needs is found when it is fitted, and comes on top" if learning else ""
    forwards = counted_text(1 + backwards + rows + second, "forward")
    cost = f"{'at least ' if learning else ''}{forwards}{added}"
    return f"{cost} for {', '.join(detector.name for detector in detectors)}{more}"


def cost_text(limit: float, recipe: Recipe, taps: Sequence[str]) -> str:
    """Return what each detector costs alone, of which training chooses within a limit of forwards."""
    costs = {one.text: (one.detector, floor_of(one.detector.needs) - 1) for one in candidates_of(recipe, taps)}
    listed = [f"{text} {'more than ' if one.learns else ''}{cost:+.3g}" for text, (one, cost) in costs.items()]
    return (
        f"within {counted_text(limit, 'forward')} training chooses what catches most of the worst attack left out: 1 "
        f"for the item, and {', '.join(listed)}; what two of them need is paid once. All of them:"
    )


def counted_text(number: float, what: str) -> str:
    return f"{number:.3g} {what}{'' if number == 1 else 's'}"


def cost_lines(job: Job, cost: Cost, second_s: float = 0.0) -> list[Line]:
    """Return what a training will take; `second_s` is what a second network takes of it."""
    second = f"second network {duration(second_s)}, " if second_s else ""
    parts = (
        f"attacks {duration(cost.crafting_s)} ({cost.fitted_items:,} items each), fitting {duration(cost.fitting_s)}, "
        f"{second}and what is left of --minutes for the report (attacks {duration(cost.report_s)}, then the adaptive "
        "attack); longer where attacks seldom succeed"
    )
    return [
        (
            "speed",
            f"about {1000 * cost.forward_s:.2g} ms an item, {1000 * cost.gradient_s:.2g} ms with its gradient, on one "
            "thread",
        ),
        ("time", f"{time_text(job, cost, second_s)}: {parts}"),
        ("memory", memory_text(cost)),
    ]


def time_text(job: Job, cost: Cost, second_s: float) -> str:
    """Return how long the guard takes, beside the minutes that the whole training was given."""
    guard_s = cost.guard_s + second_s
    text = f"about {duration(guard_s)} for the guard, which is not cut"
    if job.minutes is None or guard_s <= 60 * job.minutes:
        return text
    return f"{text}: more than --minutes {job.minutes:g}; the report will be the smallest that there is"


def memory_text(cost: Cost) -> str:
    """Return the memory that a training takes."""
    return f"about {cost.memory_bytes / GIB_BYTES:.1f} GiB"
