"""The explanation of a verdict: where the model looked, what it and others answered otherwise, what it is like.

How it works. The programs of a bundle compute what the detectors read, an input gradient and the answers to denoised
and steered inputs and of second networks. To explain items they run once more, every one of them, and hand these over
beside the scores. A bundle whose detectors read no gradient (preset `fast`) has no map, and one without further answers
no opinions; neither is an error.

Rule 1: an explanation is the served programs' own; nothing is computed in another way than for the verdict.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from guard.cascade import Readings, Run
from guard.errors import BundleError
from guard.fusion import Floats
from guard.runtime import Runtime

NEAREST_ITEMS = 3
MAP_STEPS = 255  # of a map, from none to the most


@dataclass(frozen=True)
class Opinion:
    """A further answer to an item: the class that it names, and how sure it is."""

    name: str
    prediction: int
    probability: float  # of the class that it names
    model_class_probability: float  # that it gives to the class that the model names


@dataclass(frozen=True)
class NearestItem:
    """A clean item that the bundle keeps, among those that the model answers most alike."""

    sample: int  # its number in samples.npz
    distance: float  # between the two answers' logits
    prediction: int
    p_value: float


@dataclass(frozen=True, eq=False)
class Explanation:
    """What explains the verdict on one item."""

    readings: Readings  # of this item alone, every program run
    detectors: tuple[str, ...]  # of the readings' scores, in their order
    probability: float  # of the class that the model names
    saliency: NDArray[np.uint8] | None  # [height, width], [time] or [feature], MAP_STEPS at the most; None: no gradient
    opinions: tuple[Opinion, ...]
    nearest: tuple[NearestItem, ...]  # the nearest first

    @property
    def prediction(self) -> int:
        """The class that the model names."""
        return int(self.readings.prediction[0])


def explain(runtime: Runtime, images: NDArray[Any]) -> list[Explanation]:
    """Explain wire inputs [item, ...], one after the other. Raises DataError where they are not the model's input."""
    runtime.cascade.check_images(images)
    return [explained(runtime, images[place : place + 1]) for place in range(len(images))]


def explained(runtime: Runtime, image: NDArray[Any]) -> Explanation:
    """Explain one wire input [1, ...]."""
    found: dict[str, NDArray[Any]] = {}
    answers: list[tuple[str, Floats]] = []
    runs = [explaining_run(runtime, place, found, answers) for place in range(len(runtime.sessions))]
    readings = runtime.cascade.follow(image, runs, complete=True)
    logits = readings.logits[0].astype(np.float64)
    model_class = int(logits.argmax())
    return Explanation(
        readings,
        runtime.calibration.detectors,
        float(softmax(logits)[model_class]),
        saliency_map(found["gradient"][0]) if "gradient" in found else None,
        tuple(opinion(name, one, model_class) for name, one in dict(answers).items()),
        nearest_items(runtime, logits),
    )


def explaining_run(
    runtime: Runtime, place: int, found: dict[str, NDArray[Any]], answers: list[tuple[str, Floats]]
) -> Run:
    """The program of a place as a function that leaves its gradient in `found` and its opinions in `answers`."""
    session, spec = runtime.sessions[place], runtime.programs[place]
    there = {output.name: output.shape for output in session.session.get_outputs()}
    wanted = [name for name in ("gradient", "opinions") if name in there]
    if ("opinions" in there) != bool(spec.opinions) or there.get("opinions", [0, 0])[1] != len(spec.opinions):
        raise BundleError(f"{spec.file} gives other opinions than {', '.join(spec.opinions) or 'none'}, as is promised")

    def run(images: NDArray[Any]) -> list[NDArray[Any]]:
        values = dict(zip(wanted, (rest := session.run(("logits", "scores", *wanted), images))[2:], strict=True))
        if "gradient" in values:
            found.setdefault("gradient", values["gradient"])
        if "opinions" in values:
            answers.extend(zip(spec.opinions, values["opinions"][0].astype(np.float64), strict=True))
        return rest[:2]

    return run


def opinion(name: str, logits: Floats, model_class: int) -> Opinion:
    """The opinion that logits [class] hold, beside the class that the model names."""
    shares = softmax(logits)
    return Opinion(name, int(shares.argmax()), float(shares.max()), float(shares[model_class]))


def softmax(logits: Floats) -> Floats:
    """Probabilities [class] of logits [class]."""
    shares = np.exp(logits - logits.max())
    return np.asarray(shares / shares.sum())


def saliency_map(gradient: NDArray[Any]) -> NDArray[np.uint8]:
    """The size of an input gradient [channel, ...] at each place, the largest of its channels, as levels of the most.

    For example sizes 0, 0.5 and 2 become 0, 64 and 255. Of a table's row [feature] every feature is a place.
    """
    sizes = np.abs(np.nan_to_num(np.asarray(gradient, dtype=np.float64)))
    places = sizes.max(axis=0) if sizes.ndim > 1 else sizes
    most = float(places.max())
    levels = places * (MAP_STEPS / most) if most > 0 else places
    return np.rint(levels).astype(np.uint8)


def nearest_items(runtime: Runtime, logits: Floats) -> tuple[NearestItem, ...]:
    """The bundle's own clean samples that the model answers most as it answered `logits` [class]."""
    samples = runtime.bundle.samples
    distances = np.linalg.norm(samples.logits - logits, axis=1)
    return tuple(
        NearestItem(
            int(place),
            float(distances[place]),
            int(samples.logits[place].argmax()),
            float(samples.p_values[place]),
        )
        for place in np.argsort(distances, kind="stable")[:NEAREST_ITEMS]
    )


def reduced(saliency: NDArray[np.uint8], longest: int) -> NDArray[np.uint8]:
    """A map whose sides are at most `longest`, each place the most of those that it stands for.

    For example a side of 300 at most 128 long becomes 100: three places are one.
    """
    for axis, side in enumerate(saliency.shape):
        step = -(-side // longest)
        if step > 1:
            saliency = np.maximum.reduceat(saliency, np.arange(0, side, step), axis=axis)
    return saliency


def shaded(saliency: NDArray[np.uint8], longest: int = 32) -> list[str]:
    """A map of two axes as lines of text, two letters a place, darker where it is larger."""
    shades = " .:-=+*#%@"
    small = reduced(saliency, longest)
    return ["".join(2 * shades[int(value) * len(shades) // (MAP_STEPS + 1)] for value in row) for row in small]
