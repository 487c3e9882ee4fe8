"""The form in which a closed model answers, read from its first answers, and all later ones as shares of classes.

Rule 1: an answer of another form is an error that says what came; nothing is guessed.

Example: labels [2, 0] of three classes are the shares [[0, 0, 1], [1, 0, 0]]; probabilities stay as they are; scores of
another scale (votes, log-odds, a decision function) count by their largest alone.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from guard.errors import ModelError

Kind = Literal["probabilities", "logits", "label"]
SUM_TOLERANCE = 1e-3  # by which the probabilities of an item may miss 1
MAX_LABEL_CLASSES = 10_000  # that labels as numbers may tell apart: more are no classes


@dataclass(frozen=True)
class AnswerForm:
    """The form of a closed model's output: probabilities or scores of each class, one number of two, or labels."""

    source: str  # for messages
    kind: Kind
    classes: int
    single: bool = False  # one number an item: the probability of class 1 of 2
    names: tuple[str, ...] = ()  # of the classes, where labels are words
    numbers: tuple[int, ...] = ()  # labels by class, where they do not run from 0

    @property
    def key(self) -> tuple[object, ...]:
        """What shares follow from, whatever path the model was named by."""
        return self.kind, self.classes, self.single, self.names, self.numbers

    def shares(self, answer: NDArray[Any], items: int) -> NDArray[np.float32]:
        """Return an answer to so many items as shares [item, class]. Raises ModelError for an answer of other form."""
        values = np.asarray(answer)
        columns = 1 if self.kind == "label" or self.single else self.classes
        if values.size != items * columns or (values.ndim and len(values) != items):
            raise ModelError(
                f"{self.source} answered {items} items with {list(values.shape)}; wanted [{items}, {columns}], as it "
                "answered first: one answer an item, whatever the others of its batch are"
            )
        if self.kind == "label":
            return one_hot(self.places(values.ravel()), self.classes)
        scores = finite(values, self.source).reshape(items, columns)
        if self.kind == "logits":
            return one_hot(scores.argmax(axis=1), self.classes)
        self.check_shares(scores)
        shares = np.concatenate([1 - scores, scores], axis=1).clip(0, 1) if self.single else scores
        return shares.astype(np.float32)

    def check_shares(self, scores: NDArray[np.float64]) -> None:
        """Check that scores [item, column] are the probabilities that the first answers were. Raises ModelError."""
        outside = (scores < -SUM_TOLERANCE) | (scores > 1 + SUM_TOLERANCE)
        if outside.any():
            raise ModelError(
                f"{self.source} answers with {scores[outside][0]:g}, where its first answers were probabilities; "
                "wanted numbers from 0 to 1, or, where they are labels, --output label; else another output "
                "(--output-name)"
            )
        sums = scores.sum(axis=1)
        if not self.single and (np.abs(sums - 1) > SUM_TOLERANCE).any():
            odd = sums[np.abs(sums - 1).argmax()]
            raise ModelError(
                f"{self.source} gives an item numbers that sum to {odd:g}, where those of its first answers summed to "
                "1; wanted probabilities of one class an item, or labels: name such an output with --output-name"
            )

    def places(self, labels: NDArray[Any]) -> NDArray[np.int64]:
        """Return labels as numbers of classes [item]. Raises ModelError for one that no class has."""
        words = labels.dtype.kind in "OSU"
        known: dict[Any, int] = {}
        if words:
            known = {name: place for place, name in enumerate(self.names)}
            given = [one.decode("utf-8", "replace") if isinstance(one, bytes) else str(one) for one in labels.tolist()]
        else:
            known = {number: place for place, number in enumerate(self.numbers or range(self.classes))}
            given = finite(labels, self.source).tolist()
        if strange := [label for label in given if label not in known]:
            shown = ", ".join(str(name) for name in list(known)[:12])
            flag = "--output probabilities, as it seems to be" if 0 < as_number(strange[0]) < 1 else "--output-name"
            raise ModelError(
                f"{self.source} names the class {strange[0]!r}; known are {shown}: give data that hold every class, or "
                f"an output of probabilities ({flag})"
            )
        return np.asarray([known[label] for label in given], dtype=np.int64)

    def with_classes(self, classes: int) -> AnswerForm:
        """Return a form of labels for at least so many classes; that of scores knows its number of classes itself."""
        return self if self.kind != "label" else replace(self, classes=max(self.classes, classes))


def form_of(
    answer: NDArray[Any],
    items: int,
    *,
    source: str,
    wanted: str = "logits",
    names: Sequence[str] = (),
    numbers: Sequence[int] = (),
) -> AnswerForm:
    """Tell the form of a model's first answer, to so many items.

    `wanted` is the user's word on the output, of which logits mean nothing in particular; `names` and `numbers` are the
    labels by class, as far as they are known. Lone numbers that are whole throughout are labels, also as floats.

    Raises:
        ModelError: it is neither one score a class nor one label an item.
    """
    values = np.asarray(answer)
    if values.ndim > 2 and len(values) == items and values[0].size == max(values.shape[1:]):
        values = values.reshape(items, -1)  # axes of one beside that of the classes
    if values.ndim not in (1, 2) or len(values) != items:
        raise ModelError(
            f"{source} answered {items} items with {list(values.shape)}; wanted [{items}, class] or [{items}]: "
            "one answer an item, or another output (--output-name)"
        )
    columns = 1 if values.ndim == 1 else int(values.shape[1])
    if columns > 1:
        scores = finite(values, source)
        shares = bool((scores >= -SUM_TOLERANCE).all() and (np.abs(scores.sum(axis=1) - 1) <= SUM_TOLERANCE).all())
        return AnswerForm(source, "probabilities" if shares else "logits", columns, names=tuple(names))
    flat = values.ravel()
    if flat.dtype.kind in "OSU":
        if not names:
            raise ModelError(
                f"{source} answers with words ({str(flat[0])[:40]!r}); wanted the names of the classes in the model's "
                "order: label the data with the same words"
            )
        return AnswerForm(source, "label", max(len(names), 2), names=tuple(names))
    whole = finite(flat, source)
    are_whole = bool((whole == np.rint(whole)).all())
    may_be_shares = flat.dtype.kind == "f" and bool(((whole >= 0) & (whole <= 1)).all())
    if may_be_shares and (wanted == "probabilities" or (wanted != "label" and not are_whole)):
        return AnswerForm(source, "probabilities", 2, single=True, names=tuple(names))
    if not are_whole or whole.max() >= MAX_LABEL_CLASSES or whole.min() < 0:
        raise ModelError(
            f"{source} answers with one number an item, {whole.min():g} to {whole.max():g}; wanted a label from 0 on, "
            "the probability of class 1 of two, or one score a class: name such an output with --output-name"
        )
    most = max(2, len(numbers) or len(names) or int(whole.max()) + 1)
    return AnswerForm(source, "label", most, names=tuple(names), numbers=tuple(numbers))


def finite(values: NDArray[Any], source: str) -> NDArray[np.float64]:
    """Return numbers in double precision. Raises ModelError where they are none, NaN or infinity."""
    try:
        found = np.asarray(values, dtype=np.float64)
    except (TypeError, ValueError) as error:
        raise ModelError(f"{source} answers with {values.dtype}; wanted numbers, or words as labels") from error
    if not bool(np.isfinite(found).all()):
        raise ModelError(f"{source} answers with NaN or infinity; wanted a class for every item of the data")
    return found


def as_number(label: float | str) -> float:
    """Return a label that is a number; 0 of one that is a word."""
    return label if isinstance(label, float) else 0.0


def one_hot(classes: NDArray[np.int64], count: int) -> NDArray[np.float32]:
    """Return classes [item] as shares [item, class]: 1 for each item's class, 0 for the others."""
    return np.asarray(np.eye(count, dtype=np.float32)[classes])
