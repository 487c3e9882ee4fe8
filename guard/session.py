"""An ONNX graph, loaded by ONNX Runtime on one device.

Rule 1: shared sessions of a process take turns on the CPU: no more threads compute than one of them was given.
"""

from __future__ import annotations

import io
import os
import threading
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext, redirect_stdout
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from guard import container
from guard.errors import BundleError, DeviceError, first_line

Device = Literal["cpu", "cuda"]
Arena = Literal["as_requested", "power_of_two"]
ARENAS: dict[Arena, str] = {"as_requested": "kSameAsRequested", "power_of_two": "kNextPowerOfTwo"}
PROVIDERS = {"cpu": "CPUExecutionProvider", "cuda": "CUDAExecutionProvider"}
SHARED_TURN = threading.Lock()  # held by the shared session that computes, whichever Runtime it belongs to


@dataclass(frozen=True)
class GraphInMemory:
    """An ONNX graph in memory instead of a file, with its large tensors beside it."""

    name: str  # for error messages
    content: bytes = field(repr=False)
    weights: Mapping[str, NDArray[Any]] = field(repr=False)  # by the names that the graph has for them


@dataclass(frozen=True)
class GraphOfFiles:
    """The content of an ONNX file, with the content of the files that hold its large tensors."""

    name: str  # for error messages
    content: bytes = field(repr=False)
    beside: Mapping[str, bytes] = field(repr=False)  # by the file names that the graph has for them


@dataclass(frozen=True)
class CudaOptions:
    """Limits on what a session may take of a CUDA device; they mean nothing where the programs run on the CPU."""

    device_id: int = 0
    memory_bytes: int | None = None  # most that one session's arena may hold; None: no limit. cuDNN's own is beside it
    arena: Arena = "as_requested"  # by how much it grows; doubling pushes neighbours out (onnxruntime#16307)


DEFAULT_CUDA = CudaOptions()


def providers(device: Device, cuda: CudaOptions) -> list[Any]:
    """The execution providers that ONNX Runtime is asked to use, with their settings."""
    if device == "cpu":
        return [PROVIDERS["cpu"]]
    settings = {"device_id": str(cuda.device_id), "arena_extend_strategy": ARENAS[cuda.arena], "use_tf32": "0"}
    if cuda.memory_bytes is not None:
        settings["gpu_mem_limit"] = str(cuda.memory_bytes)
    return [(PROVIDERS["cuda"], settings)]


def session_options(ort: Any, *, threads: int | None, spinning: bool) -> Any:
    """The settings of a session that computes on `threads` threads, its caller among them; None: on `container.cpus()`.

    ONNX Runtime does not see a container's quota: left alone it takes a thread for each core of the host. A thread that
    spins waits for the next call in a loop, which burns its core for some 20 ms after each call.
    """
    options = ort.SessionOptions()
    options.log_severity_level = 3
    options.intra_op_num_threads = container.cpus() if threads is None else threads
    options.inter_op_num_threads = 1
    if not spinning:
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    return options


class Session:
    """A loaded ONNX graph, ready to run on one device."""

    def __init__(
        self,
        graph: Path | GraphInMemory | GraphOfFiles,
        *,
        device: Device,
        threads: int | None,
        cuda: CudaOptions = DEFAULT_CUDA,
        shared: bool = False,
    ) -> None:
        """Load the graph on the device.

        The threads of a `shared` session do not spin, and no two shared sessions compute on CPUs at once.

        Raises:
            BundleError: ONNX Runtime cannot load the file.
            DeviceError: the device that was asked for is not there.
        """
        ort = onnxruntime()
        options = session_options(ort, threads=threads, spinning=not shared)
        self.turn: AbstractContextManager[Any] = SHARED_TURN if shared and device == "cpu" else nullcontext()
        said = ""
        if device == "cuda":
            if PROVIDERS["cuda"] not in ort.get_available_providers():
                raise DeviceError(
                    "device = 'cuda' was asked for, but this ONNX Runtime has no CUDA; "
                    "install inference-guard[gpu] instead of [cpu]"
                )
            said = loaded_cuda_libraries(ort)
        try:
            source = source_of(graph, options, ort)
            self.session = ort.InferenceSession(source, options, providers=providers(device, cuda))
        except Exception as error:  # onnxruntime raises its own untyped family
            raise BundleError(f"ONNX Runtime cannot load {graph.name}: {first_line(error)}") from error
        if self.session.get_providers()[0] != PROVIDERS[device]:
            raise DeviceError(
                f"device = {device!r} was asked for, but ONNX Runtime fell back to {self.session.get_providers()[0]}; "
                f"check the driver, CUDA, cuDNN, device_id = {cuda.device_id} and device_memory_bytes{said}"
            )
        self.input = self.session.get_inputs()[0].name

    def run(self, outputs: Sequence[str], inputs: NDArray[Any] | Mapping[str, NDArray[Any]]) -> list[NDArray[Any]]:
        """Run the graph and return the named outputs; `inputs` is a mapping by name, or the only input."""
        feed = inputs if isinstance(inputs, Mapping) else {self.input: inputs}
        with self.turn:
            result: list[NDArray[Any]] = self.session.run(list(outputs), feed)
        return result


def loaded_cuda_libraries(ort: Any) -> str:
    """Load CUDA and cuDNN from where pip puts them, and return what ONNX Runtime says that it missed.

    The loader of the system does not look into `site-packages/nvidia`, where the extra [gpu] installs them.
    """
    with redirect_stdout(io.StringIO()) as said:
        ort.preload_dlls()
    missed = "; ".join(line for line in said.getvalue().splitlines() if line.startswith("Failed"))
    return f": {missed}" if missed else ""


def source_of(graph: Path | GraphInMemory | GraphOfFiles, options: Any, ort: Any) -> str | bytes:
    """The source that ONNX Runtime loads: a path, or a graph in memory, whose weights are added to `options`."""
    if isinstance(graph, Path):
        return str(graph)
    if isinstance(graph, GraphOfFiles):
        if graph.beside:
            buffers = list(graph.beside.values())
            options.add_external_initializers_from_files_in_memory(list(graph.beside), buffers, list(map(len, buffers)))
        return graph.content
    values = [ort.OrtValue.ortvalue_from_numpy(np.ascontiguousarray(array)) for array in graph.weights.values()]
    options.add_external_initializers(list(graph.weights), values)
    return graph.content


def loads_files_from_memory() -> bool:
    """Whether this ONNX Runtime takes tensors' files from memory (1.23 does not)."""
    return hasattr(onnxruntime().SessionOptions, "add_external_initializers_from_files_in_memory")


def onnxruntime() -> Any:
    """Import the installed ONNX Runtime. Raises DeviceError where there is none, or two that overwrote each other."""
    from importlib.metadata import PackageNotFoundError, version

    have = []
    for name in ("onnxruntime", "onnxruntime-gpu"):
        try:
            version(name)
            have.append(name)
        except PackageNotFoundError:
            continue
    if len(have) == 2:
        raise DeviceError(
            "onnxruntime and onnxruntime-gpu are both installed and overwrite each other; "
            "uninstall both, then install one extra"
        )
    if not have:
        raise DeviceError("ONNX Runtime is not installed; install inference-guard[cpu] or inference-guard[gpu]")
    # From 1.29 on it reports each process and model to Microsoft, on a thread of its own (onnxruntime#27379).
    os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
    import onnxruntime as ort

    return ort
