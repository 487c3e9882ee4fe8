"""The table of ONNX operators that the importer knows."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from guard.errors import ModelError
from guard.offline.model.onnx_import.graph import Graph
from guard.offline.model.onnx_import.graph_node import Node
from guard.offline.model.onnx_import.operators_categories import CATEGORIES
from guard.offline.model.onnx_import.operators_einsum import EINSUM
from guard.offline.model.onnx_import.operators_layers import LAYERS, linear, linear_number
from guard.offline.model.onnx_import.operators_ml import MACHINE_LEARNING
from guard.offline.model.onnx_import.operators_places import PLACES
from guard.offline.model.onnx_import.operators_pointwise import POINTWISE, power_of_fixed
from guard.offline.model.onnx_import.operators_pools import POOLS
from guard.offline.model.onnx_import.operators_recurrent import RECURRENT
from guard.offline.model.onnx_import.operators_shapes import SHAPES
from guard.offline.model.onnx_import.operators_transposed import TRANSPOSED
from guard.offline.model.onnx_import.refusals import ML, missing

FUNCTIONS: Mapping[str, Callable[..., Any]] = {
    **POINTWISE,
    **LAYERS,
    **EINSUM,
    **POOLS,
    **TRANSPOSED,
    **SHAPES,
    **PLACES,
    **CATEGORIES,
    **RECURRENT,
    **MACHINE_LEARNING,
}

# Operands that are no tensors but settings: read as numbers, and known before the input is.
SETTINGS: Mapping[str, tuple[int, ...]] = {
    f"{ML}ArrayFeatureExtractor": (1,),
    "Clip": (1, 2),
    "Col2Im": (1, 2),
    "ConstantOfShape": (0,),
    "CumSum": (1,),
    "Dropout": (1, 2),
    "Expand": (1,),
    "GRU": (4,),
    "Gather": (1,),
    "GatherElements": (1,),
    "GatherND": (1,),
    "LSTM": (4,),
    "OneHot": (1, 2),
    "Pad": (1, 2, 3),
    "Pow": (1,),
    "RNN": (4,),
    "ReduceL1": (1,),
    "ReduceL2": (1,),
    "ReduceLogSum": (1,),
    "ReduceLogSumExp": (1,),
    "ReduceMax": (1,),
    "ReduceMean": (1,),
    "ReduceMin": (1,),
    "ReduceProd": (1,),
    "ReduceSum": (1,),
    "ReduceSumSquare": (1,),
    "Reshape": (1,),
    "Resize": (1, 2, 3),
    "ScatterElements": (1,),
    "ScatterND": (1,),
    "Slice": (1, 2, 3, 4),
    "Split": (1,),
    "Squeeze": (1,),
    "Tile": (1,),
    "Trilu": (1,),
    "Unsqueeze": (1,),
    "Upsample": (1,),
}


@dataclass(frozen=True)
class Operator:
    """A function of a node and its operands, and the places of those operands that are settings."""

    function: Callable[..., Any]
    settings: tuple[int, ...] = ()


def operator_of(node: Node, graph: Graph) -> Operator | None:
    """Return the operator of a node; None for one that is not in the table, or only among sizes."""
    if node.kind == "MatMul" and node.inputs[1] in graph.constants:
        axes = graph.constants[node.inputs[1]].ndim
        if axes <= 2:
            return Operator(linear if axes == 2 else linear_number)
    if node.kind == "Pow" and node.inputs[0] in graph.constants and node.inputs[1] not in graph.constants:
        return Operator(power_of_fixed, (0,))
    function = FUNCTIONS.get(node.kind)
    return None if function is None else Operator(function, SETTINGS.get(node.kind, ()))


def unknown(node: Node) -> ModelError:
    return missing(node, len(FUNCTIONS))
