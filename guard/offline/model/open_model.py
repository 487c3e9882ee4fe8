"""Opens a model, whatever file or factory it comes from, as a Classifier."""

from __future__ import annotations

import zipfile
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import torch
from torch import Tensor, fx, nn
from torch.export import Dim, ExportedProgram
from torch.utils._pytree import SUPPORTED_NODES

from guard.axes import axes_of, in_layout
from guard.errors import ModelError, first_line
from guard.features import Feature
from guard.manifest import DATATYPES, InputSpec, ModelSpec, OutputSpec
from guard.offline.model.agreement import fault_of
from guard.offline.model.asking import asked
from guard.offline.model.channel_axis import with_channels_second
from guard.offline.model.classifier import Classifier, fingerprint
from guard.offline.model.final_operators import Ending, is_probability, strip_final
from guard.offline.model.graph.batch_norm import fold_batch_norm
from guard.offline.model.half_precision import answers_of, input_datatype, input_type, other_formats, widened
from guard.offline.model.onnx_import.graph_node import OTHERWISE
from guard.offline.model.onnx_import.importer import check_import, import_onnx, run_file
from guard.offline.model.output_probe import refuse_probabilities
from guard.offline.model.series_program import (
    first_that_works,
    from_channels_first,
    layout_read,
    without_recurrence,
)
from guard.offline.model.served import Served
from guard.offline.model.served_file import served_file
from guard.offline.model.several_outputs import fields_of, one_output, single_path, wire_and_way
from guard.offline.model.taps import find_taps
from guard.offline.model.through_onnx import in_known_operators
from guard.offline.model.unit_space import bounds
from guard.offline.model.user_code import import_attribute
from guard.value_box import ValueBox

aten = torch.ops.aten

BRING = ": bring them to the model's (--data-layout says whether channels are first or last)"


@dataclass(frozen=True)
class Source:
    """The model's place and its owner's settings; an empty setting is found out, or has its usual value."""

    model: str  # an .onnx or .pt2 file, or module:factory
    item_shape: tuple[int, ...]  # of the data's items, channels first
    low: tuple[float, ...] = (0.0,)  # value box of the wire input
    high: tuple[float, ...] = (1.0,)
    grid: int | None = None
    features: tuple[Feature, ...] = ()  # of a table
    input_name: str | None = None
    output_name: str | None = None
    output: str = "logits"  # logits | probabilities | label
    serves: str = "model"  # NAME[:VERSION] that clients ask for
    labels: tuple[str, ...] = ()
    numbers: tuple[int, ...] = ()  # by which labels on the wire name the classes, where they do not run from 0
    datatype: str = "FP32"  # of the wire input; an .onnx file says it itself, and the layout too
    layout: str | None = None
    served: Path | None = None  # the .onnx file that answers clients, where that is another
    input_type: str | None = None  # FP64 where clients send a float32 model that; None: the model's own

    @property
    def wire_layout(self) -> str:
        """The order of axes on the wire, as far as it is known; the guard's own unless given."""
        own = axes_of(self.item_shape).layouts
        return self.layout if self.layout in own else own[0]

    @property
    def box(self) -> ValueBox:
        """The value box in which the wire input's values lie, as far as it is known."""
        kind = DATATYPES[self.datatype]
        return ValueBox(self.low, self.high, len(self.item_shape), self.wire_layout, kind, self.features)

    @property
    def input_spec(self) -> InputSpec:
        """The specification of the wire input, as far as it is known."""
        return InputSpec(
            name=self.input_name or "input",
            datatype=self.datatype,
            shape=self.item_shape,
            low=self.low,
            high=self.high,
            grid=self.grid,
            layout=self.wire_layout,
            features=self.features,
        )


def open_model(source: Source) -> Classifier:
    """Load, export, strip, fold and tap the model.

    Raises:
        ModelError: it cannot be found, loaded, exported with a free batch axis, or gives no [item, class] output.
    """
    graph, source, served = open_graph(source)
    own = source.datatype
    source = replace(source, datatype=wire_type(source))
    ending = strip_final(graph, source.output)
    served = served and replace(served, ending=ending.served)
    graph = in_unit_space(graph, source)
    classifier = classifier_of(graph, source, ending)
    refuse_probabilities(classifier.graph, ending, source.box)
    if source.served is not None:
        served = served_file(source.served, classifier.spec, ending.served, own)
    return replace(classifier, served=served)


def wire_type(source: Source) -> str:
    """Return the type in which clients send inputs. Raises ModelError for one that the model's own does not fit."""
    asked = source.input_type
    if asked in (None, source.datatype):
        return source.datatype
    if (source.datatype, asked) not in (("FP32", "FP64"), ("FP64", "FP32")):
        raise ModelError(f"--input-type {asked}: the model takes {source.datatype}; wanted that, or FP64 for FP32")
    return str(asked)


def open_student(source: Source, student: nn.Module, kind: str, *, single: bool) -> Classifier:
    """Open a student, which maps unit-space items to logits, in the place of a model that ends in `kind` on the wire.

    Raises ModelError where it cannot be exported.
    """
    own = axes_of(source.item_shape).layouts[0]
    return classifier_of(single_path(export(student, source, own)), source, Ending(kind, single))


def classifier_of(graph: fx.GraphModule, source: Source, ending: Ending) -> Classifier:
    """Return a graph from unit-space items to logits as a classifier. Raises ModelError: it gives no [item, class]."""
    graph = fold_batch_norm(graph)
    freeze(graph)
    classes = count_classes(graph, source)
    name, _, version = source.serves.partition(":")
    spec = ModelSpec(
        name=name,
        version=version,
        fingerprint=fingerprint(graph),
        input=source.input_spec,
        output=OutputSpec(
            source.output_name or ending.kind,
            ending.kind,
            classes,
            named(source, classes),
            ending.single,
            source.numbers if len(source.numbers) == classes else (),
        ),
    )
    taps = find_taps(graph.graph)
    turned = with_channels_second(graph, [tap.node for tap in taps])
    return Classifier(graph, spec, tuple(replace(tap, node=turned.get(tap.node, tap.node)) for tap in taps))


def named(source: Source, classes: int) -> tuple[str, ...]:
    """Return the names of the classes; those that a file holds for something else name none of them."""
    return source.labels if len(source.labels) <= classes else ()


def open_graph(source: Source) -> tuple[fx.GraphModule, Source, Served | None]:
    """Return the model's float32 graph, from wire values with channels first, source, and served model.

    The source is completed by what the file says of the wire; no served model is returned where it is that graph.
    """
    if not source.model.endswith(".onnx"):
        wire, way = wire_and_way(source.output_name)
        layout, program = load_program(source)
        graph, chosen_way = one_output(without_recurrence(program), way)
        graph = from_channels_first(graph, layout)
        source = replace(source, output_name=wire or chosen_way, layout=layout)
        if not (formats := other_formats(graph)):
            return in_known_operators(graph, source.box), source, None
        served = Served(f"computes in {' and '.join(formats)}", "torch on a CPU", answers_of(graph))
        source = replace(source, datatype=input_datatype(graph))
        return in_known_operators(widened(graph), source.box), source, served
    imported = import_onnx(
        Path(source.model),
        source.item_shape,
        input_name=source.input_name,
        output_name=source.output_name,
        layout=source.layout,
    )
    datatype, formats = imported.graph.datatype, imported.graph.formats
    unsaid = datatype == "UINT8" and source.box.is_unit
    source = replace(
        source,
        low=(0.0,) if unsaid else source.low,
        high=(255.0,) if unsaid else source.high,
        input_name=imported.graph.input,
        output_name=imported.graph.output,
        datatype=datatype,
        layout=imported.layout,
        labels=source.labels or imported.graph.class_names,
        numbers=imported.graph.class_numbers,
    )
    graph = single_path(imported.program)
    check_import(replace(imported, smallest_size=1.0) if is_probability(graph) else imported, graph, source.box)
    if (fault := fault_of(graph, graph, source.box)) is not None:
        raise ModelError(f"{source.model}: {fault}; {OTHERWISE}")
    if not formats:
        return graph, source, None
    answers = partial(run_file, imported, as_served=True)
    return graph, source, Served(f"computes in {' and '.join(formats)}", "ONNX Runtime on a CPU", answers)


def load_program(source: Source) -> tuple[str, ExportedProgram]:
    """Load a model from anything but an .onnx file, with the order of axes that it takes. Raises: ModelError."""
    layouts = tuple(sorted(axes_of(source.item_shape).module_layouts, key=lambda one: one != source.layout))
    if source.model.endswith(".pt2"):
        program = load_exported(Path(source.model))
        return layout_taken(program, source.item_shape, layouts), program
    if ":" in source.model:
        model = build(source.model)
        return first_that_works(layouts, lambda layout: export(model, source, layout))
    raise unknown_kind(source.model)


def layout_taken(program: ExportedProgram, item_shape: tuple[int, ...], layouts: tuple[str, ...]) -> str:
    """Return the first order of axes that fits an exported program's input; one that does not is found out later."""
    known = layout_read(program.graph) if len(layouts) > 1 else None
    inputs = set(program.graph_signature.user_inputs)
    taken = [node.meta["val"].shape[1:] for node in program.graph.nodes if node.name in inputs and node.users]
    for layout in layouts:
        sizes = in_layout(item_shape, layout)
        fits = bool(taken) and len(taken[0]) == len(sizes)
        if (
            fits
            and known in (None, layout)
            and all(not isinstance(size, int) or size == own for size, own in zip(taken[0], sizes, strict=True))
        ):
            return layout
    return known or layouts[0]


def unknown_kind(model: str) -> ModelError:
    return ModelError(
        f"{model!r} is no model; wanted an .onnx file, a .pt2 file from torch.export, or module:factory: export what "
        "is in another format (weights alone, .pth, .h5, SavedModel) to one of these"
    )


def load_exported(file: Path) -> ExportedProgram:
    if not file.is_file():
        raise ModelError(f"{file} does not exist; wanted a .pt2 file from torch.export.save")
    if not zipfile.is_zipfile(file):
        raise ModelError(f"{file} is not a torch.export archive: it is damaged, cut short, or of another kind")
    try:
        return torch.export.load(file)
    except Exception as error:  # torch raises many kinds for a foreign archive
        raise ModelError(
            f"{file} is not a torch.export archive that this torch can read: {first_line(error)}"
        ) from error


def build(reference: str) -> nn.Module:
    """Build the nn.Module that `module:factory` returns."""
    try:
        _, factory = import_attribute(reference)
    except (ImportError, AttributeError, ValueError) as error:
        raise ModelError(
            f"{reference!r} cannot be imported: {error}; wanted module:factory with the module on the path"
        ) from error
    try:
        model = factory()
    except Exception as error:  # code from outside this repository may raise anything
        raise ModelError(f"{reference!r} raised {type(error).__name__}: {first_line(error)}") from error
    if not isinstance(model, nn.Module):
        raise ModelError(f"{reference!r} returned {type(model).__name__}; wanted a torch.nn.Module")
    return model


def export(model: nn.Module, source: Source, layout: str) -> ExportedProgram:
    sizes = in_layout(source.item_shape, layout)
    example = torch.zeros(2, *sizes)
    model = model.eval()
    example = example.to(input_type(model, example))
    try:
        tell_of_dataclass(model, example)
        return traced(model, example)
    except Exception as error:  # torch.export's failures have no common type
        raise ModelError(
            f"{source.model} cannot be exported for inputs [item, {', '.join(map(str, sizes))}]: {first_line(error)}"
        ) from error


def traced(model: nn.Module, example: Tensor) -> ExportedProgram:
    """Export a module as it learns; where torch cannot differentiate what it writes in place, as it answers."""
    try:
        return torch.export.export(model, (example,), dynamic_shapes=({0: Dim("item")},), strict=False)
    except RuntimeError:
        with torch.no_grad():  # not at once: torch's encoder layers fuse to one operator under it
            return torch.export.export(model, (example,), dynamic_shapes=({0: Dim("item")},), strict=False)


def tell_of_dataclass(model: nn.Module, example: Tensor) -> None:
    """Register the dataclass that a model returns, without which torch.export refuses it."""
    with torch.no_grad():
        kind = fields_of(model(example))
    if kind is not None and kind not in SUPPORTED_NODES:
        torch.export.register_dataclass(kind)


def in_unit_space(module: fx.GraphModule, source: Source) -> fx.GraphModule:
    """Prepend the map from unit space to wire values where the value box is not [0, 1]."""
    if source.box.is_unit:
        return module
    low, high = bounds(source.box)
    module.register_buffer("box_scale", high - low)
    module.register_buffer("box_low", low)
    (start,) = [node for node in module.graph.nodes if node.op == "placeholder"]
    readers = list(start.users)
    with module.graph.inserting_after(start):
        scale = module.graph.get_attr("box_scale")
    with module.graph.inserting_after(scale):
        shift = module.graph.get_attr("box_low")
    with module.graph.inserting_after(shift):
        scaled = module.graph.call_function(aten.mul.Tensor, (start, scale))
    with module.graph.inserting_after(scaled):
        wire = module.graph.call_function(aten.add.Tensor, (scaled, shift))
    for reader in readers:
        reader.replace_input_with(start, wire)
    module.recompile()
    return module


def freeze(module: fx.GraphModule) -> None:
    module.eval()
    for parameter in module.parameters():
        parameter.requires_grad_(False)


def count_classes(module: fx.GraphModule, source: Source) -> int:
    """Run an example through the model and return the number of classes.

    Raises:
        ModelError: the batch size is fixed, the model cannot take the data's items, or it does not give [item, class].
    """
    (start,) = [node for node in module.graph.nodes if node.op == "placeholder"]
    taken = start.meta["val"].shape
    if isinstance(taken[0], int):
        raise ModelError(f"{source.model} was exported for batches of {taken[0]}; export it with a dynamic batch axis")
    if tuple(taken[1:]) != source.item_shape:
        raise ModelError(
            f"the model takes items of shape {list(taken[1:])}; the data's items have shape {list(source.item_shape)}"
            f"{BRING}"
        )
    result = asked(module, torch.zeros(3, *source.item_shape))
    if not isinstance(result, Tensor) or result.ndim != 2 or result.shape[0] != 3 or result.shape[1] < 2:
        shape = list(result.shape) if isinstance(result, Tensor) else type(result).__name__
        raise ModelError(
            f"for 3 items the model's output has shape {shape}; wanted [3, class] with at least two classes, or one "
            "number an item for two: export it with what it answers for places or steps averaged, or name another "
            "output with --output-name"
        )
    return int(result.shape[1])
