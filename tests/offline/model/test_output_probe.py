"""Probabilities of a form that the graph does not show are told from logits by their values."""

from __future__ import annotations

import sys
import types
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from guard.errors import ModelError
from guard.offline.model.classifier import Classifier
from guard.offline.model.open_model import Source, open_model
from tests.offline.model.test_sigmoids import Ends

Function = Callable[[Tensor], Tensor]
SUM_TO_ONE: dict[str, tuple[Function, int]] = {
    "two softmaxes": (lambda z: (z.softmax(1) + (2 * z).softmax(1)) / 2, 3),
    "of squares": (lambda z: z.square() / z.square().sum(1, keepdim=True), 3),
    "softmax, clipped": (lambda z: z.softmax(1).clamp(1e-7, 1 - 1e-7), 3),
    "of softplus": (lambda z: nn.functional.softplus(z) / nn.functional.softplus(z).sum(1, keepdim=True), 3),
    "softmax, in another order": (lambda z: z.softmax(1).flip(1), 3),
}
SQUEEZED: dict[str, tuple[Function, int]] = {
    "sigmoids, clipped": (lambda z: z.sigmoid().clamp(1e-6, 1 - 1e-6), 3),
    "hard sigmoids": (nn.functional.hardsigmoid, 3),
    "sigmoids, in another order": (lambda z: z.sigmoid().flip(1), 3),
    "half a sigmoid": (lambda z: 0.5 * z.sigmoid(), 3),
    "one hard sigmoid": (nn.functional.hardsigmoid, 1),
    "a distance's exponential": (lambda z: torch.exp(-z.square()), 3),
}
LOGITS: dict[str, tuple[Function, int]] = {
    "small": (lambda z: 0.01 * z + 0.5, 3),
    "rectified": (lambda z: (0.01 * z + 0.3).relu(), 3),
    "gated": (lambda z: (0.01 * z + 0.5) * z.sigmoid(), 3),
    "log-softmax": (lambda z: z.log_softmax(1), 3),
    "one small number": (lambda z: 0.01 * z + 0.5, 1),
    "squeezed and spread": (lambda z: 3 * z.tanh(), 3),
}


def opened(ending: Function, outputs: int, monkeypatch: pytest.MonkeyPatch, **settings: str) -> Classifier:
    module = types.ModuleType("probed")
    monkeypatch.setattr(module, "model", lambda: Ends(ending, outputs), raising=False)
    monkeypatch.setitem(sys.modules, "probed", module)
    return open_model(Source("probed:model", (4,), **settings))  # type: ignore[arg-type]


@pytest.mark.parametrize("name", SUM_TO_ONE)
def test_rows_that_sum_to_one_are_no_logits(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    words = r"each row of the model's output sums to 1.*--output probabilities takes off.*as --output logits.*--answers"
    with pytest.raises(ModelError, match=words):
        opened(*SUM_TO_ONE[name], monkeypatch)
    with pytest.raises(ModelError, match=r"wanted a softmax.*numbers from which.*as --output logits.*--answers"):
        opened(*SUM_TO_ONE[name], monkeypatch, output="probabilities")


@pytest.mark.parametrize("name", SQUEEZED)
def test_rows_that_are_squeezed_into_the_unit_interval_are_no_logits(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    words = r"lie in \[0, 1\], behind aten\.\w+\.default.*several at once; wanted logits"
    with pytest.raises(ModelError, match=rf"{words}|goes on computing with its probability"):
        opened(*SQUEEZED[name], monkeypatch)


@pytest.mark.parametrize("name", LOGITS)
def test_logits_are_taken_whatever_their_size(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    ending, outputs = LOGITS[name]
    classifier = opened(ending, outputs, monkeypatch)
    items = torch.rand(5, 4, generator=torch.Generator().manual_seed(0))
    expected = Ends(ending, outputs)(items).detach()
    found = classifier(items)
    torch.testing.assert_close(found if outputs > 1 else found[:, 1:] - found[:, :1], expected)
