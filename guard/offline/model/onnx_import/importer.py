"""Opens an ONNX file for the offline side, and checks that what it opened computes what the file computes.

Rule 1. The graph that is used gives what ONNX Runtime gives for the file, within 1e-4 of the largest output of an item
or of the typical item, or nothing is opened; where a model rounds off more than that, double precision judges.
Rule 2. Of a file that computes in fewer bits, Rule 1 holds for its float form; how far the file itself is from that is
measured on data (`served.py`).
"""

from __future__ import annotations

import copy
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import fx
from torch.export import Dim, ExportedProgram

from guard.axes import CHANNELS_LAST, axes_of, in_layout, to_wire
from guard.errors import ModelError
from guard.manifest import DATATYPES
from guard.offline.model.onnx_import.graph import Graph, read_graph
from guard.offline.model.onnx_import.graph_node import OTHERWISE
from guard.offline.model.onnx_import.layout import channel_first
from guard.offline.model.onnx_import.other_inputs import other_inputs
from guard.offline.model.onnx_import.replay import FREE_BATCH, Replay
from guard.offline.model.onnx_import.series_layout import series_layout
from guard.session import onnxruntime
from guard.value_box import ValueBox

AGREEMENT_TOLERANCE = 1e-4  # of an item's largest output, or of the typical item's
# Of a file that says it takes any number of items: torch's older exporter writes sizes down where a network computes.
WRITTEN_FOR_ONE = (
    "it says that it takes any, and was written for the number of its example: export it by torch.onnx.export with "
    "dynamo=True, or hand over the .pt2 of torch.export"
)
ROUNDED_FACTOR = 4.0  # by which the file may be further off the exact outputs than its import in single precision
MAX_ROUNDED_SHARE = 1e-2  # of the largest output: what rounds off more than that cannot be compared
COMPARED_ITEMS = 4
RUN_ITEMS = 32  # at once, of a file that takes any number
OUT_OF_BOUNDS = "out of data bounds"  # as ONNX Runtime says that a value looks up what is not there
CATEGORIES = "; where columns are categories: --preset tabular, or state in --features those that the model takes"
MAX_ROUNDING_FACTOR = 10.0  # by how much more than torch's own rounding two engines may differ for rounding alone


@dataclass(frozen=True)
class Imported:
    """An imported file: its exported program, which takes items with channels first, and the file's own layout."""

    graph: Graph
    layout: str
    program: ExportedProgram
    smallest_size: float = 0.0  # by which outputs are measured at least: 1 of a lone probability, which may saturate


def import_onnx(
    file: Path,
    item_shape: tuple[int, ...],
    *,
    input_name: str | None = None,
    output_name: str | None = None,
    layout: str | None = None,
) -> Imported:
    """Import a file; `layout` is that of its wire where the file could have several.

    Raises ModelError: it cannot be read, takes other items, or has an operator not in the table.
    """
    graph = read_graph(file, input_name=input_name, output_name=output_name)
    layout = layout_of(graph, item_shape, layout)
    turned = channel_first(graph, layout) if layout in CHANNELS_LAST else None
    replay = Replay(turned or graph, layout=layout if turned is None else None).eval()
    if graph.batch is not None:
        with torch.no_grad():
            replay(torch.zeros(graph.batch, *item_shape))  # each step sees the sizes that the file was made for
    try:
        example = torch.zeros(2, *item_shape)
        program = torch.export.export(replay, (example,), dynamic_shapes=({0: Dim("item")},), strict=False)
    except ModelError:
        raise
    except Exception as error:  # torch.export's failures have no common type
        raise ModelError(
            f"{file} cannot be run with any number of items: {(str(error).strip().splitlines() or ['?'])[0]}; "
            f"{WRITTEN_FOR_ONE if graph.batch is None else FREE_BATCH}"
        ) from error
    name_layers(program.graph, graph)
    return Imported(graph, layout, program)


def layout_of(graph: Graph, item_shape: tuple[int, ...], likely: str | None = None) -> str:
    """Return the layout of the file's input; `likely` where several fit. Raises ModelError when the items fit none."""
    wanted, own, known = graph.sizes[1:], axes_of(item_shape).layouts, series_layout(graph)
    for layout in sorted(own, key=lambda one: one != likely):
        sizes = in_layout(item_shape, layout)
        fits = len(sizes) == len(wanted) and all(w in (None, size) for w, size in zip(wanted, sizes, strict=True))
        if fits and known in (None, layout):
            return layout
    if known in own:
        raise ModelError(
            f"the model takes {known} series {['any' if size is None else size for size in wanted]}, by what its first "
            f"layer reads; the data's items are {item_shape[0]} channels of {item_shape[1]} steps: bring them to the "
            "model's, or say their order with --data-layout"
        )
    raise ModelError(
        f"the model takes items of shape {['any' if size is None else size for size in wanted]}; "
        f"the data's items have shape {list(item_shape)}: bring them to the model's (--data-layout says whether "
        "channels are first or last)"
    )


def name_layers(exported: fx.Graph, graph: Graph) -> None:
    """Record at the last operator of each node what its result is called in the file."""
    last: dict[int, fx.Node] = {}
    for node in exported.nodes:
        for path, _ in (node.meta.get("nn_module_stack") or {}).values():
            if path.startswith("steps."):
                last[int(path.removeprefix("steps."))] = node
    for index, node in last.items():
        node.meta["layer"] = graph.nodes[index].outputs[0]


def check_import(imported: Imported, module: fx.GraphModule, box: ValueBox, *, items: int = COMPARED_ITEMS) -> float:
    """Return the largest difference between the module and ONNX Runtime on the file, relative to the item's outputs.

    One item is compared, too: a file may ask whether there is one.

    Raises:
        ModelError: it is beyond the tolerance.
    """
    images = sample_images(imported, module, box, items)
    compare(imported, module, images[:1], MAX_ROUNDED_SHARE)  # rounding is judged on several
    return compare(imported, module, images, AGREEMENT_TOLERANCE)


def compare(imported: Imported, module: fx.GraphModule, images: NDArray[np.float32], tolerance: float) -> float:
    """Return the largest difference on these images. Raises ModelError where it is beyond the tolerance."""
    expected = run_file(imported, images)
    with torch.no_grad():
        found = module(torch.from_numpy(images)).numpy()
    if found.shape != expected.shape:
        raise ModelError(
            f"{imported.graph.file} gives {list(expected.shape)} for {len(images)} items, its import "
            f"{list(found.shape)}; {FREE_BATCH}"
        )
    error = relative(found, expected, imported.smallest_size)
    if not error <= tolerance and not rounded(module, images, found, expected):  # NaN is not
        raise ModelError(f"{imported.graph.file} {disagreement(imported, module, images, found, expected)}")
    return error


def relative(found: NDArray[Any], expected: NDArray[Any], smallest_size: float = 0.0) -> float:
    """Return the largest difference of any output, over its item's largest output or that of the typical item."""
    return float(errors_of(found, expected, smallest_size).max())


def errors_of(found: NDArray[Any], expected: NDArray[Any], smallest_size: float = 0.0) -> NDArray[np.float64]:
    """Return each output's difference [item, output], over its item's largest output or that of the typical item."""
    values = expected.reshape(len(expected), -1).astype(np.float64)
    size = np.abs(values).max(axis=1)
    size = np.maximum(np.maximum(size, np.median(size)), max(smallest_size, float(np.finfo(np.float32).tiny)))
    errors: NDArray[np.float64] = np.abs(found.reshape(values.shape).astype(np.float64) - values) / size[:, None]
    return errors


def rounded(module: fx.GraphModule, images: NDArray[Any], found: NDArray[Any], expected: NDArray[Any]) -> bool:
    """Tell whether the file's outputs are off the exact ones by no more than rounding moves the import's own."""
    exact = exactly(module, images)
    if exact is None:
        return False
    own, other = (float(np.abs(outputs - exact).max()) for outputs in (found, expected))
    return other <= ROUNDED_FACTOR * own <= MAX_ROUNDED_SHARE * float(np.abs(exact).max())


def disagreement(
    imported: Imported, module: fx.GraphModule, images: NDArray[np.float32], found: NDArray[Any], expected: NDArray[Any]
) -> str:
    """Return why the outputs are apart: the model's own doing where it can be shown, else that of the import."""
    least = imported.smallest_size
    error = relative(found, expected, least)
    if not np.isfinite(expected).all():
        return (
            "gives numbers that are not finite for images of its value box; check --range, or --mean and --std, "
            "against what the model was trained on"
        )
    alone = np.concatenate([run_file(imported, images[i : i + 1]) for i in range(len(images))])
    if not relative(alone, expected, least) <= AGREEMENT_TOLERANCE:
        return (
            "mixes its items: what ONNX Runtime answers for an image depends on the others of its batch; export it in "
            "evaluation mode (model.eval()), with nothing summed or normalised over the batch"
        )
    exact = exactly(module, images)
    rounding = 0.0 if exact is None else relative(found, exact, least)
    if error <= MAX_ROUNDING_FACTOR * rounding:
        return (
            f"rounds so strongly that ONNX Runtime and torch differ by {error:.1e} (relative; at most "
            f"{AGREEMENT_TOLERANCE:g}), and torch from float64 by {rounding:.1e}; look for sums that cancel or numbers "
            "beyond 1e4 in the model, or normalise its inputs"
        )
    errors = errors_of(found, expected, least)
    item, at = np.unravel_index(int(np.nan_to_num(errors, nan=np.inf).argmax()), errors.shape)
    values = [f"{outputs.reshape(errors.shape)[item, at]:.6g}" for outputs in (found, expected)]
    return (
        f"was imported wrongly: outputs differ from ONNX Runtime's by {error:.1e} of their size, at most "
        f"{AGREEMENT_TOLERANCE:g}: output {at} of noise item {item} is {values[0]}, in ONNX Runtime {values[1]}. "
        f"To go on: {OTHERWISE}"
    )


def exactly(module: fx.GraphModule, images: NDArray[np.float32]) -> NDArray[Any] | None:
    """Return the import's outputs in double precision; None where a constant or a cast keeps it to float32."""
    try:
        with torch.no_grad():
            exact: NDArray[Any] = copy.deepcopy(module).double()(torch.from_numpy(images).double()).numpy()
    except RuntimeError:
        return None
    return exact


def sample_images(imported: Imported, module: fx.GraphModule, box: ValueBox, items: int) -> NDArray[np.float32]:
    """Draw noise in the value box, coarse and fine, [item, ...]; whole numbers for a byte wire."""
    wire = noise_items(module, box, items)
    return np.rint(wire) if imported.graph.datatype == "UINT8" else wire


def noise_items(module: fx.GraphModule, box: ValueBox, items: int) -> NDArray[np.float32]:
    """Draw noise in the value box, coarse and fine, [item, ...], shaped as a graph takes items."""
    (start,) = [node for node in module.graph.nodes if node.op == "placeholder"]
    shape = tuple(int(size) for size in start.meta["val"].shape[1:])
    generator = np.random.default_rng(0)
    unit = generator.random((items, *shape))
    if places := shape[1:]:
        unit = (unit + generator.random((items, shape[0], *(1,) * len(places)))) / 2
    low, high = box.bounds
    return box.allowed(low + unit * (high - low))


def run_file(imported: Imported, images: NDArray[np.float32], *, as_served: bool = False) -> NDArray[Any]:
    """Return the file's own output for items with channels first, as many at a time as it was made for.

    It is that of the file's float form unless `as_served`.
    """
    graph = imported.graph
    wire = images.transpose(to_wire(imported.layout, images.ndim))
    narrow = as_served or graph.datatype not in ("FP16", "FP64")
    wire = np.ascontiguousarray(wire.astype(DATATYPES[graph.datatype] if narrow else np.float32))
    ort = onnxruntime()
    options = ort.SessionOptions()
    options.log_severity_level = 3
    options.intra_op_num_threads = 1
    file = str(graph.file) if as_served or graph.float_file is None else graph.float_file
    try:
        session = ort.InferenceSession(file, options, providers=["CPUExecutionProvider"])
        size = graph.batch or min(len(wire), RUN_ITEMS)
        rows = [np.resize(wire[i : i + size], (size, *wire.shape[1:])) for i in range(0, len(wire), size)]
        others = other_inputs(session, graph.input, size)
        answers = [tabular(graph, session.run([graph.output], {graph.input: part, **others})[0]) for part in rows]
        return np.concatenate(answers)[: len(wire)]
    except Exception as error:  # onnxruntime raises its own untyped family
        said = (str(error).splitlines() or ["?"])[0]
        remedy = CATEGORIES if OUT_OF_BOUNDS in said else ""
        raise ModelError(f"ONNX Runtime cannot run {graph.file}: {said}{remedy}") from error


def tabular(graph: Graph, answer: Any) -> NDArray[Any]:
    """Return an answer as an array; ZipMap's, a map by class for each item, as scores in the order of its classes."""
    if not isinstance(answer, list):
        return np.asarray(answer)
    labels = graph.nodes[-1].get("classlabels_int64s") or graph.nodes[-1].get("classlabels_strings")
    return np.asarray([[scores[label] for label in labels] for scores in answer])
