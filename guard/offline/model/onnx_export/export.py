"""Exports a torch module as one ONNX model.

Rule 1. The first axis of input and outputs is free: a size of the example that sticks is an error.
Rule 2. The model says nothing about where it was made: no stack traces, no source paths.
Rule 3. What is rewritten for speed is equal for every float: see `comparisons_as_hard_sigmoids`.

How it works. `torch.export` traces the module on three copies of the example's first item, with the first axis declared
free; `torch.onnx.export` turns the trace into ONNX. Then the exporter's notes are removed, the free axis is named
`batch`, and a few nodes are replaced by equal ones that ONNX Runtime computes faster (`layout_rewrites`).

Example: a module that returns (x > 0.5) as float32, lowered with an example [8, 2], is traced on [3, 2] and gets an
input [batch, 2]. Its two nodes, Greater and Cast, become one HardSigmoid, max(0, min(1, slope x + offset)) with slope
2**100 and offset -2**99. It gives 0 at x = 0.5, and at the next larger float32, 0.5 + 2**-24, min(1, 2**76) = 1. A
batch of 7 gives 7 rows.
"""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import onnx
import torch
from torch import Tensor, nn

from guard.errors import ModelError, first_line
from guard.offline.model.onnx_export.layout_rewrites import (
    BATCH,
    clipped_steps_as_hard_sigmoids,
    comparisons_as_hard_sigmoids,
    enter_blocks,
    means_as_pools,
)

OPSET_VERSION = 20


def lower(
    module: nn.Module,
    example: Tensor | Sequence[Tensor],
    *,
    input_name: str | Sequence[str],
    output_names: Sequence[str],
    opset: int = 20,
) -> onnx.ModelProto:
    """Export a module that takes tensors [item, ...] and returns a tuple of tensors [item, ...] as one ONNX model.

    `example` gives shape and type; its number of items does not matter. Takes about 30 ms an operator.

    Raises: ModelError when an operator has no ONNX form, or when something depends on the number of items.
    """
    names = [input_name] if isinstance(input_name, str) else list(input_name)
    examples = [example] if isinstance(example, Tensor) else list(example)
    items = tuple(torch.cat([one[:1]] * 3) for one in examples)  # 0 and 1 would be taken for fixed
    try:
        with _quiet():
            free = torch.export.Dim(BATCH)
            exported = torch.export.export(module, items, dynamic_shapes=tuple({0: free} for _ in items))
            program = torch.onnx.export(
                exported,
                dynamo=True,
                input_names=names,
                output_names=list(output_names),
                opset_version=opset,
                verbose=False,
            )
    except (torch.onnx.errors.OnnxExporterError, torch._dynamo.exc.UserError, RuntimeError, ValueError) as error:
        raise ModelError(f"cannot be written as ONNX with any number of items: {cause_of(error)}") from error
    if program is None:
        raise ModelError("cannot be written as ONNX: the exporter returned nothing")
    model = program.model_proto
    _strip(model)
    _name_batch(model)
    comparisons_as_hard_sigmoids(model.graph)
    clipped_steps_as_hard_sigmoids(model.graph)
    means_as_pools(model.graph)
    enter_blocks(model.graph)
    try:
        onnx.checker.check_model(model, full_check=True)
    except onnx.checker.ValidationError as error:
        raise ModelError(f"torch's exporter writes an ONNX file that is not valid: {cause_of(error)}") from error
    return model


def cause_of(error: BaseException) -> str:
    """Return in one line what happened, not where: the exporter's messages run over pages."""
    cause = error.__cause__ or error
    said = first_line(cause)
    return said if said == type(cause).__name__ else f"{type(cause).__name__}: {said}"


@contextmanager
def _quiet() -> Iterator[None]:
    """Silence the exporter's remarks on what is not installed and on its own internals."""
    logger = logging.getLogger("torch.onnx._internal.exporter._registration")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message=".*LeafSpec.*", category=FutureWarning)
            yield
    finally:
        logger.setLevel(level)


def _strip(model: onnx.ModelProto) -> None:
    """Remove every note that the exporter left in the model."""
    if model.functions:
        raise ModelError(f"the exporter left {len(model.functions)} functions that are not plain ONNX")
    graph = model.graph
    for part in (model, graph, *graph.node, *graph.input, *graph.output, *graph.value_info, *graph.initializer):
        part.ClearField("doc_string")
        part.ClearField("metadata_props")
    model.producer_name, graph.name = "guard", "program"
    for field in ("producer_version", "domain"):
        model.ClearField(field)
    for value in graph.value_info:
        value.name = value.name.replace("/", "_")
    for tensor in graph.initializer:
        tensor.name = tensor.name.replace("/", "_")
    for index, node in enumerate(graph.node):
        node.input[:] = [name.replace("/", "_") for name in node.input]
        node.output[:] = [name.replace("/", "_") for name in node.output]
        node.name = f"{node.op_type}_{index}"


def _name_batch(model: onnx.ModelProto) -> None:
    """Name the free axis `batch`. Raises: ModelError for an output that is not free along its first axis."""
    graph = model.graph
    free = graph.input[0].type.tensor_type.shape.dim[0].dim_param
    for output in graph.output:
        sizes = output.type.tensor_type.shape.dim
        if not free or not sizes or sizes[0].dim_param != free:
            raise ModelError(f"output {output.name} does not have one row for each item: its first axis is fixed")
    for value in (*graph.input, *graph.output, *graph.value_info):
        for size in value.type.tensor_type.shape.dim:
            if size.dim_param == free:
                size.dim_param = BATCH
