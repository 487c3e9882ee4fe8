"""Operators of `ai.onnx.ml` that are plain algebra on [item, feature], as skl2onnx writes scikit-learn's pipelines."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from guard.offline.model.onnx_import.graph_node import Node
from guard.offline.model.onnx_import.operators_places import picked
from guard.offline.model.onnx_import.refusals import ML

MIN_DIVISOR = 1e-12  # a length below it counts as this


def scaler(node: Node, x: Tensor) -> Tensor:
    if x.dim() != 2 and len(node.get("scale", [1.0])) > 1:
        raise node.refuse(
            f"scales {x.dim()} axes by a list of numbers; only [item, feature] is supported",
            "write it as Sub and Mul, with constants [1, channel, 1, 1]",
        )
    return (x - torch.tensor(node.get("offset", [0.0]))) * torch.tensor(node.get("scale", [1.0]))


def normalizer(node: Node, x: Tensor) -> Tensor:
    """Divide each item by its largest number, by the sum of its magnitudes, or by its length."""
    match node.get("norm", "MAX"):
        case "L1":
            length = torch.abs(x).sum([1], keepdim=True)
        case "L2":
            length = torch.sqrt((x * x).sum([1], keepdim=True))
        case other:
            raise node.refuse(f"divides by {other}", "normalise by L1 or L2, or give the model behind this step")
    return x / torch.clamp(length, min=MIN_DIVISOR)


def linear(node: Node, x: Tensor, outputs: int) -> Tensor:
    weight = torch.tensor(node.get("coefficients")).reshape(outputs, -1)
    intercepts = node.get("intercepts")
    return torch.nn.functional.linear(x, weight, torch.tensor(intercepts) if intercepts else None)


def linear_regressor(node: Node, x: Tensor) -> Tensor:
    targets = int(node.get("targets", 1))
    scores = linear(node, x, targets)
    found = transformed(node, scores)
    if targets == 1 and found is not scores:
        raise node.refuse(
            f"ends in {node.get('post_transform')} behind one target, which ONNX Runtime leaves out",
            "export it with post_transform NONE, and Sigmoid or Softmax behind it where one is wanted",
        )
    return found


def linear_classifier(node: Node, x: Tensor) -> tuple[Tensor, Tensor]:
    """Return labels [item] and scores [item, class]."""
    labels = node.get("classlabels_ints") or node.get("classlabels_strings") or []
    if len(labels) == 2 and len(node.get("coefficients")) == int(x.shape[1]):
        raise node.refuse(
            "has one row of coefficients for two classes", "write a row for each class, of which one may be zeros"
        )
    scores = linear(node, x, len(labels))
    best = torch.argmax(scores, 1)
    plain = labels == list(range(len(labels))) or not node.get("classlabels_ints")
    return best if plain else torch.tensor(labels)[best], transformed(node, scores)


def transformed(node: Node, scores: Tensor) -> Tensor:
    match node.get("post_transform", "NONE"):
        case "NONE":
            return scores
        case "SOFTMAX":
            return torch.softmax(scores, 1)
        case "LOGISTIC":
            return torch.sigmoid(scores)
        case other:
            raise node.refuse(f"ends in {other}", "export it with post_transform NONE, LOGISTIC or SOFTMAX")


def features(node: Node, x: Tensor, index: Any) -> Tensor:
    return picked(node, x, x.dim() - 1, index.ravel())


MACHINE_LEARNING: dict[str, Any] = {
    f"{ML}ArrayFeatureExtractor": features,
    f"{ML}LinearClassifier": linear_classifier,
    f"{ML}LinearRegressor": linear_regressor,
    f"{ML}Normalizer": normalizer,
    f"{ML}Scaler": scaler,
    f"{ML}ZipMap": lambda _node, scores: scores,  # a map for each item from class to score: the scores are what counts
}
