"""Operators of `ai.onnx.ml` that are plain algebra on [item, feature], as skl2onnx writes scikit-learn's pipelines.

Rule 1: an encoder of numbers is computed exactly and has no gradient: attacks move the other features.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch
from torch import Tensor

from guard.offline.model.onnx_import.graph_node import Node
from guard.offline.model.onnx_import.operators_places import picked
from guard.offline.model.onnx_import.refusals import CATEGORIES, ML

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


def one_hot_encoder(node: Node, x: Tensor) -> Tensor:
    """Return for each number [item, feature] whether it is each of the listed categories [item, feature, category]."""
    if "cats_int64s" not in node.attributes:
        raise node.refuse(CATEGORIES.why, CATEGORIES.remedy)
    categories = torch.tensor(node.get("cats_int64s"))
    return torch.eq(x.to(torch.int64).unsqueeze(-1), categories).to(torch.float32)


def label_encoder(node: Node, x: Tensor) -> Tensor:
    """Replace each number that is a key by its value, all others by a default; a table of words is refused."""
    keys = listed(node, "keys")
    values, default = listed(node, "values"), node.get("default_tensor")
    if not keys or len(keys) != len(values) or any(map(math.isnan, keys)):
        raise node.refuse(CATEGORIES.why, CATEGORIES.remedy)
    default = node.get("default_float", node.get("default_int64", -1)) if default is None else default.ravel()[0]
    known = torch.eq(x.unsqueeze(-1), torch.tensor(keys).to(x.dtype)).to(torch.float32)
    return torch.sum(known * (torch.tensor(values) - float(default)), [-1]) + float(default)


def listed(node: Node, what: str) -> list[float]:
    """Return the keys or values of a table as floats; none where they are words, or not there."""
    for kind in ("floats", "int64s", "tensor"):
        found = node.get(f"{what}_{kind}")
        if found is not None and np.asarray(found).dtype.kind in "biuf":
            return [float(one) for one in np.ravel(found)]
    return []


def imputer(node: Node, x: Tensor) -> Tensor:
    """Return finite values as they are: what is replaced is NaN, which no request may hold."""
    replaced = node.get("replaced_value_float")
    if replaced is None or not math.isnan(replaced):
        raise node.refuse(CATEGORIES.why, CATEGORIES.remedy)
    return x


def binarizer(node: Node, x: Tensor) -> Tensor:
    return (x > float(node.get("threshold", 0.0))).to(torch.float32)


MACHINE_LEARNING: dict[str, Any] = {
    f"{ML}ArrayFeatureExtractor": features,
    f"{ML}Binarizer": binarizer,
    f"{ML}Imputer": imputer,
    f"{ML}LabelEncoder": label_encoder,
    f"{ML}LinearClassifier": linear_classifier,
    f"{ML}LinearRegressor": linear_regressor,
    f"{ML}Normalizer": normalizer,
    f"{ML}OneHotEncoder": one_hot_encoder,
    f"{ML}Scaler": scaler,
    f"{ML}ZipMap": lambda _node, scores: scores,  # a map for each item from class to score: the scores are what counts
}
