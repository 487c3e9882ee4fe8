"""A training job: what `guard train` was asked for, and the clean data that it finds, split by content hash.

Rule 1: heads, combiner, calibration and test never share an item.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from guard.arrays import read_examples, to_wire
from guard.calibration import check_promise
from guard.data_file import DataFile
from guard.errors import ConfigError, DataError, PromiseError
from guard.offline.data.dataset import Dataset
from guard.offline.data.grid import grid_of
from guard.offline.data.splits import SHARES, Split, assign, content_hashes
from guard.offline.job.recipe import Recipe
from guard.offline.model.classifier import Classifier
from guard.offline.model.open_model import Source, open_model
from guard.offline.work.directory import WorkDirectory

MIN_SPLIT_ITEMS = 20  # in each split
WHOLE = {Split.HEADS: 0.35, Split.COMBINER: 0.15, Split.CALIBRATE: 0.25, Split.TEST: 0.25}


@dataclass(frozen=True)
class Job:
    """The settings of one run of `guard train`."""

    model: str
    data: Path
    out: Path
    recipe: Recipe
    test: Path | None = None
    reject_rate: float = 0.01
    flag_rate: float = 0.05
    seed: int = 0
    threads: int | None = None  # of torch; None: the quicker of one and all. Another number can change the last bits.
    # So many shards are attacked side by side as well (None: one a core); that changes no bit.
    low: tuple[float, ...] = (0.0,)
    high: tuple[float, ...] = (1.0,)
    input_name: str | None = None
    output_name: str | None = None
    output: str = "logits"
    serves: str = "model"
    labels: tuple[str, ...] = ()
    minutes: float | None = None  # that the whole run is sized to; None: the numbers below, or their defaults, say it
    craft_items: int | None = None  # clean items that each attack is tried on, for fitting
    attack_items: int | None = None  # and for the report
    adaptive_items: int = 50
    adaptive_steps: int = 100

    @property
    def work(self) -> WorkDirectory:
        """The work directory beside the bundle, for what is slow to make."""
        return WorkDirectory.beside(self.out)


def open_job(job: Job) -> tuple[Classifier, Dataset]:
    """Open a job's model and data. Raises ConfigError, DataError, ModelError."""
    examples = read_examples(job.data)
    shape = item_shape(examples)
    check_box(job, shape)
    source = Source(
        job.model, shape, job.low, job.high, None, job.input_name, job.output_name, job.output, job.serves, job.labels
    )
    classifier = open_model(source)
    data = split_data(job, classifier, examples)
    spec = replace(classifier.spec.input, grid=grid_of(data.images))  # of bytes it is 255 steps or a share of them
    return replace(classifier, spec=replace(classifier.spec, input=spec)), data


def item_shape(examples: DataFile) -> tuple[int, ...]:
    """Return the shape of one item as the model takes it."""
    images = examples.images
    if images.dtype == np.uint8 and images.ndim == 4:
        return (images.shape[3], images.shape[1], images.shape[2])
    return tuple(images.shape[1:])


def check_box(job: Job, shape: tuple[int, ...]) -> None:
    """Check that there is one range for all, or one a channel or feature. Raises ConfigError."""
    if len(job.low) != len(job.high) or len(job.low) not in (1, shape[0]):
        part = "channels" if len(shape) == 3 else "features"
        raise ConfigError(
            f"--mean and --std tell of {len(job.low)} and {len(job.high)} {part}; "
            f"the items in {job.data} have {shape[0]}: give as many, or one for all"
        )


def split_data(job: Job, classifier: Classifier, examples: DataFile) -> Dataset:
    wire = to_wire(examples.images, classifier.spec.input, examples.source)
    hashes = content_hashes(wire)
    splits = assign(hashes, shares=WHOLE if job.test is None else SHARES, seed=job.seed)
    unit = np.clip(classifier.spec.input.box.to_unit(wire), 0.0, 1.0)
    data = Dataset(unit, examples.labelled(), hashes, examples.source, splits)
    if job.test is None:
        return data
    held_out = read_examples(job.test)
    test_wire = to_wire(held_out.images, classifier.spec.input, held_out.source)
    test_hashes = content_hashes(test_wire)
    if shared := set(test_hashes.tolist()) & set(hashes.tolist()):
        raise DataError(
            f"{held_out.source} and {examples.source} share {len(shared)} items; test data must be held out"
        )
    return Dataset(
        np.concatenate([data.images, np.clip(classifier.spec.input.box.to_unit(test_wire), 0.0, 1.0)]),
        np.concatenate([data.labels, held_out.labelled()]),
        np.concatenate([hashes, test_hashes]),
        held_out.source,
        {**splits, **dict.fromkeys(test_hashes.tolist(), Split.TEST)},
    )


def check_data(job: Job, classifier: Classifier, data: Dataset) -> None:
    """Check the labels, the rates and the number of items in each split.

    Raises DataError for labels that the model does not have, or too few items; PromiseError for rates.
    """
    classes = classifier.spec.output.classes
    if int(data.labels.max()) >= classes:
        bad = int(np.flatnonzero(data.labels >= classes)[0])
        raise DataError(
            f"{data.name}: item {bad} has label {int(data.labels[bad])}; the model has classes 0 to {classes - 1}"
        )
    calibrating = len(data.part(Split.CALIBRATE))
    if job.flag_rate < job.reject_rate:
        raise PromiseError(
            f"flag rate {job.flag_rate:g} is below reject rate {job.reject_rate:g}; "
            "every rejected item counts as flagged"
        )
    for name, rate in (("reject rate", job.reject_rate), ("flag rate", job.flag_rate)):
        check_promise(rate, calibrating, name=name)
    for split in Split:
        if (found := len(data.part(split))) < MIN_SPLIT_ITEMS:
            raise DataError(
                f"{data.name}: {found} clean items fall to {split.value}; at least {MIN_SPLIT_ITEMS} are needed, so "
                f"bring about {MIN_SPLIT_ITEMS * len(data.images) // max(found, 1)} items"
            )
