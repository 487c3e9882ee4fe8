"""Shapley values in closed form against captum."""

from __future__ import annotations

import captum.attr
import torch
from torch import nn

from guard.offline.detectors.shap_signature import MAX_SIGNATURE_CLASSES, Signature, fit_signature


def test_a_signature_holds_the_shapley_values_of_the_linear_layer() -> None:
    generator = torch.Generator().manual_seed(0)
    layer = nn.Linear(5, 3).requires_grad_(False)
    neurons = torch.randn(60, 5, generator=generator)
    signature = fit_signature(neurons, layer(neurons))
    torch.testing.assert_close(signature.weight, layer.weight.data, rtol=1e-4, atol=1e-5)
    mean = neurons.mean(dim=0, keepdim=True)
    for place in range(3):
        reference = captum.attr.ShapleyValues(layer).attribute(neurons[:4], baselines=mean, target=place)
        found = signature(neurons[:4], layer(neurons[:4])).unflatten(1, (3, 5))[:, place]
        torch.testing.assert_close(found, reference, rtol=1e-3, atol=1e-4)


def test_a_signature_of_many_classes_is_that_of_the_likeliest() -> None:
    generator = torch.Generator().manual_seed(0)
    weight, neurons = torch.randn(30, 4, generator=generator), torch.randn(6, 4, generator=generator)
    signature = Signature(weight, torch.zeros(4))
    logits = neurons @ weight.T
    found = signature(neurons, logits).unflatten(1, (MAX_SIGNATURE_CLASSES, 4))
    likeliest = logits.topk(MAX_SIGNATURE_CLASSES, dim=1)
    torch.testing.assert_close(found.sum(dim=2), likeliest.values, rtol=1e-4, atol=1e-4)
