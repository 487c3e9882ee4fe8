"""Classifier for attacks, run by ONNX Runtime: its logits, and the gradients that attacks climb.

Rule 1: it is used only where it agrees with torch on real items, logits and gradients, as `guard train` demands of
every program that it writes.
Rule 2: a run takes one thread, the caller's: the same items in the same batch give the same bits, whatever runs beside.

The gradient's seed [item, class] is computed within the program, from the logits and an item's rule (`SeedRule`); so an
attack's step costs one forward and one backward, and not a second forward to find the seed first.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch
from numpy.typing import NDArray
from torch import Tensor, fx, nn
from torch.nn.functional import one_hot

from guard.agreement import length_apart, logits_apart, tolerated_logits
from guard.errors import ParityError
from guard.offline.attacks.model import Objective, TorchModel
from guard.offline.attacks.objective import Gap, LogOdds
from guard.offline.model.classifier import Classifier
from guard.offline.model.gradient.input_gradient import top_class, with_gradient
from guard.offline.model.graph.seed import Seed
from guard.offline.model.onnx_export.export import OPSET_VERSION, lower
from guard.offline.programs.outputs import FORWARD_TOLERANCE, Output
from guard.offline.work.files import write_bytes
from guard.session import GraphOfFiles, Session, onnxruntime

SOFTMAX_SLOPE = 2.0**20  # a softmax this sharp is the maximum; a power of two, so that it rounds nothing
EXCLUDED_LOGIT = 1e30  # subtracted from the logit of a class that is excluded
STEEP_TOLERANCE = 1e-2  # of the median item's gradient: a climb needs no more, and forwards verify what it finds
CHECKED_BATCH_ITEMS = (1, 32)  # batch sizes in which it is compared with torch
GRADIENT = Output("the gradient", "gradient", forward=False)
INPUTS, OUTPUTS = ("images", "shift", "sharpness", "gain"), ("logits", "gradient")


@dataclass(frozen=True, eq=False)
class SeedRule:
    """Rule that gives an item's seed from its logits: gain * softmax(sharpness * logits not named by shift) + shift.

    Log-odds and gaps are softmax and maximum over the other classes, less the one that `shift` names; a gain of zero
    leaves the shift, a seed as it is given. For example the gap of three classes to the first, whose seed is the best
    rival less the first: shift [-1, 0, 0], a large sharpness, gain 1.
    """

    shift: Tensor  # [item, class]
    sharpness: Tensor  # [item, 1]
    gain: Tensor  # [item, 1]

    @staticmethod
    def of(objective: LogOdds | Gap, classes: int) -> SeedRule:
        """Return the rule by which the program climbs this objective."""
        sign = 1.0 if objective.targets is None else -1.0
        named = objective.labels if objective.targets is None else objective.targets
        sharpness = 1.0 if isinstance(objective, LogOdds) else SOFTMAX_SLOPE
        like = torch.ones(len(named), 1)
        return SeedRule(-sign * one_hot(named, classes).float(), sharpness * like, sign * like)

    @staticmethod
    def given(seed: Tensor) -> SeedRule:
        """Return the rule that gives this seed [item, class], whatever the logits are."""
        nothing = seed.new_zeros(len(seed), 1)
        return SeedRule(seed, nothing, nothing)

    @property
    def parts(self) -> tuple[Tensor, Tensor, Tensor]:
        return self.shift, self.sharpness, self.gain


class RuledSeed(nn.Module):
    """Module that computes a gradient's seed [item, class] from the logits and a SeedRule's three parts."""

    def forward(self, logits: Tensor, shift: Tensor, sharpness: Tensor, gain: Tensor) -> Tensor:
        return gain * torch.softmax(sharpness * logits - EXCLUDED_LOGIT * shift.abs(), dim=1) + shift


class Steered(nn.Module):
    """Module that maps unit-space images and the parts of their seed rules to (logits, gradient along the seed)."""

    def __init__(self, classifier: Classifier) -> None:
        super().__init__()
        self.both = steered(with_gradient(classifier.opened(()), seed=top_class))

    def forward(self, images: Tensor, shift: Tensor, sharpness: Tensor, gain: Tensor) -> tuple[Tensor, Tensor]:
        logits, gradient = self.both(images, shift, sharpness, gain)
        return logits, gradient


def steered(module: fx.GraphModule) -> fx.GraphModule:
    """Replace the seed in a graph with a gradient by a RuledSeed, which reads three further inputs."""
    (seed,) = [
        node
        for node in module.graph.nodes
        if node.op == "call_module" and isinstance(module.get_submodule(str(node.target)), Seed)
    ]
    (images,) = [node for node in module.graph.nodes if node.op == "placeholder"]
    rule, last = [], images
    for name in INPUTS[1:]:
        with module.graph.inserting_after(last):
            last = module.graph.placeholder(name)
        rule.append(last)
    module.add_submodule("ruled_seed", RuledSeed())
    seed.target, seed.args = "ruled_seed", (*seed.args, *rule)
    module.recompile()
    return module


@dataclass(frozen=True, eq=False)
class OnnxModel:
    """Compiled classifier as attacks call it; torch's autograd can differentiate it where a gradient is wanted."""

    forward: Session  # images -> logits
    steered: Session  # images, seed rule -> logits, gradient
    shape: tuple[int, ...]
    classes: int
    engine: str  # identifies what computes the logits, to the last bit
    module: nn.Module  # its torch side, for attacks that look at layers
    folder: Path  # in which its two files lie

    def __call__(self, images: Tensor) -> Tensor:
        if torch.is_grad_enabled() and images.requires_grad:
            found: Tensor = Pulled.apply(images, self)  # type: ignore[no-untyped-call]
            return found
        return self.logits(images)

    def __reduce__(self) -> Any:
        """Return how another process, perhaps of another machine, opens the same model: from its files' content."""
        contents = tuple(file.read_bytes() for file in files_of(self.folder))
        return reopened, (contents, self.shape, self.classes, self.engine, self.module, self.folder)

    def logits(self, images: Tensor) -> Tensor:
        return torch.from_numpy(self.forward.run(OUTPUTS[:1], as_array(images))[0])

    def pull(self, images: Tensor, rule: SeedRule) -> tuple[Tensor, Tensor]:
        """Return the logits, and the gradient along the seeds that the rule gives for them."""
        parts = (images, *rule.parts)
        logits, gradient = self.steered.run(OUTPUTS, dict(zip(INPUTS, map(as_array, parts), strict=True)))
        return torch.from_numpy(logits), torch.from_numpy(gradient)

    def value_and_gradient(self, points: Tensor, objective: Objective) -> tuple[Tensor, Tensor, Tensor]:
        """Compute what attacks ask for; an objective that the program does not know costs a second forward."""
        points = points.detach()
        if isinstance(objective, LogOdds | Gap):
            logits, gradient = self.pull(points, SeedRule.of(objective, self.classes))
            return logits, objective(logits), gradient
        with torch.enable_grad():
            logits = self.logits(points).requires_grad_()
            values = objective(logits)
            (seed,) = torch.autograd.grad(values.sum(), logits)
        return logits.detach(), values.detach(), self.pull(points, SeedRule.given(seed))[1]


def reopened(
    contents: tuple[bytes, ...], shape: tuple[int, ...], classes: int, engine: str, module: nn.Module, folder: Path
) -> OnnxModel:
    """Return a compiled model from the content of its files."""
    graphs = [GraphOfFiles(file.name, content, {}) for file, content in zip(files_of(folder), contents, strict=True)]
    forward, gradient = (Session(graph, device="cpu", threads=1) for graph in graphs)
    return OnnxModel(forward, gradient, shape, classes, engine, module, folder)


class Pulled(torch.autograd.Function):
    """Autograd function of the compiled model, differentiable once."""

    @staticmethod
    def forward(context: Any, images: Tensor, model: OnnxModel) -> Tensor:
        context.model = model
        context.save_for_backward(images)
        return model.logits(images)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(context: Any, seed: Tensor) -> tuple[Tensor, None]:
        (images,) = context.saved_tensors
        return context.model.pull(images, SeedRule.given(seed))[1], None


def as_array(values: Tensor) -> NDArray[np.float32]:
    """Convert to contiguous single precision, as the programs take it."""
    return np.ascontiguousarray(values.detach().numpy(), dtype=np.float32)


def write_compiled(classifier: Classifier, example: Tensor, folder: Path) -> None:
    """Lower the classifier into two files unless they exist. Raises ModelError where it has no ONNX form."""
    if all(file.is_file() for file in files_of(folder)):
        return
    module = Steered(classifier)
    rule = SeedRule.given(example.new_zeros(len(example), classifier.spec.output.classes))
    model = lower(module, (example, *rule.parts), input_name=INPUTS, output_names=OUTPUTS, opset=OPSET_VERSION)
    plain = onnx.utils.Extractor(model).extract_model(list(INPUTS[:1]), list(OUTPUTS[:1]))
    for file, content in zip(files_of(folder), (plain, model), strict=True):
        write_bytes(file, content.SerializeToString(deterministic=True))


def files_of(folder: Path) -> tuple[Path, Path]:
    return folder / "logits.onnx", folder / "gradient.onnx"


def open_compiled(classifier: Classifier, images: NDArray[np.float32], folder: Path) -> OnnxModel:
    """Open the compiled classifier, and compare it with torch on these unit-space items.

    Raises:
        ModelError: it has no ONNX form.
        ParityError: ONNX Runtime and torch disagree.
    """
    write_compiled(classifier, torch.from_numpy(images[:4]), folder)
    forward, gradient = (Session(file, device="cpu", threads=1) for file in files_of(folder))
    digest = hashlib.sha256(b"".join(file.read_bytes() for file in files_of(folder))).hexdigest()
    engine = f"onnxruntime {onnxruntime().__version__} {digest}"
    spec = classifier.spec
    model = OnnxModel(forward, gradient, spec.input.shape, spec.output.classes, engine, classifier.graph, folder)
    check_compiled(model, classifier, torch.from_numpy(images[: max(CHECKED_BATCH_ITEMS)]))
    return model


def check_compiled(model: OnnxModel, classifier: Classifier, images: Tensor) -> None:
    """Compare logits and attack gradients with torch's. Raises ParityError where they differ."""
    with torch.no_grad():
        labels = classifier(images).argmax(dim=1)
    for objective in (LogOdds, Gap):
        expected, _, slope = TorchModel(classifier.graph).value_and_gradient(images, objective(labels))
        for size in CHECKED_BATCH_ITEMS:
            parts = [
                (model(part), *model.value_and_gradient(part, objective(own)))
                for part, own in zip(images.split(size), labels.split(size), strict=True)
            ]
            plain, logits, _, gradient = (torch.cat(column).numpy() for column in zip(*parts, strict=True))
            check_logits(plain, expected.numpy())
            check_logits(logits, expected.numpy())
            steep = float(np.median(length_apart(gradient, slope.numpy()) / GRADIENT.tolerated(slope.numpy())))
            if not steep * GRADIENT.tolerance <= STEEP_TOLERANCE:  # NaN is not
                raise ParityError(
                    f"the model in ONNX Runtime differs from torch by {steep * GRADIENT.tolerance:.1e} of the median "
                    f"item's gradient; at most {STEEP_TOLERANCE:g}"
                )


def check_logits(found: NDArray[Any], expected: NDArray[Any]) -> None:
    """Compare logits [item, class] with torch's, on the scale of the parity check. Raises ParityError."""
    allowed = tolerated_logits(expected, FORWARD_TOLERANCE)
    other = ~(logits_apart(found, expected) <= allowed)
    if other.any():
        item = int(np.flatnonzero(other)[0])
        at = int(np.nan_to_num(np.abs(found[item] - expected[item]), nan=np.inf).argmax())
        raise ParityError(
            f"the model in ONNX Runtime differs from torch: item {item} has the logit {found[item, at]:.6g} for class "
            f"{at}, in torch {expected[item, at]:.6g}; tolerated is a difference of {allowed[item]:.2g}"
        )
