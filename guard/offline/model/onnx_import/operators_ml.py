"""Operators of `ai.onnx.ml` that are plain algebra on [item, feature], as skl2onnx writes scikit-learn's pipelines.

Rule 1: an encoder of numbers is computed exactly and has no gradient: attacks move the other features.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
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
    categories = list(node.get("cats_int64s"))
    if len(set(categories)) < len(categories):
        raise node.refuse(f"lists a category twice ({categories})", "list each category once")
    return torch.eq(x.to(torch.int64).unsqueeze(-1), torch.tensor(categories)).to(torch.float32)


def label_encoder(node: Node, x: Tensor) -> Tensor:
    """Replace each number that is a key by its value, all others by a default; a table of words is refused.

    Values that are whole numbers stay int64. Of a key that is listed twice the first value counts.
    """
    keys, values = listed(node, "keys"), listed(node, "values")
    if keys is None or values is None or len(keys) != len(values) or np.isnan(keys).any():
        raise node.refuse(CATEGORIES.why, CATEGORIES.remedy)
    keys, first = np.unique(keys, return_index=True)
    known = torch.eq(x.unsqueeze(-1), torch.tensor(keys.tolist()).to(x.dtype))
    found = torch.where(known, torch.tensor(values[first].tolist()), 0)
    return torch.where(known.sum([-1]) > 0, found.sum([-1]), default_of(node, whole=values.dtype.kind == "i"))


def default_of(node: Node, *, whole: bool) -> Any:
    """Return what stands for a number that is no key: each kind of value has a default of its own."""
    given = node.get("default_tensor")
    if given is not None:
        return np.ravel(given)[0].item()
    return node.get("default_int64", -1) if whole else node.get("default_float", -0.0)


def listed(node: Node, what: str) -> NDArray[Any] | None:
    """Return the keys or values of a table as float32 or int64; None where they are words, or not there."""
    for name in (f"{what}_floats", f"{what}_int64s", f"{what}_tensor"):
        found = np.ravel(node.get(name, []))
        if found.size and found.dtype.kind in "iuf":
            return found.astype(np.float32 if found.dtype.kind == "f" else np.int64)
    return None


def imputer(node: Node, x: Tensor) -> Tensor:
    """Replace NaN, which a request may not hold and a step before may make, by one number or one for each feature."""
    replaced, given = node.get("replaced_value_float"), node.get("imputed_value_floats")
    if replaced is None or not math.isnan(replaced) or not given:
        raise node.refuse(CATEGORIES.why, CATEGORIES.remedy)
    if x.dim() != 2 and len(given) > 1:
        raise node.refuse(
            f"replaces NaN in {x.dim()} axes by a list of numbers; only [item, feature] is supported",
            "replace it by one number",
        )
    imputed = given if len(given) == int(x.shape[-1]) else given[:1]  # as ONNX Runtime has it
    return torch.where(torch.isnan(x), torch.tensor(imputed), x)


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
