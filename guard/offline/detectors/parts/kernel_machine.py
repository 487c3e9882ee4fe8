"""Support vector machine with a Gaussian kernel, fitted by scikit-learn and written as tensor operations."""

from __future__ import annotations

import torch
from sklearn.svm import SVC
from torch import Tensor, nn

FIT_ITEMS = 2000  # a kernel machine's time grows with the square of its items


class KernelMachine(nn.Module):
    """Module that maps numbers [item, feature] to the decision function [item] of a support vector machine."""

    def __init__(self, vectors: Tensor, coefficients: Tensor, bias: Tensor, gamma: Tensor) -> None:
        super().__init__()
        self.register_buffer("vectors", vectors)  # [vector, feature]
        self.register_buffer("coefficients", coefficients)  # [vector]
        self.register_buffer("bias", bias)
        self.register_buffer("gamma", gamma)
        self.vectors: Tensor
        self.coefficients: Tensor
        self.bias: Tensor
        self.gamma: Tensor

    def forward(self, numbers: Tensor) -> Tensor:
        apart = numbers.square().sum(dim=1, keepdim=True) + self.vectors.square().sum(dim=1)
        squared = apart - 2.0 * numbers @ self.vectors.T
        return torch.exp(-self.gamma * squared.clamp_min(0.0)) @ self.coefficients + self.bias


def fit_machine(numbers: Tensor, attacked: Tensor, weights: Tensor, generator: torch.Generator) -> KernelMachine:
    """Fit a machine to tell attacked items from others: numbers [item, feature], truth [item] and weights [item]."""
    drawn = torch.randperm(len(numbers), generator=generator)[:FIT_ITEMS]
    machine = fitted_svc(numbers[drawn], attacked[drawn], weights[drawn])
    return KernelMachine(
        torch.from_numpy(machine.support_vectors_).float(),
        torch.from_numpy(machine.dual_coef_[0]).float(),
        torch.tensor(float(machine.intercept_[0])),
        torch.tensor(float(machine._gamma)),
    )


def fitted_svc(numbers: Tensor, attacked: Tensor, weights: Tensor) -> SVC:
    """Return scikit-learn's own machine, its kernel as wide as the numbers scatter."""
    machine = SVC(kernel="rbf", gamma="scale")
    return machine.fit(numbers.double().numpy(), attacked.numpy(), sample_weight=weights.double().numpy())
