"""The study of a closed model: what it answers is found out, a student distilled, compared, and opened as a classifier.

Rule 1: the student learns from the splits that are fitted on, and is compared on the test split alone.
Rule 2: a student that names other classes too often is refused: the guard would watch another model.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from guard.arrays import wire_parts
from guard.axes import axes_of, in_layout
from guard.data_file import DataFile
from guard.errors import BundleError, ModelError
from guard.manifest import ModelSpec, OutputSpec
from guard.offline.closed.answer_form import AnswerForm, form_of
from guard.offline.closed.closed_model import ClosedModel
from guard.offline.closed.kept_answers import KeptAnswers
from guard.offline.closed.open_answers import AnswersWish, open_answers
from guard.offline.closed.student import blank_student, distil
from guard.offline.data.dataset import Dataset
from guard.offline.data.grid import Grid, grid_for
from guard.offline.data.splits import Split
from guard.offline.model.answering import Answering, Study
from guard.offline.model.classifier import Classifier
from guard.offline.model.open_model import BRING, Source, named, open_student, wire_type
from guard.offline.work.files import read_arrays, write_arrays
from guard.offline.work.parallel import one_thread
from guard.offline.work.store import cache_key

DEFAULT_QUESTIONS_ITEMS = 20_000
MIN_QUESTIONS_ITEMS = 500
MIN_AGREED_SHARE = 0.9  # of held-out clean items, on which student and model name the same class
MIN_BEYOND_CHANCE_SHARE = 0.6  # of what chance leaves: where one class is most of the data, agreeing is easy
COMPARED_ITEMS = 2000
PROBED_ITEMS = 64
MAX_CLEAN_SHARE = 0.25  # of the questions: the rest is for what surrounds the clean items
MAX_CHANGED_SHARE = 0.01  # of the probe, that may be named otherwise than when answers were kept
WIRE, SHARES = "wire", "shares"  # of a probe: its items, and what was answered
ANSWERS = "answers"  # beside the weights in a student's file: how many it learned from
Tell = Callable[[str], None]


@dataclass(frozen=True)
class StudyWish:
    """The settings of one study."""

    answers: AnswersWish
    questions: int = DEFAULT_QUESTIONS_ITEMS
    seed: int = 0
    folder: Path | None = None  # for answers and weights; None: nothing is written, nor read


def study(
    wish: StudyWish, source: Source, examples: DataFile, split: Callable[[ModelSpec], Dataset], tell: Tell
) -> tuple[Classifier, Dataset]:
    """Find out what a closed model answers, and return its student as a classifier, with the data it was made on.

    Raises:
        ConfigError, ModelError: the model cannot be asked, or no student agrees with it.
        DataError: the data do not fit it.
    """
    if wish.questions < MIN_QUESTIONS_ITEMS:
        raise ModelError(f"--questions {wish.questions}: a student takes {MIN_QUESTIONS_ITEMS} answers at least")
    model = open_answers(wish.answers)
    source = on_the_wire(source, model)
    probe = probed(source, examples)
    answer = model.ask(probe)
    form = form_of(
        answer,
        len(probe),
        source=f"--answers {model.reference}",
        wanted=source.output,
        names=model.names or source.labels,
        numbers=model.numbers,
    ).with_classes(int(examples.labelled().max()) + 1)
    source = replace(source, output_name=source.output_name or model.answered_as() or model.output_name)
    spec = spec_of(source, form)
    data = split(spec)
    grid = grid_for(replace(source.input_spec, grid=data.values().grid))
    kept = KeptAnswers(model, form, spec.input.box, wish.folder)
    check_same(kept, {WIRE: probe, SHARES: form.shares(answer, len(probe))})
    learning = np.concatenate([data.part(Split.HEADS).images, data.part(Split.COMBINER).images])
    learning = learning[: max(1, int(wish.questions * MAX_CLEAN_SHARE))]
    key = student_key(wish, model, form, learning, grid)
    student, answers = taught(wish, kept, learning, grid, key, tell)
    found = compared(kept, student, data.part(Split.TEST).images[:COMPARED_ITEMS], key, answers)
    check_agreement(found, wish.questions)
    return opened(source, form, kept, student, found), data


def on_the_wire(source: Source, model: ClosedModel) -> Source:
    """Return the source with what the model says of its input. Raises ModelError where the data do not fit it."""
    shape = source.item_shape
    sizes = model.sizes
    axes = axes_of(shape)
    layout = axes.layouts[0]
    if sizes is not None and not fits(sizes, shape):
        if axes.last is None or not fits(sizes, in_layout(shape, axes.last)):
            raise ModelError(
                f"--answers {model.reference} takes items of shape {['any' if s is None else s for s in sizes]}; the "
                f"data's items have shape {list(shape)}{BRING}"
            )
        layout = axes.last
    bytes_box = model.datatype == "UINT8" and source.box.is_unit
    source = replace(
        source,
        low=(0.0,) if bytes_box else source.low,
        high=(255.0,) if bytes_box else source.high,
        input_name=source.input_name or model.input_name or "input",
        datatype=model.datatype,
        layout=layout,
        labels=source.labels or model.names,
    )
    return replace(source, datatype=wire_type(source))


def fits(sizes: tuple[int | None, ...], shape: tuple[int, ...]) -> bool:
    """Tell whether sizes, of which some are open, can hold items of a shape."""
    return len(sizes) == len(shape) and all(size in (None, own) for size, own in zip(sizes, shape, strict=True))


def spec_of(source: Source, form: AnswerForm) -> ModelSpec:
    """Return the specification of a closed model on the wire; it has no fingerprint before there is a student."""
    name, _, version = source.serves.partition(":")
    kind = form.kind
    output = OutputSpec(source.output_name or kind, kind, form.classes, named(source, form.classes), form.single)
    return ModelSpec(name, version, "", source.input_spec, output)


def probed(source: Source, examples: DataFile) -> NDArray[np.float32]:
    """Return a few of the data's own items as the wire has them, from all places: tables are often sorted by class.

    Raises:
        DataError: the data do not fit.
    """
    every = wire_parts(examples.images[:], source.input_spec, examples.source, layout=examples.layout)
    items = len(examples)
    chosen = np.linspace(0, items - 1, min(items, PROBED_ITEMS)).round().astype(np.int64)
    found = [wire[chosen[(chosen >= part.start) & (chosen < part.stop)] - part.start] for part, wire in every]
    return np.concatenate(found)


def student_key(
    wish: StudyWish, model: ClosedModel, form: AnswerForm, learning: NDArray[np.float32], grid: Grid
) -> str:
    """Return the cache key of a student's weights: all that they follow from."""
    items = (learning.shape, learning.tobytes())
    given = (model.identity, form.key, wish.questions, wish.seed, grid, cache_key(items, ()))
    return cache_key(given, (blank_student.__module__,))[:24]


def taught(
    wish: StudyWish, kept: KeptAnswers, learning: NDArray[np.float32], grid: Grid, key: str, tell: Tell
) -> tuple[nn.Module, int]:
    """Return the student from its file, or distil and keep it; and the number of answers that it learned from."""
    if wish.folder is not None and (known := remembered(wish.folder, key, kept.form, kept.box.axes)) is not None:
        return known
    tell(f"asking {kept.model.by}, about {wish.questions:,} items (--questions)")
    generator = torch.Generator().manual_seed(wish.seed)
    with one_thread():
        student, answers = distil(kept, learning, grid=grid, questions=wish.questions, generator=generator, tell=tell)
    if wish.folder is not None:
        weights = {name: value.numpy() for name, value in student.state_dict().items()}
        write_arrays(file_of(wish.folder, key), {**weights, ANSWERS: np.asarray(answers)})
    return student, answers


def file_of(folder: Path, key: str) -> Path:
    return folder / f"student-{key}.npz"


def remembered(folder: Path, key: str, form: AnswerForm, axes: int) -> tuple[nn.Module, int] | None:
    """Return the student whose weights lie in the folder, and its number of answers; None where there are none."""
    arrays = read_arrays(file_of(folder, key))
    if arrays is None or ANSWERS not in arrays or arrays["mean"].ndim != axes:
        return None
    answers = int(arrays.pop(ANSWERS))
    student = blank_student(tuple(arrays["mean"].shape), form.classes)
    student.load_state_dict({name: torch.from_numpy(value) for name, value in arrays.items()})
    return student.eval().requires_grad_(False), answers


def compared(kept: KeptAnswers, student: nn.Module, images: NDArray[np.float32], key: str, questions: int) -> Study:
    """Compare student and model on held-out clean items."""
    theirs = kept.predict(images)
    with torch.no_grad():
        own = student(torch.from_numpy(images)).argmax(dim=1).numpy()
    shares = [np.bincount(named, minlength=kept.form.classes) / max(len(images), 1) for named in (theirs, own)]
    agreed = float((theirs == own).mean()) if len(images) else 0.0
    chance = float(shares[0] @ shares[1])
    model = kept.model
    return Study(model.reference, model.by, questions, len(images), agreed, chance, key, model.identity)


def check_same(kept: KeptAnswers, fresh: Mapping[str, NDArray[np.float32]] | None = None) -> None:
    """Check that a model answers as when its answers were kept, on the items of a probe that was kept with them.

    A function's code and a server's address stay the same when the model behind them is trained anew. `fresh` is a
    probe with its answers; it is kept where none was, and is asked about but once.

    Raises:
        ModelError: it names other classes.
    """
    if kept.file is None:
        return
    file = kept.file.with_suffix(".npz")
    known = read_arrays(file)
    if known is None or not {WIRE, SHARES} <= known.keys():
        if fresh is not None:
            write_arrays(file, fresh)
        return
    is_asked = fresh is not None and np.array_equal(fresh[WIRE], known[WIRE])
    shares = fresh[SHARES] if fresh is not None and is_asked else kept.ask(known[WIRE])
    now, then = shares.argmax(axis=1), known[SHARES].argmax(axis=1)
    if float((now != then).mean()) > MAX_CHANGED_SHARE:
        raise ModelError(
            f"--answers {kept.model.reference} answers otherwise than when its answers were kept: it names another "
            f"class for {int((now != then).sum())} of {len(now)} items; train anew: remove {file.parent.parent}, or "
            "name another --out"
        )


def check_agreement(found: Study, wanted: int) -> None:
    """Check that a student knows its model well enough, after so many questions. Raises ModelError."""
    if found.agreed >= MIN_AGREED_SHARE and found.beyond_chance >= MIN_BEYOND_CHANCE_SHARE:
        return
    raise ModelError(
        f"the student names the same class as {found.model} on {found.agreed:.1%} of {found.items:,} held-out clean "
        f"items, {found.beyond_chance:.0%} of what chance leaves; wanted {MIN_AGREED_SHARE:.0%} and "
        f"{MIN_BEYOND_CHANCE_SHARE:.0%}, or the guard would watch another model: ask it more (--questions "
        f"{10 * wanted}), bring more clean data, state each feature's own range (--mean, --std), or name an "
        "output of probabilities instead of labels (--output-name)"
    )


def opened(source: Source, form: AnswerForm, kept: KeptAnswers, student: nn.Module, found: Study) -> Classifier:
    """Return the student as a classifier that knows who answers, and by which numbers the classes go on the wire."""
    source = replace(source, numbers=kept.model.numbers)
    classifier = open_student(source, student, form.kind, single=form.single)
    return replace(classifier, answering=Answering(kept.predict, found))


def reopen(wish: StudyWish, source: Source, spec: ModelSpec, found: Study) -> Classifier:
    """Reopen the student of a bundle, and what answers for its model.

    Raises:
        BundleError: the student's weights are gone.
        ConfigError, ModelError: the closed model cannot be found.
    """
    model = open_answers(wish.answers)
    output = spec.output
    form = AnswerForm(
        f"--answers {model.reference}",
        output.kind,  # type: ignore[arg-type]  # written by a study
        output.classes,
        output.single,
        model.names or output.labels,
        model.numbers,
    )
    if model.identity != found.identity:
        raise ModelError(
            f"--answers {model.reference} is no longer the model that the bundle was made for: its file or code has "
            "changed; train a new bundle"
        )
    kept = KeptAnswers(model, form, spec.input.box, wish.folder)
    check_same(kept)
    folder = wish.folder or Path()
    known = remembered(folder, found.key, form, len(spec.input.shape))
    if known is None:
        raise BundleError(
            f"{file_of(folder, found.key)} is gone or damaged, the student that the bundle was made with; train "
            "the bundle again"
        )
    return opened(on_the_wire(source, model), form, kept, known[0], found)
