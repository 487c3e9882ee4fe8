"""Surrogate derivatives of the adaptive attack, in one place, for the served steps that have no useful derivative.

Rule 1: a surrogate changes derivatives and never a value: what is attacked is what is served.

Source: Athalye et al. 2018, arXiv:1802.00420 (backward pass differentiable approximation, expectation over
transformation).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import onnx

from guard.offline.denoisers.stand_in import StandIn
from guard.offline.detectors.detector import Detector

RANDOM_OPERATORS = {
    "RandomNormal",
    "RandomNormalLike",
    "RandomUniform",
    "RandomUniformLike",
    "Multinomial",
    "Bernoulli",
}
NOTHING_DRAWN = "expectation over randomness: none needed, no operator of the served programs draws anything"


# Surrogates of the guard itself, whatever its detectors are.
EVERY_GUARD = (
    StandIn("rounding to the data's grid", "the identity (straight-through)"),
    StandIn("rank among clean scores", "the slope of this step's piece between quantiles"),
    StandIn("programs that stop early", "the largest excess of all programs"),
    StandIn("jitter that breaks ties, from the item's hash", "left out, below float tolerance"),
)


def stand_ins_of(detectors: Iterable[Detector]) -> tuple[str, ...]:
    """List in words what an attack on these detectors differentiates in place of the served steps."""
    found = dict.fromkeys(EVERY_GUARD)
    for detector in detectors:
        found |= dict.fromkeys(detector.stand_ins)
        for need in detector.needs:
            found |= dict.fromkeys(need.stand_ins)
    return tuple(map(str, found))


def drawing(graphs: Mapping[str, bytes]) -> Mapping[str, tuple[str, ...]]:
    """Return the random operators of each served program by its name; an attack would have to average over their draws.

    The noise of `NoisedGradients` is a constant of the program, the same for every request: nothing is averaged there.
    """
    found = {}
    for name, content in graphs.items():
        graph = onnx.load_from_string(content).graph
        if drawn := tuple(sorted(RANDOM_OPERATORS & {node.op_type for node in graph.node})):
            found[name] = drawn
    return found


def expectation(graphs: Mapping[str, bytes]) -> str:
    """State that nothing has to be averaged. Raises ValueError where a program draws: this attack does not average."""
    if drawn := drawing(graphs):
        named = "; ".join(f"{name}: {', '.join(operators)}" for name, operators in drawn.items())
        raise ValueError(f"the served programs draw at random ({named}); the adaptive attack must average over that")
    return NOTHING_DRAWN
