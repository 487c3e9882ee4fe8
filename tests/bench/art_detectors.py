"""For maintainers: the guard against ART's BinaryInputDetector and BinaryActivationDetector, on one model, in one run.

    python -m tests.side art
    python -m tests.bench.art_detectors ../shared/models/cifar10-resnet20.pt2 --data ../shared/data/cifar10-fit.npz

Every answer holds the model's own prediction: ART's `classifier.predict` and then `detector.detect`, the guard's
`Runtime.read` (or its programs alone). ART runs the model as the file has it, with frozen weights. Its detectors are
small, and fitted with ART on clean images and on FGSM at 8/255 of ART's own: on the input two convolutions and a
linear layer, on what the model's last linear layer reads a hidden layer of 64 units.
"""

from __future__ import annotations

import argparse
import tempfile
import time
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from sklearn.metrics import roc_auc_score
from torch import Tensor, fx, nn

from guard.arrays import read_examples, to_wire
from guard.offline.bench.stopwatch import Laps, race, spread
from guard.offline.model.open_model import Source, load_program, open_model
from guard.offline.model.several_outputs import single_path
from guard.runtime import Runtime
from tests.bench.networks import GRID, item_shape, random_bundle
from tests.side import reach

BUDGET = 8 / 255
FITTED, HELD_OUT, EPOCHS = 1000, 200, 40
LATENT = "latent"
INPUT_DETECTOR, ACTIVATION_DETECTOR = "ART BinaryInputDetector", "ART BinaryActivationDetector"
FORWARD_ONLY = "guard, forward only"  # the whole answer of a bundle whose detectors rest on the plain pass
SCREEN, INTERPRET = "screen program", "interpret program"
WHOLE = "guard, standard recipe"  # the whole answer, both programs


def main() -> None:
    options = parse()
    torch.set_num_threads(options.threads)
    shape = item_shape(options.model)
    source = Source(options.model, shape, grid=GRID)
    images = to_wire(read_examples(options.data).images[: FITTED + HELD_OUT], open_model(source).spec.input)
    art = Art.fitted(Tapped.of(source), images[:FITTED])
    for name, auroc in art.aurocs(images[FITTED:]).items():
        print(f"{name}: AUROC {auroc:.3f} on {HELD_OUT} clean images and their FGSM at 8/255")
    clock = time.thread_time_ns if options.cpu_time and options.threads == 1 else time.perf_counter_ns
    with tempfile.TemporaryDirectory() as folder:
        guards = contenders(options.model, Path(folder), options.threads)
        for items in options.batches:
            batch = np.ascontiguousarray(np.resize(images, (items, *shape)))
            answers = {**art.contenders, **guards}
            laps = race(
                {name: (lambda answer=answer, batch=batch: answer(batch)) for name, answer in answers.items()},
                seconds=options.seconds,
                clock=clock,
            )
            show(laps, items, options.threads)


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", help="a .pt2 file")
    parser.add_argument("--data", type=Path, required=True, help="images to fit ART's detectors on, and to time")
    parser.add_argument("--batches", nargs="+", type=int, default=(1, 64))
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--seconds", type=float, default=30.0, help="a batch size")
    parser.add_argument("--cpu-time", action="store_true", help="with one thread, time work instead of latency")
    return parser.parse_args()


def contenders(model: str, folder: Path, threads: int) -> Mapping[str, Callable[[NDArray[Any]], object]]:
    """The guard's answers; its heads are fitted on random images, which does not change what they cost."""
    forward = Runtime.open(random_bundle(model, folder / "forward", programs=("screen",)), threads=threads)
    whole = Runtime.open(random_bundle(model, folder / "whole"), threads=threads)
    screen, interpret = whole.sessions
    wanted = ("logits", "scores")
    return {
        SCREEN: lambda batch: screen.run(wanted, batch),
        FORWARD_ONLY: forward.read,
        INTERPRET: lambda batch: interpret.run(wanted, batch),
        WHOLE: whole.read,
    }


class Tapped(nn.Module):
    """A model in which what its last linear layer reads passes through a named layer, where ART can hook it."""

    def __init__(self, graph: fx.GraphModule) -> None:
        super().__init__()
        self.graph = graph
        self.latent = nn.Identity()

    @classmethod
    def of(cls, source: Source) -> Tapped:
        graph = single_path(load_program(source)[1])
        (output,) = [node for node in graph.graph.nodes if node.op == "output"]
        last = graph.graph.find_nodes(op="call_function", target=torch.ops.aten.linear.default)[-1]
        output.args = ((output.args[0], last.args[0]),)
        graph.recompile()
        return cls(graph).requires_grad_(False)

    def forward(self, images: Tensor) -> Tensor:
        logits, latent = self.graph(images)
        self.latent(latent)
        result: Tensor = logits
        return result


@dataclass(frozen=True)
class Art:
    """ART's classifier and its two detectors, fitted."""

    classifier: Any
    detectors: Mapping[str, Any]

    @classmethod
    def fitted(cls, network: Tapped, images: NDArray[np.float32]) -> Art:
        reach("art")
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about frameworks that are not installed
            from art.defences.detector.evasion import BinaryActivationDetector, BinaryInputDetector

        shape = images.shape[1:]
        with torch.no_grad():
            classes = network(torch.from_numpy(images[:2])).shape[1]
        model = wrapped(network, shape, classes)
        latent = model.get_activations(images[:1], LATENT).shape[1:]
        on_inputs = nn.Sequential(
            nn.Conv2d(shape[0], 16, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(16, 32, 3, 2, 1), nn.ReLU(),
            nn.AdaptiveAvgPool2d(4), nn.Flatten(), nn.Linear(512, 2),
        )  # fmt: skip
        on_latent = nn.Sequential(nn.Linear(latent[0], 64), nn.ReLU(), nn.Linear(64, 2))
        found = {
            INPUT_DETECTOR: BinaryInputDetector(wrapped(on_inputs, shape, 2)),
            ACTIVATION_DETECTOR: BinaryActivationDetector(model, wrapped(on_latent, latent, 2), layer=LATENT),
        }
        for detector in found.values():
            detector.fit(*pairs(model, images), batch_size=64, nb_epochs=EPOCHS)
        return cls(model, found)

    def aurocs(self, images: NDArray[np.float32]) -> dict[str, float]:
        both, labels = pairs(self.classifier, images)
        found = {}
        for name, detector in self.detectors.items():
            predictions = detector.detect(both)[0]["predictions"]
            found[name] = float(roc_auc_score(labels[:, 1], predictions[:, 1] - predictions[:, 0]))
        return found

    @property
    def contenders(self) -> Mapping[str, Callable[[NDArray[Any]], object]]:
        def answering(detector: Any) -> Callable[[NDArray[Any]], object]:
            return lambda batch: (self.classifier.predict(batch), detector.detect(batch))

        return {name: answering(detector) for name, detector in self.detectors.items()}


def wrapped(network: nn.Module, shape: tuple[int, ...], classes: int) -> Any:
    """A network as ART's classifier."""
    from art.estimators.classification import PyTorchClassifier

    return PyTorchClassifier(
        network,
        loss=nn.CrossEntropyLoss(),
        input_shape=shape,
        nb_classes=classes,
        optimizer=torch.optim.Adam(network.parameters(), 2e-3),
        device_type="cpu",
    )


def pairs(model: Any, images: NDArray[np.float32]) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Clean and attacked images, and which they are, one-hot: (clean, attacked)."""
    from art.attacks.evasion import FastGradientMethod

    attacked = np.clip(FastGradientMethod(model, eps=BUDGET).generate(images), 0.0, 1.0)
    labels = np.repeat(np.eye(2, dtype=np.float32), len(images), axis=0)
    return np.concatenate([images, attacked]).astype(np.float32), labels


def show(laps: Laps, items: int, threads: int) -> None:
    print(f"\nbatch {items}, {threads} thread(s), {laps.rounds} rounds: items/s, and how many times ART's [quartiles]")
    print(f"{'':30}{'items/s':>10}{'to input detector':>24}{'to activation detector':>26}")
    for name in laps.names:
        speed = items * 1e6 / spread(laps.of(name)).median
        ratios = [spread(laps.of(theirs) / laps.of(name)) for theirs in (INPUT_DETECTOR, ACTIVATION_DETECTOR)]
        told = [f"{ratio.median:.2f} [{ratio.low:.2f}-{ratio.high:.2f}]" for ratio in ratios]
        print(f"{name:30}{speed:>10,.0f}{told[0]:>24}{told[1]:>26}")


if __name__ == "__main__":
    main()
