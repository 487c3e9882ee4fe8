"""A bundle at work: wire inputs -> readings -> risk -> p-value. Evaluation and serving both go through here.

Rule 1: what is evaluated is what is served; there is no second path from an image to a p-value.
Rule 2: an item's p-value depends on no other item of its batch.
Rule 3: a guard beside a model server takes no more of the machine than it was given: all sessions of a shared Runtime
together have its threads, and a thread without work sleeps.
"""

from __future__ import annotations

import copy
import os
import threading
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from guard import container
from guard.bundle import Bundle, ProgramSpec
from guard.calibration import Calibration, cascade_risk, jitter
from guard.errors import BundleError, DataError, DeviceError
from guard.fusion import Floats

Device = Literal["cpu", "cuda"]
Arena = Literal["as_requested", "power_of_two"]
ARENAS: dict[Arena, str] = {"as_requested": "kSameAsRequested", "power_of_two": "kNextPowerOfTwo"}
PROVIDERS = {"cpu": "CPUExecutionProvider", "cuda": "CUDAExecutionProvider"}
LOGITS_TOLERANCE = 1e-3  # relative L2 an item, bundle's samples against this machine
SHARED_TURN = threading.Lock()  # of all shared sessions of this process, whichever Runtime they belong to


@dataclass(frozen=True)
class Readings:
    """What the cascade found out about each item."""

    logits: NDArray[np.float32]  # [item, class]
    scores: Floats  # [item, detector]; NaN where the detector did not run
    risk: Floats  # [item]
    p_value: Floats  # [item]; small is suspicious
    program: NDArray[np.int64]  # [item] index of the program that decided
    detector_p: Floats = field(repr=False)  # [item, detector] two-sided; NaN where the detector did not run

    @property
    def prediction(self) -> NDArray[np.int64]:
        return np.asarray(self.logits.argmax(axis=1), dtype=np.int64)

    def rows(self, start: int, stop: int) -> Readings:
        """The readings of some of the items."""
        part = slice(start, stop)
        return Readings(
            self.logits[part],
            self.scores[part],
            self.risk[part],
            self.p_value[part],
            self.program[part],
            self.detector_p[part],
        )


@dataclass(frozen=True)
class CudaOptions:
    """What the sessions may take of a CUDA device; without meaning where the programs run on the CPU."""

    device_id: int = 0
    memory_bytes: int | None = None  # most that one session's arena may hold; None: no limit. cuDNN's own is beside it
    arena: Arena = "as_requested"  # by how much it grows; doubling pushes neighbours out (onnxruntime#16307)


DEFAULT_CUDA = CudaOptions()


def providers(device: Device, cuda: CudaOptions) -> list[Any]:
    """What ONNX Runtime is asked to run on, with its settings."""
    if device == "cpu":
        return [PROVIDERS["cpu"]]
    settings = {"device_id": str(cuda.device_id), "arena_extend_strategy": ARENAS[cuda.arena], "use_tf32": "0"}
    if cuda.memory_bytes is not None:
        settings["gpu_mem_limit"] = str(cuda.memory_bytes)
    return [(PROVIDERS["cuda"], settings)]


def session_options(ort: Any, *, threads: int | None, spinning: bool) -> Any:
    """Settings of a session that computes on `threads` threads, its caller among them; None: on `container.cpus()`.

    ONNX Runtime is blind to a container's quota: left alone it takes a thread for each core of the host. A thread that
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
    """One ONNX graph, loaded on one device."""

    def __init__(
        self, path: Path, *, device: Device, threads: int | None, cuda: CudaOptions = DEFAULT_CUDA, shared: bool = False
    ) -> None:
        """Load it. The threads of a `shared` session do not spin, and no two shared sessions compute on CPUs at once.

        Raises:
            BundleError: ONNX Runtime cannot load the file.
            DeviceError: the device that was asked for is not there.
        """
        ort = onnxruntime()
        options = session_options(ort, threads=threads, spinning=not shared)
        self.turn: AbstractContextManager[Any] = SHARED_TURN if shared and device == "cpu" else nullcontext()
        if device == "cuda" and PROVIDERS["cuda"] not in ort.get_available_providers():
            raise DeviceError(
                "device = 'cuda' was asked for, but this ONNX Runtime has no CUDA; "
                "install inference-guard[gpu] instead of [cpu]"
            )
        try:
            self.session = ort.InferenceSession(str(path), options, providers=providers(device, cuda))
        except Exception as error:  # onnxruntime raises its own untyped family
            raise BundleError(f"ONNX Runtime cannot load {path.name}: {str(error).splitlines()[0]}") from error
        if self.session.get_providers()[0] != PROVIDERS[device]:
            raise DeviceError(
                f"device = {device!r} was asked for, but ONNX Runtime fell back to {self.session.get_providers()[0]}; "
                f"check the driver, CUDA, cuDNN, device_id = {cuda.device_id} and device_memory_bytes"
            )
        self.input = self.session.get_inputs()[0].name

    def run(self, outputs: Sequence[str], inputs: NDArray[Any]) -> list[NDArray[Any]]:
        with self.turn:
            result: list[NDArray[Any]] = self.session.run(list(outputs), {self.input: inputs})
        return result


def onnxruntime() -> Any:
    """The one installed ONNX Runtime. Raises DeviceError where there is none, or two that overwrote each other."""
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
    # From 1.29 on it tells Microsoft of each process and model, on a thread of its own (onnxruntime#27379).
    os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
    import onnxruntime as ort

    return ort


def divided(threads: int, costs: Sequence[int]) -> list[int]:
    """Threads for each session, together `threads`: they run one after another, so all share the one that calls them.

    The others belong to one session each, and each goes where it saves most: cost / t - cost / (t + 1). For example
    4 threads among programs of 1 and 5 forwards: the caller and one for the first, the caller and two for the second.

    ONNX Runtime has a pool that sessions share (`set_global_thread_pool_sizes`). It is not used: from Python (1.23 to
    1.32) its threads cannot be kept from spinning, whatever the sessions say, and a process makes it once, in one size,
    while `guard bench` compares sizes. Measured once on two shared cores, a ResNet-20's two programs on one item every
    30 ms: divided 6.8 ms, both threads for either 6.5 ms, in the shared pool 13.3 ms and 36 ms of processor time.
    """
    widths = [1] * len(costs)
    for _ in range(threads - 1):
        saved = [cost / width - cost / (width + 1) for cost, width in zip(costs, widths, strict=True)]
        widths[saved.index(max(saved))] += 1
    return widths


class Runtime:
    """A bundle's programs, loaded and ready to read."""

    def __init__(
        self,
        bundle: Bundle,
        *,
        device: Device = "cpu",
        threads: int | None = None,
        cuda: CudaOptions = DEFAULT_CUDA,
        shared: bool = False,
    ) -> None:
        """Load every program and repair.

        Each has `threads` threads (None: `container.cpus()`), and they spin: right where nothing else wants the cores.
        `shared` is for a process with neighbours: the sessions together have `threads` threads, none spins, and the
        sessions of several shared Runtimes take turns, so that no more than that many compute.

        Raises:
            BundleError: a program cannot be loaded, or is not what the manifest says.
            DeviceError: the device that was asked for is not there.
        """
        self.bundle = bundle
        self.device: Device = device
        self.calibration = bundle.calibration
        self.spec = bundle.manifest.model.input
        self.programs: tuple[ProgramSpec, ...] = bundle.manifest.programs
        threads = container.cpus() if threads is None else threads
        costs = [1 + p.backwards + p.rows for p in self.programs]
        widths = divided(threads, costs) if shared else [threads] * len(costs)
        self.sessions = [
            Session(bundle.path / p.file, device=device, threads=width, cuda=cuda, shared=shared)
            for p, width in zip(self.programs, widths, strict=True)
        ]
        width = 1 if shared else threads  # repairs are small, and few items need one
        self.repairs = {
            r.name: Session(bundle.path / r.file, device=device, threads=width, cuda=cuda, shared=shared)
            for r in bundle.manifest.repairs
        }
        for session, program in zip(self.sessions, self.programs, strict=True):
            self.verify_graph(session, program)
        names = tuple(name for program in self.programs for name in program.detectors)
        sizes = tuple(len(program.detectors) for program in self.programs)
        if (names, sizes) != (self.calibration.detectors, self.calibration.programs):
            raise BundleError(
                f"calibration.npz ranks {', '.join(self.calibration.detectors)}, "
                f"the manifest's programs have {', '.join(names)}"
            )

    def verify_graph(self, session: Session, program: ProgramSpec) -> None:
        """Raises BundleError when a graph does not take and give what the manifest says."""
        found = session.session.get_inputs()
        if len(found) != 1 or list(found[0].shape[1:]) != list(self.spec.wire_shape):
            raise BundleError(
                f"{program.file} takes {[list(i.shape) for i in found]}, "
                f"the manifest says [item, {', '.join(map(str, self.spec.wire_shape))}]"
            )
        widths = {o.name: o.shape[-1] for o in session.session.get_outputs()}
        wanted = {"logits": self.bundle.manifest.model.output.classes, "scores": len(program.detectors)}
        for name, width in wanted.items():
            if name not in widths:
                raise BundleError(f"{program.file} gives no {name}")
            if widths[name] != width:
                raise BundleError(f"{program.file} gives {widths[name]} {name} an item, the manifest says {width}")

    def with_calibration(self, calibration: Calibration) -> Runtime:
        """The same programs under another calibration."""
        other = copy.copy(self)
        other.calibration = calibration
        return other

    @property
    def rows_per_item(self) -> int:
        """Rows that the widest program puts on the device for one item; what the batcher's limit is counted in."""
        return max(1 + program.rows for program in self.programs)

    def read(self, images: NDArray[Any], *, complete: bool = False) -> Readings:
        """Run the cascade over wire inputs [item, ...].

        `complete` runs every program on every item, so that all scores are there; risk and p-value are the same either
        way.

        Raises:
            DataError: the array's shape or type is not the model's input.
        """
        self.check_images(images)
        count, detectors = len(images), len(self.calibration.detectors)
        logits = np.zeros((count, self.bundle.manifest.model.output.classes), dtype=np.float32)
        scores = np.full((count, detectors), np.nan)
        risk = np.zeros(count)
        program = np.zeros(count, dtype=np.int64)
        waiting = np.arange(count)
        first = 0
        for index, session in enumerate(self.sessions):
            last = first + self.calibration.programs[index]
            rows = np.arange(count) if complete else waiting
            if rows.size == 0:
                break
            found, scored = session.run(("logits", "scores"), images if rows.size == count else images[rows])
            if index == 0:
                logits[rows] = found
            scores[rows, first:last] = scored
            own = self.calibration.fusions[index].risk(scores[waiting, :last])
            decided, level = self.decide(index, own)
            settled = waiting[decided]
            risk[settled] = cascade_risk(level[decided], own[decided])
            program[settled] = index
            waiting, first = waiting[~decided], last
        risk += jitter(images)
        return Readings(
            logits, scores, risk, self.calibration.p_value(risk), program, self.calibration.detector_p_values(scores)
        )

    def decide(self, index: int, risk: Floats) -> tuple[NDArray[np.bool_], NDArray[np.int64]]:
        """Which items program `index` decides, and at which level of the cascade."""
        last = len(self.programs) - 1
        if index == last:
            return np.ones(risk.size, dtype=bool), np.full(risk.size, last)
        band = self.calibration.bands[index]
        above, below = risk > band.high, risk < band.low
        return above | below, np.where(above, 2 * last - index, index)

    def repair(self, images: NDArray[Any], name: str) -> NDArray[Any]:
        """Wire inputs [item, ...] cleaned by the bundle's denoiser `name`; same shape and type."""
        self.check_images(images)
        self.bundle.repair(name)
        return self.repairs[name].run(("cleaned",), images)[0].astype(self.spec.dtype, copy=False)

    def check_images(self, images: NDArray[Any]) -> None:
        if images.shape[1:] != self.spec.wire_shape or images.ndim != len(self.spec.shape) + 1:
            raise DataError(
                f"inputs have shape {list(images.shape)}; "
                f"the model takes [item, {', '.join(map(str, self.spec.wire_shape))}]"
            )
        if images.dtype != self.spec.dtype:
            raise DataError(f"inputs are {images.dtype}; the model takes {self.spec.dtype} ({self.spec.datatype})")

    def self_check(self) -> None:
        """Read the bundle's own samples and compare. Raises BundleError when this machine gives other answers."""
        samples = self.bundle.samples
        readings = self.read(samples.images)
        error = np.linalg.norm(readings.logits - samples.logits, axis=1) / np.maximum(
            np.linalg.norm(samples.logits, axis=1), 1e-12
        )
        if error.max(initial=0.0) > LOGITS_TOLERANCE:
            raise BundleError(
                f"self-check: the model's outputs differ from the bundle's samples by {error.max():.1e} "
                f"on {self.device}"
            )
        for rate in (self.bundle.manifest.reject_rate, self.bundle.manifest.flag_rate):
            flipped = (readings.p_value <= rate) != (samples.p_values <= rate)
            if flipped.any():
                raise BundleError(
                    f"self-check: {int(flipped.sum())} of {len(flipped)} samples got another verdict at {rate:g} "
                    f"on {self.device}"
                )
