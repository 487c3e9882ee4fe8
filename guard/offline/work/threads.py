"""Number of threads that torch runs on: more are slower where a network is small or the machine is busy."""

from __future__ import annotations

import os
import time
from collections.abc import Callable

import torch
from torch import Tensor

TIMED_TRIES = 5


def choose_threads(model: Callable[[Tensor], Tensor], images: Tensor, wanted: int | None = None) -> int:
    """Set and return `wanted`, or else the quicker of one thread and all cores, by forward and gradient of a batch."""
    candidates = sorted({1, os.cpu_count() or 1}) if wanted is None else [wanted]
    quickest = min(candidates, key=lambda threads: time_gradient(model, images, threads))
    torch.set_num_threads(quickest)
    return quickest


def time_gradient(model: Callable[[Tensor], Tensor], images: Tensor, threads: int) -> float:
    """Return the median seconds of a forward and a backward to the input."""
    torch.set_num_threads(threads)
    seconds = []
    for _ in range(TIMED_TRIES):
        began = time.perf_counter()
        watched = images.detach().requires_grad_(True)
        torch.autograd.grad(model(watched).sum(), watched)
        seconds.append(time.perf_counter() - began)
    return sorted(seconds)[TIMED_TRIES // 2]
