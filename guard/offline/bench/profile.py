"""A profile of where a program's time goes, from ONNX Runtime's own profiler, by what each operator is for."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray

from guard.offline.bench.excerpt import INPUT, parts, read_graph, write_graph
from guard.session import PROVIDERS, Device, onnxruntime, session_options

MARK = "::"  # between a part's name and a tensor's; ONNX Runtime names what it fuses after the tensors
KERNEL = "_kernel_time"
PROFILED_CALLS = 20
LAYOUT = ("ReorderInput", "ReorderOutput")  # into and out of ONNX Runtime's blocked layout


@dataclass(frozen=True)
class OperatorTime:
    """The time of all operators of one type in one part of the program, in one call."""

    part: str
    kind: str  # ONNX Runtime's operator type
    count: int
    microseconds: float


@dataclass(frozen=True)
class Profile:
    """A program's operators in a call of `items` items; profiling itself adds a little to each."""

    program: str
    items: int
    operators: tuple[OperatorTime, ...]  # dearest first

    @property
    def microseconds(self) -> float:
        return sum(operator.microseconds for operator in self.operators)

    def by_part(self) -> dict[str, float]:
        """Return the microseconds of each part, dearest first; `forward` is what one pass of the model costs here."""
        total: Counter[str] = Counter()
        for operator in self.operators:
            total[operator.part] += operator.microseconds  # type: ignore[assignment]
        return dict(total.most_common())


def profile(
    path: Path,
    images: NDArray[Any],
    *,
    program: str,
    detectors: Sequence[str],
    device: Device,
    threads: int | None,
    folder: Path,
) -> Profile:
    """Run the program PROFILED_CALLS times under ONNX Runtime's profiler; `folder` takes what that writes."""
    model = read_graph(path)
    mark(model, parts(model, detectors))
    marked = write_graph(model, folder / f"{program}-marked.onnx", path.parent)
    options = session_options(onnxruntime(), threads=threads, spinning=True)
    options.enable_profiling = True
    options.profile_file_prefix = str(folder / f"{program}-{len(images)}")
    options.optimized_model_filepath = str(folder / f"{program}-optimised.onnx")
    session = onnxruntime().InferenceSession(str(marked), options, providers=[PROVIDERS[device]])
    wanted = [o.name for o in session.get_outputs() if o.name.endswith((f"{MARK}logits", f"{MARK}scores"))]
    for _ in range(PROFILED_CALLS):
        session.run(wanted, {session.get_inputs()[0].name: images})
    events = json.loads(Path(session.end_profiling()).read_text(encoding="utf-8"))
    places = parts_of_nodes(read_graph(folder / f"{program}-optimised.onnx"))
    return Profile(program, len(images), operators(events, places))


def mark(model: onnx.ModelProto, part_of: Mapping[str, str]) -> None:
    """Put a part's name before the name of each tensor that is computed in the program.

    Recorded shapes stay: without them ONNX Runtime leaves its blocked layout where it would not in the program itself.
    """
    named = {name: f"{part}{MARK}{name}" for name, part in part_of.items()}
    for index, node in enumerate(model.graph.node):
        node.name = f"{part_of[node.output[0]]}{MARK}{index}"
        for field in (node.input, node.output):
            field[:] = [named.get(name, name) for name in field]
    for value in (*model.graph.output, *model.graph.value_info):
        value.name = named.get(value.name, value.name)


def parts_of_nodes(optimised: onnx.ModelProto) -> dict[str, str]:
    """Return the part of each node that ONNX Runtime made: by the names it kept, or else its reader's.

    A reorder between layouts has its reader's part first.
    """
    part_of: dict[str, str] = {}  # of what reads a tensor
    found: dict[str, str] = {}
    fixed = {tensor.name for tensor in optimised.graph.initializer}
    for node in reversed(optimised.graph.node):
        own = part_named(node.name, *node.output, *(name for name in node.input if name not in fixed))
        read = next((part_of[name] for name in node.output if name in part_of), None)
        found[node.name] = (read or own or INPUT) if node.op_type in LAYOUT else (own or read or INPUT)
        part_of |= dict.fromkeys(node.input, found[node.name])
    return found


def part_named(*names: str) -> str | None:
    """Return the part that the first marked name tells; a fused node's name is `fused PART::...`."""
    return next((name.split(MARK)[0].removeprefix("fused ") for name in names if MARK in name), None)


def operators(events: Sequence[Mapping[str, Any]], places: Mapping[str, str]) -> tuple[OperatorTime, ...]:
    """Sum up, by part and type, each kernel's median time over all calls but the first, which allocates."""
    kernels = [e for e in events if e.get("cat") == "Node" and str(e["name"]).endswith(KERNEL)]
    times: dict[str, list[float]] = {}
    kinds: dict[str, str] = {}
    for event in kernels:
        name = str(event["name"]).removesuffix(KERNEL)
        times.setdefault(name, []).append(float(event["dur"]))
        kinds[name] = str(event["args"]["op_name"])
    sums: Counter[tuple[str, str]] = Counter()
    counts: Counter[tuple[str, str]] = Counter()
    for name, taken in times.items():
        key = (places.get(name) or part_named(name) or INPUT, kinds[name])
        sums[key] += float(np.median(taken[1:] or taken))  # type: ignore[assignment]
        counts[key] += 1
    return tuple(OperatorTime(*key, counts[key], taken) for key, taken in sums.most_common())
