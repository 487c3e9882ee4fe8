"""Engine that attacks run the model on: torch, or ONNX Runtime where it agrees with torch and is faster."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence

import numpy as np
import torch
from numpy.typing import NDArray

from guard.errors import ModelError, ParityError
from guard.items_on_disk import Items
from guard.offline.attacks.model import Model, TorchModel
from guard.offline.attacks.objective import LogOdds
from guard.offline.crafting import onnx_model
from guard.offline.crafting.onnx_model import CHECKED_BATCH_ITEMS, open_compiled
from guard.offline.crafting.plan import read_plan
from guard.offline.model.classifier import Classifier
from guard.offline.work.directory import WorkDirectory
from guard.offline.work.parallel import one_thread
from guard.offline.work.store import cache_key

TIMED_TRIES = 5
MIN_COMPILED_ITEM_S = 1e-4  # per item: a model that torch differentiates faster is not worth compiling


def choose_engine(classifier: Classifier, images: NDArray[np.float32], work: WorkDirectory) -> tuple[str, str]:
    """Choose torch or onnxruntime, with the reason in words. `images` are a batch as attacks are going to form it."""
    with one_thread():
        (torch_s,) = gradient_seconds([TorchModel(classifier.graph)], images)
        if torch_s < MIN_COMPILED_ITEM_S:
            return "torch", f"torch, {1000 * torch_s:.2f} ms a gradient"
        try:
            compiled = compiled_model(classifier, images, work)
        except (ModelError, ParityError) as error:
            return "torch", f"torch: {error}"
        torch_s, compiled_s = gradient_seconds([TorchModel(classifier.graph), compiled], images)
    ratio = f"ONNX Runtime {1000 * compiled_s:.1f} ms a gradient, torch {1000 * torch_s:.1f}"
    return ("onnxruntime", ratio) if compiled_s < torch_s else ("torch", f"torch; {ratio}")


def gradient_seconds(models: Sequence[Model], images: NDArray[np.float32]) -> list[float]:
    """Measure the median seconds per item of one step of an attack on each model, in turn."""
    points = torch.from_numpy(images)
    labels = torch.zeros(len(points), dtype=torch.int64)
    steps: list[Callable[[], object]] = [
        lambda model=model: model.value_and_gradient(points, LogOdds(labels))  # type: ignore[misc]
        for model in models
    ]
    times: list[list[float]] = [[] for _ in steps]
    for _ in range(TIMED_TRIES):
        for taken, step in zip(times, steps, strict=True):
            began = time.perf_counter()
            step()
            taken.append((time.perf_counter() - began) / len(points))
    return [sorted(taken)[TIMED_TRIES // 2] for taken in times]


def compiled_model(classifier: Classifier, images: Items, work: WorkDirectory) -> Model:
    """Open the compiled classifier of this work directory. Raises ModelError, ParityError."""
    key = cache_key(classifier.spec.fingerprint, (onnx_model.__name__,))
    return open_compiled(classifier, images[: max(CHECKED_BATCH_ITEMS)], work.model(key[:24]))


def attack_model(classifier: Classifier, images: Items, work: WorkDirectory) -> Model:
    """Open the model that this work directory's plan runs attacks on; torch where there is no plan.

    `images` are any real items.

    Raises:
        ModelError, ParityError: the plan says ONNX Runtime, and it no longer runs or agrees.
    """
    plan = read_plan(work)
    if plan is None or plan.engine == "torch":
        return TorchModel(classifier.graph)
    return compiled_model(classifier, images, work)
