"""Compiles programs and denoisers to a bundle's ONNX files; `parity` checks them against torch before it is written.

Rule 1: the programs of a bundle share one weights file; no graph carries a path or a stack trace.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
import torch
from numpy.typing import NDArray

from guard.bundle import WEIGHTS
from guard.manifest import ProgramSpec, RepairSpec
from guard.offline.model.onnx_export.export import OPSET_VERSION, lower
from guard.offline.programs.program import Cleaner, Program
from guard.session import GraphInMemory

INLINE_BYTES = 1024  # smaller tensors stay in their graph


@dataclass(frozen=True)
class ProgramFiles:
    """The graphs of a bundle as files, with the specification of each."""

    programs: tuple[ProgramSpec, ...]
    repairs: tuple[RepairSpec, ...]
    files: Mapping[str, bytes]

    def in_memory(self, file: str) -> GraphInMemory:
        """Return one of the graphs with the large tensors that it reads from the weights file."""
        model = onnx.load_from_string(self.files[file])
        return GraphInMemory(file, self.files[file], {t.name: self.tensor(t) for t in external(model)})

    def tensor(self, tensor: onnx.TensorProto) -> NDArray[Any]:
        """Return the values of a tensor that lies in the weights file."""
        place = {entry.key: entry.value for entry in tensor.external_data}
        dtype = onnx.helper.tensor_dtype_to_np_dtype(tensor.data_type)
        start, length = int(place["offset"]), int(place["length"])
        content = memoryview(self.files[WEIGHTS])[start : start + length]
        return np.frombuffer(content, dtype=dtype).reshape(tuple(tensor.dims))


def external(model: onnx.ModelProto) -> list[onnx.TensorProto]:
    """Return the tensors of a graph that are stored outside it."""
    return [t for t in model.graph.initializer if t.data_location == onnx.TensorProto.EXTERNAL]


def compile_programs(
    programs: Mapping[str, Program], cleaners: Mapping[str, Cleaner], wire: NDArray[Any]
) -> ProgramFiles:
    """Lower programs and denoisers to ONNX and pool their weights; `wire` are real inputs [item, ...].

    Raises:
        ModelError: something has no ONNX form.
    """
    pool = WeightsPool()
    files: dict[str, bytes] = {}
    specs: list[ProgramSpec] = []
    repairs: list[RepairSpec] = []
    example = torch.from_numpy(wire[:4])
    for name, program in programs.items():
        model = lower(program, example, input_name=program.spec.name, output_names=program.outputs, opset=OPSET_VERSION)
        files[f"{name}.onnx"] = pool.take_from(model)
        specs.append(
            ProgramSpec(
                name,
                f"{name}.onnx",
                program.names,
                program.gather.rows,
                program.gather.backwards,
                OPSET_VERSION,
                round(program.gather.forwards, 4),
                program.opinions,
            )
        )
    for name, cleaner in cleaners.items():
        model = lower(cleaner, example, input_name=cleaner.spec.name, output_names=cleaner.outputs, opset=OPSET_VERSION)
        files[f"repair-{name}.onnx"] = pool.take_from(model)
        repairs.append(RepairSpec(name, f"repair-{name}.onnx", repr(cleaner.denoiser), cleaner.opinions))
    files[WEIGHTS] = pool.content()
    return ProgramFiles(tuple(specs), tuple(repairs), files)


class WeightsPool:
    """A pool of the large tensors of several graphs in one file, each content once."""

    def __init__(self) -> None:
        self.chunks: list[bytes] = []
        self.size = 0
        self.places: dict[bytes, tuple[int, int]] = {}

    def take_from(self, model: onnx.ModelProto) -> bytes:
        """Move the model's large tensors into the pool; return the graph that is left, serialized."""
        for tensor in model.graph.initializer:
            content = onnx.numpy_helper.to_array(tensor).tobytes()
            if len(content) < INLINE_BYTES:
                continue
            offset, length = self.place(content)
            tensor.ClearField("raw_data")
            tensor.ClearField("float_data")
            tensor.data_location = onnx.TensorProto.EXTERNAL
            for key, value in (("location", WEIGHTS), ("offset", str(offset)), ("length", str(length))):
                entry = tensor.external_data.add()
                entry.key, entry.value = key, value
        return model.SerializeToString(deterministic=True)

    def place(self, content: bytes) -> tuple[int, int]:
        key = hashlib.sha256(content).digest()
        if key not in self.places:
            padding = -self.size % 64
            self.chunks.append(b"\0" * padding + content)
            self.places[key] = (self.size + padding, len(content))
            self.size += padding + len(content)
        return self.places[key]

    def content(self) -> bytes:
        return b"".join(self.chunks)
