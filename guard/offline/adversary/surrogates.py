"""Which derivative an attacker who knows the guard uses where the served guard has none, all of them in one place.

Rule 1: a surrogate changes derivatives and never a value: what is attacked is what is served.

Source: Athalye et al. 2018, arXiv:1802.00420 (backward pass differentiable approximation, expectation over
transformation).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

import onnx

from guard.offline.denoisers.bit_depth import BitDepth
from guard.offline.denoisers.median import Median
from guard.offline.detectors.detector import Detector
from guard.offline.evidence.needs import DenoisedLogits, InputGradient, Need, NoisedGradients, SteeredLogits

RANDOM_OPERATORS = {
    "RandomNormal",
    "RandomNormalLike",
    "RandomUniform",
    "RandomUniformLike",
    "Multinomial",
    "Bernoulli",
}
NOTHING_DRAWN = "expectation over randomness: none needed, no operator of the served programs draws anything"


@dataclass(frozen=True)
class Surrogate:
    """One step of the guard, and what stands in for its derivative."""

    step: str
    stand_in: str
    used: Callable[[Detector], bool]

    def __str__(self) -> str:
        return f"{self.step}: {self.stand_in}"


def needing(*kinds: type[Need]) -> Callable[[Detector], bool]:
    return lambda detector: any(isinstance(need, kinds) for need in detector.needs)


def squeezing(kind: type) -> Callable[[Detector], bool]:
    return lambda detector: any(isinstance(n, DenoisedLogits) and isinstance(n.denoiser, kind) for n in detector.needs)


def called(*names: str) -> Callable[[Detector], bool]:
    return lambda detector: detector.name in names


def always(detector: Detector) -> bool:
    del detector  # each is behind this step
    return True


SURROGATES: tuple[Surrogate, ...] = (
    Surrogate("rounding to the data's grid", "the identity (straight-through)", always),
    Surrogate("rounding to fewer grey levels", "the identity (straight-through)", squeezing(BitDepth)),
    Surrogate("median", "the pixel that is the median, through minima and maxima", squeezing(Median)),
    Surrogate("ReLU's step in an input gradient", "softplus of sharpness 10", needing(InputGradient, NoisedGradients)),
    Surrogate("sign of an input gradient or a residual", "zero: its factors carry it", called("summary_classifier")),
    Surrogate("sorted distances to neighbours", "this step's neighbours, held", called("lid")),
    Surrogate(
        "class that the model names",
        "this step's class, held",
        called("mahalanobis", "kernel_density", "summary_classifier"),
    ),
    Surrogate("class that steering strengthens", "this step's class, held", needing(SteeredLogits)),
    Surrogate("class whose gradient is taken", "this step's class, held", needing(InputGradient, NoisedGradients)),
    Surrogate("rank among clean scores", "the slope of this step's piece between quantiles", always),
    Surrogate("programs that stop early", "the largest excess of all programs", always),
    Surrogate("jitter that breaks ties, from the item's hash", "left out, below float tolerance", always),
)


def surrogates_of(detectors: Iterable[Detector]) -> tuple[str, ...]:
    """What an attack on these detectors differentiates in place of the served steps, in words."""
    known = tuple(detectors)
    return tuple(str(surrogate) for surrogate in SURROGATES if any(map(surrogate.used, known)))


def drawing(graphs: Mapping[str, bytes]) -> Mapping[str, tuple[str, ...]]:
    """The random operators of each served program, by its name; an attack would have to average over what they draw.

    The noise of `NoisedGradients` is a constant of the program, the same for every request: nothing is averaged there.
    """
    found = {}
    for name, content in graphs.items():
        graph = onnx.load_from_string(content).graph
        if drawn := tuple(sorted(RANDOM_OPERATORS & {node.op_type for node in graph.node})):
            found[name] = drawn
    return found


def expectation(graphs: Mapping[str, bytes]) -> str:
    """Says that nothing has to be averaged. Raises ValueError where a program draws: this attack does not average."""
    if drawn := drawing(graphs):
        named = "; ".join(f"{name}: {', '.join(operators)}" for name, operators in drawn.items())
        raise ValueError(f"the served programs draw at random ({named}); the adaptive attack must average over that")
    return NOTHING_DRAWN
