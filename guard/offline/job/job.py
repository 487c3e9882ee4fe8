"""A training job: what `guard train` was asked for, and the clean data that it finds, split by content hash.

Rule 1: heads, combiner, calibration and test never share an item.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from guard.arrays import read_examples
from guard.axes import BY_COUNT, IMAGES, SERIES, Axes, axes_of, channels_first
from guard.calibration import check_promise
from guard.columns import ColumnChoice
from guard.data_file import DataFile, Reading
from guard.errors import ConfigError, DataError, PromiseError
from guard.features import NUMERIC, Feature, box_of, only_names
from guard.layout import layout_of_data, layout_of_kind, order_text, with_channels
from guard.manifest import InputSpec, ModelSpec
from guard.offline.closed.open_answers import AnswersWish, open_answers
from guard.offline.closed.study import DEFAULT_QUESTIONS_ITEMS, StudyWish, study
from guard.offline.data.dataset import Dataset, dataset_of, joined
from guard.offline.data.find_features import find_features
from guard.offline.data.splits import SHARES, Split, assign
from guard.offline.job.class_checks import check_folders, check_held_out, check_labels, label_notes
from guard.offline.job.feature_file import Stated
from guard.offline.job.recipe import Recipe
from guard.offline.model.classifier import Classifier
from guard.offline.model.declared_input import DeclaredInput, declared_input
from guard.offline.model.feature_limits import with_limits
from guard.offline.model.onnx_import.class_names import declared_names
from guard.offline.model.open_model import Source, open_model
from guard.offline.model.served import measure_difference
from guard.offline.work.directory import WorkDirectory
from guard.offline.work.parallel import Threads
from guard.offline.work.tasks import Executor

Bounds = tuple[tuple[float, ...], tuple[float, ...]]  # wire values of black and white, by channel or one for all

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
    labels: tuple[str, ...] = ()  # names of the classes in the model's order; those of class folders unless given
    data_layout: str | None = None  # of arrays with three or four axes; None: as the model's input says
    label_column: str | None = None  # of a table; None: the one with a usual name
    drop_columns: tuple[str, ...] = ()  # of a table: left out
    features: tuple[Stated, ...] = ()  # of a table: what the user says of them
    ranged: bool = False  # low and high were given, and hold for numbers of a table, too
    served: Path | None = None  # the .onnx file that answers clients, where it is not the model
    answers: str | None = None  # in place of `model`: an .onnx file, module:function or HOST:PORT that is asked
    name: str | None = None  # of a server's model, NAME[:VERSION]
    input_type: str | None = None  # in which clients send inputs, where it is not the model's own
    questions: int = DEFAULT_QUESTIONS_ITEMS  # answers that a student is distilled from
    accept_accuracy: bool = False  # go on where the model is seldom right on the data
    minutes: float | None = None  # that the whole run is to end within: the report is sized to it, the guard is not
    clean_items: int | None = None  # of those that do not fit into memory: how many are used
    craft_items: int | None = None  # clean items that each attack is tried on, for fitting; None: as the recipe wants
    attack_items: int | None = None  # and for the report
    second: tuple[str, ...] = ()  # other networks of the same classes that are asked as well
    second_bounds: tuple[Bounds, ...] = ()  # their wire values of black and white: none, one for all, or one each
    second_data: Path | None = None  # the model's own training data, from which a second network is trained
    cost: float | None = None  # forwards on clean traffic that the detectors are chosen within; None: all of them
    second_minutes: float | None = None  # that this may take; None: all epochs of the recipe
    adaptive_items: int = 50
    adaptive_steps: int = 100
    executor: Executor | None = None  # what computes the job's tasks; None: threads of this process

    @property
    def runs_on(self) -> Executor:
        """What computes the job's tasks."""
        return Threads(self.threads) if self.executor is None else self.executor

    @property
    def work(self) -> WorkDirectory:
        """The work directory beside the bundle, for what is slow to make."""
        return WorkDirectory.beside(self.out)

    def fitting(self, classifier: Classifier) -> Job:
        """Return the job without the parts of its recipe that do not apply to a model's kind of input."""
        taps = [tap.name for tap in classifier.taps]
        return replace(self, recipe=self.recipe.fitting(classifier.kind, taps, classifier))

    def study(self, *, keep: bool) -> StudyWish:
        """Return how a closed model is to be studied; what is slow to find lies in the work directory if it is kept."""
        names = {"name": self.name, "input_name": self.input_name, "output_name": self.output_name}
        answers = AnswersWish(self.answers or "", **names, output=self.output, labels=self.labels)
        return StudyWish(answers, self.questions, self.seed, self.work.student if keep else None)

    @property
    def choice(self) -> ColumnChoice:
        """The user's word on the columns of a table."""
        stated = tuple((one.name, one.words) for one in self.features if one.words)
        return ColumnChoice(self.label_column, self.drop_columns, words=self.tabular, stated=stated)

    @property
    def tabular(self) -> bool:
        """Whether the data are a table whose features differ in kind."""
        return self.recipe.tabular or bool(self.features)

    @property
    def streams(self) -> bool:
        """Whether items that do not fit into memory stay in their files: not a table's, nor a closed model's."""
        return self.answers is None and not self.tabular


def open_job(
    job: Job,
    progress: Reading | None = None,
    *,
    tell: Callable[[str], None] | None = None,
    kept: WorkDirectory | None = None,
) -> tuple[Classifier, Dataset]:
    """Open a job's model and data; `progress` hears of items read, `tell` of a student.

    The work directory `kept` is begun, and keeps what was found of items that do not fit into memory, and the student.

    Raises ConfigError, DataError, ModelError.
    """
    names = job.labels or declared_names(job.answers or job.model)
    examples = read_examples(
        job.data, layout=job.data_layout, classes=names, choice=job.choice, progress=progress, stream=job.streams
    )
    examples.labelled()  # before a model is opened for inputs among which the labels may still be
    examples = with_layout(job, examples)
    shape = item_shape(examples)
    check_box(job, shape)
    features = features_of(job, examples)
    low, high = (job.low, job.high) if only_names(features) else box_of(features)
    source = Source(
        model=job.model,
        item_shape=shape,
        low=low,
        high=high,
        features=features,
        input_name=job.input_name,
        output_name=job.output_name,
        output=job.output,
        serves=job.serves,
        labels=names or examples.classes,
        served=job.served,
        layout=examples.layout if examples.layout in axes_of(shape).module_layouts else None,
        input_type=job.input_type,
    )

    def split(spec: ModelSpec) -> Dataset:
        check_folders(examples, spec.output.classes)
        return split_data(job, spec, examples, DataReader(kept, progress))

    if job.answers is None:
        classifier = open_model(source)
        data = split(classifier.spec)
    else:
        if kept is not None:
            kept.begin()  # answers and student are kept from the first on
        wish = job.study(keep=kept is not None)
        classifier, data = study(wish, source, examples, split, tell or (lambda _: None))
    grid = data.values().grid if only_names(features) else None  # of bytes it is 255 steps or a share of them
    features = classifier.spec.input.features if only_names(features) else with_limits(classifier, data.images)
    spec = replace(classifier.spec.input, grid=grid, features=features)
    return measured(replace(classifier, spec=replace(classifier.spec, input=spec)), data), data


def features_of(job: Job, examples: DataFile) -> tuple[Feature, ...]:
    """Return the features of a table, found as far as they are not stated; of other inputs, their names alone.

    Raises:
        ConfigError, DataError: the data are no table, or contradict what was stated.
    """
    axes = examples.images.ndim
    if not job.tabular:
        count = len(examples.features) // len(job.low)
        every = zip(examples.features, job.low * count, job.high * count, strict=True)
        return tuple(Feature(name, NUMERIC, least, most) for name, least, most in every)
    if axes != 2:
        said = "--features" if job.features else f"recipe {job.recipe.name}"
        raise DataError(
            f"{examples.source}: items have {axes - 1} axes, and {said} is for tables; wanted a feature a column, "
            "[item, feature]"
        )
    if len(job.low) > 1:
        raise ConfigError("--mean and --std beside features of a table; wanted low and high of each in --features")
    return find_features(examples, job.features, (job.low[0], job.high[0]) if job.ranged else None)


def measured(classifier: Classifier, data: Dataset) -> Classifier:
    """Return a classifier that knows how far the served model is from it. Raises ModelError where it is too far."""
    if classifier.served is None:
        return classifier
    found = measure_difference(classifier.served, classifier, data.images, classifier.spec.input.box)
    return replace(classifier, served=None, difference=found)


def with_layout(job: Job, examples: DataFile) -> DataFile:
    """Return examples whose order of axes is known: by their file, by the user, or by the model's input."""
    declared = declared_by(job)
    axes = axes_taken(declared, examples)
    layout = layout_of_kind(examples.layout, axes, examples.source) if axes.places else examples.layout
    images, layout = with_channels(examples.images, layout, axes if axes.places else IMAGES)
    examples = replace(examples, images=images, layout=layout)
    if not axes.places or images.ndim != len(axes.names) + 1 or layout is not None:
        return examples  # what the model does not take it refuses itself, in its own words
    sizes = tuple(images.shape[1:])
    found = layout_of_data(sizes, declared.item, examples.source, either=declared.either, wire_layout=declared.layout)
    return replace(examples, layout=found)


def declared_by(job: Job) -> DeclaredInput:
    """Return what a model's file, or the closed model that is asked, says of its input."""
    if job.answers is None:
        return declared_input(job.model, job.input_name, job.output_name)
    return DeclaredInput(open_answers(job.study(keep=False).answers).sizes, True)


def axes_taken(declared: DeclaredInput, examples: DataFile) -> Axes:
    """Return the axes of the items that a model takes: as its file declares, else as the data look.

    Arrays of three axes are series where the model's file or the user says so, and grey images else.
    """
    if declared.item is not None and len(declared.item) in BY_COUNT:
        return BY_COUNT[len(declared.item)]
    sizes = examples.images.shape[1:]
    if len(sizes) == len(SERIES.names) and examples.layout not in SERIES.layouts:
        return IMAGES
    return axes_of(sizes)


def item_shape(examples: DataFile) -> tuple[int, ...]:
    """Return the shape of one item, channels first. Raises DataError where only the model could tell its axes."""
    sizes = tuple(examples.images.shape[1:])
    if not axes_of(sizes).places:
        return sizes
    return channels_first(sizes, examples.layout or layout_of_data(sizes, None, examples.source, either=False))


def check_box(job: Job, shape: tuple[int, ...]) -> None:
    """Check that there is one range for all, or one a channel or feature. Raises ConfigError."""
    if len(job.low) != len(job.high) or len(job.low) not in (1, shape[0]):
        raise ConfigError(
            f"--mean and --std tell of {len(job.low)} and {len(job.high)} {axes_of(shape).part}s; "
            f"the items in {job.data} have {shape[0]}: give as many, or one for all"
        )


@dataclass(frozen=True)
class DataReader:
    """How items are read: where what is found of them is kept, and who hears how far it is."""

    kept: WorkDirectory | None = None
    progress: Reading | None = None

    def dataset(self, examples: DataFile, spec: InputSpec) -> Dataset:
        """Return examples in unit space. Raises DataError."""
        if self.kept is None or isinstance(examples.images, np.ndarray):
            return dataset_of(examples, spec, progress=self.progress)
        self.kept.begin()
        return dataset_of(examples, spec, kept=self.kept.reading, progress=self.progress)


def split_data(job: Job, model: ModelSpec, examples: DataFile, reader: DataReader) -> Dataset:
    spec, classes = model.input, model.output.classes
    check_labels(examples.labelled(), classes, examples.source)
    data = reader.dataset(examples, spec)
    splits = assign(data.hashes, shares=WHOLE if job.test is None else SHARES, seed=job.seed)
    notes = (*data.notes, *shape_note(examples), *label_notes(examples, data.hashes, classes))
    if job.test is None:
        return replace(data, splits=splits, notes=notes)
    held_out = read_examples(
        job.test,
        layout=job.data_layout,
        classes=model.output.labels,
        choice=replace(job.choice, features=spec.features),
        progress=reader.progress,
        stream=job.streams,
    )
    check_held_out(held_out, model.output)
    test = reader.dataset(held_out, spec)
    if shared := set(test.hashes.tolist()) & set(data.hashes.tolist()):
        raise DataError(
            f"{held_out.source} and {examples.source} share {len(shared)} items; test data must be held out: "
            "remove them from one of the two, or leave --test out, which holds out a part of --data"
        )
    return replace(
        joined(data, test),
        splits={**splits, **dict.fromkeys(test.hashes.tolist(), Split.TEST)},
        notes=(*notes, *(f"{held_out.source}: {note}" for note in test.notes)),
    )


def by_file(job: Job, data: Dataset) -> list[Dataset]:
    """Return the items of --data, and those of --test where there is one, each under its own name."""
    if job.test is None:
        return [data]
    held_out = data.groups == Split.TEST.value
    return [replace(data.take(~held_out), name=str(job.data)), data.take(held_out)]


def shape_note(examples: DataFile) -> list[str]:
    shape = item_shape(examples)
    names, *places = axes_of(shape).names
    if not places:
        return []
    sizes, order = " x ".join(map(str, shape)), order_text(examples.layout or axes_of(shape).layouts[0])
    return [f"items are {sizes} ({', '.join((f'{names}s', *places))}); the file has {order.partition(',')[0]}"]


def check_rates(job: Job) -> None:
    """Check that the rates fit each other. Raises PromiseError."""
    if job.flag_rate < job.reject_rate:
        raise PromiseError(
            f"--flag-rate {job.flag_rate:g} is below --reject-rate {job.reject_rate:g}; every rejected item counts as "
            f"flagged: give a flag rate of {job.reject_rate:g} or more"
        )


def copies_text(data: Dataset) -> str:
    """Say that items are copies where so many are that they count as fewer, as a clause; else nothing."""
    if data.effective == len(data):
        return ""
    return (
        f"; {len(data):,} items are {data.distinct:,} distinct ones, whose copies share one risk, and count as "
        f"{data.effective:,}: bring others"
    )


def check_data(job: Job, data: Dataset) -> tuple[str, ...]:
    """Check the rates and the number of items in each split; return warnings of rates that rest on few items.

    Raises:
        DataError: too few items fall to a split.
        PromiseError: a rate cannot be promised with these items.
    """
    check_rates(job)
    calibrating = data.part(Split.CALIBRATE)
    rates = {"reject rate": job.reject_rate, "flag rate": job.flag_rate}
    try:
        warnings = [check_promise(rate, calibrating.effective, name=name) for name, rate in rates.items()]
    except PromiseError as error:
        raise PromiseError(f"{error}{copies_text(calibrating)}") from error
    for split in Split:
        if (found := len(data.part(split))) < MIN_SPLIT_ITEMS:
            raise DataError(
                f"{data.name}: {found} clean items fall to {split.value}; at least {MIN_SPLIT_ITEMS} are needed, so "
                f"bring about {MIN_SPLIT_ITEMS * len(data.images) // max(found, 1)} items"
            )
    return tuple(warning for warning in warnings if warning is not None)
