"""What torch's exporter writes, once a test run: the same traced module with the same numbers is not written twice.

Rule 1. Only the writing is remembered; `torch.export` traces each module, and what the guard does to the file is done.
Rule 2. A file is found by all that the writing depends on: operators, shapes, ranges, numbers and options.
"""

from __future__ import annotations

import functools
import hashlib
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import onnx
import pytest
import torch
import torch._export.utils as torch_export
from torch.export import ExportedProgram
from torch.onnx._internal.exporter._registration import ONNXRegistry

PLACE = "# File:"  # where an operator was written down: it says nothing about what is computed


@dataclass(frozen=True)
class Written:
    """What `torch.onnx.export` answers, as far as the guard reads it."""

    model_proto: onnx.ModelProto


@dataclass(frozen=True)
class RememberedExport:
    """`torch.onnx.export` with a folder of what it has written."""

    folder: Path
    export: Callable[..., Any]

    def __call__(self, module: Any, *arguments: Any, **options: Any) -> Any:
        if not isinstance(module, ExportedProgram) or arguments or "f" in options:
            return self.export(module, *arguments, **options)
        file = self.folder / f"{digest(module, options)}.onnx"
        if not file.exists():
            program = self.export(module, **options)
            unfinished = file.with_suffix(f".{os.getpid()}")
            unfinished.write_bytes(program.model_proto.SerializeToString())
            unfinished.replace(file)
        return Written(onnx.load_model_from_string(file.read_bytes()))


def digest(program: ExportedProgram, options: dict[str, Any]) -> str:
    """The name of what a traced module becomes."""
    lines = [line for line in str(program).splitlines() if PLACE not in line]
    found = hashlib.sha256("\n".join([repr(sorted(options.items())), *lines]).encode())
    for part in (program.state_dict, program.constants):
        for name, value in sorted(part.items()):
            numbers = value.detach().cpu().contiguous() if isinstance(value, torch.Tensor) else None
            found.update(f"{name} {value!r}".encode() if numbers is None else f"{name} {value.dtype}".encode())
            if numbers is not None:
                found.update(numbers.reshape(-1).view(torch.uint8).numpy().tobytes())
    return found.hexdigest()


@contextmanager
def remembered(folder: Path) -> Iterator[None]:
    """Let the exporter write each module once, and list its 557 operators and torch's own once a process."""
    folder.mkdir(exist_ok=True)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch.onnx, "export", RememberedExport(folder, torch.onnx.export))
        patch.setattr(ONNXRegistry, "from_torchlib", staticmethod(functools.cache(ONNXRegistry.from_torchlib)))
        patch.setattr(torch_export, "_materialize_cpp_cia_ops", functools.cache(torch_export._materialize_cpp_cia_ops))
        yield
