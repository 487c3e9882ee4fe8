"""A small forest written by hand: trees of one split each, over the vectors of `tiny`, as skl2onnx would write them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper

from tests.offline import tiny

ML = "ai.onnx.ml"
STUMPS = 40


def write_forest(file: Path, *, words: tuple[str, ...] = (), zipped: bool = False) -> Path:
    """Write a forest of stumps that votes for the class whose centres lie on a feature's side of a threshold."""
    images, labels = tiny.vectors(400, seed=100)
    centres = np.stack([images[labels == c].mean(axis=0) for c in range(tiny.CLASSES)])
    generator = np.random.default_rng(0)
    votes: dict[str, list[float]] = {key: [] for key in ("tree", "node", "id", "weight")}
    modes, ids, trees, values, features, true, false = [], [], [], [], [], [], []
    for tree in range(STUMPS):
        feature = int(generator.integers(tiny.FEATURES))
        order = np.argsort(centres[:, feature])
        cut = int(generator.integers(1, tiny.CLASSES))
        threshold = float(centres[order[cut - 1 : cut + 1], feature].mean())
        trees += [tree] * 3
        ids += [0, 1, 2]
        modes += ["BRANCH_LEQ", "LEAF", "LEAF"]
        features += [feature, 0, 0]
        values += [threshold, 0.0, 0.0]
        true += [1, 0, 0]
        false += [2, 0, 0]
        for leaf, members in ((1, order[:cut]), (2, order[cut:])):
            for one in members.tolist():
                votes["tree"].append(tree)
                votes["node"].append(leaf)
                votes["id"].append(one)
                votes["weight"].append(1 / (len(members) * STUMPS))
    named = {"classlabels_strings": list(words)} if words else {"classlabels_int64s": list(range(tiny.CLASSES))}
    forest = helper.make_node(
        "TreeEnsembleClassifier",
        ["X"],
        ["label", "scores" if zipped else "probabilities"],
        domain=ML,
        nodes_treeids=trees,
        nodes_nodeids=ids,
        nodes_featureids=features,
        nodes_values=values,
        nodes_modes=modes,
        nodes_truenodeids=true,
        nodes_falsenodeids=false,
        class_treeids=[int(one) for one in votes["tree"]],
        class_nodeids=[int(one) for one in votes["node"]],
        class_ids=[int(one) for one in votes["id"]],
        class_weights=votes["weight"],
        post_transform="NONE",
        **named,
    )
    kind = TensorProto.STRING if words else TensorProto.INT64
    outputs = [
        helper.make_tensor_value_info("label", kind, ["item"]),
        helper.make_tensor_value_info("probabilities", TensorProto.FLOAT, ["item", tiny.CLASSES]),
    ]
    steps = [forest]
    if zipped:
        steps.append(helper.make_node("ZipMap", ["scores"], ["probabilities"], domain=ML, **named))
        pairs = helper.make_map_type_proto(kind, helper.make_tensor_type_proto(TensorProto.FLOAT, None))
        outputs[1].type.CopyFrom(helper.make_sequence_type_proto(pairs))
    given = helper.make_tensor_value_info("X", TensorProto.FLOAT, ["item", tiny.FEATURES])
    graph = helper.make_graph(steps, "forest", [given], outputs)
    opsets = [helper.make_opsetid("", 17), helper.make_opsetid(ML, 3)]
    onnx.save(helper.make_model(graph, opset_imports=opsets, ir_version=9), file)
    return file
