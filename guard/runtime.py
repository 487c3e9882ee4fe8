"""A loaded bundle: its cascade, its repairs, and the check that this machine answers as the bundle says.

Rule 1: a guard beside a model server takes no more of the machine than it was given: all sessions of a shared Runtime
together have its threads, and a thread without work sleeps.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from guard import container
from guard.agreement import logits_apart, tolerated_logits
from guard.bundle import WEIGHTS, Bundle
from guard.calibration import Calibration
from guard.cascade import Cascade, Readings
from guard.errors import BundleError
from guard.manifest import InputSpec, ProgramSpec
from guard.session import DEFAULT_CUDA, CudaOptions, Device, GraphOfFiles, Session, loads_files_from_memory

LOGITS_TOLERANCE = 1e-3  # of the logits' spread, bundle's samples against this machine


def divided(threads: int, costs: Sequence[float]) -> list[int]:
    """Divide `threads` among sessions that run one after another, so that all share the thread that calls them.

    The other threads belong to one session each; each goes where it saves most: cost / t - cost / (t + 1). For example
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


@dataclass(frozen=True, eq=False)
class Repaired:
    """Cleaned wire inputs, and what the bundle's networks say of them."""

    images: NDArray[Any]  # [item, ...], of the shape and type of what was cleaned
    classes: NDArray[np.int64]  # [item, opinion], in the order of the repair's `opinions`

    @property
    def stable(self) -> NDArray[np.bool_]:
        """Whether a repaired answer can be relied on [item]: cleaned once more, and to a second network, it is alike.

        For example classes 3, 3, 3 are stable. 3, 5, 3 are not: cleaning goes on to change the answer. 3, 3, 5 are not:
        the second network sees another class in what was cleaned.
        """
        alike: NDArray[np.bool_] = (self.classes == self.classes[:, :1]).all(axis=1)
        return alike


@dataclass(frozen=True, eq=False)
class Runtime:
    """The programs and repairs of a bundle, loaded on one device and ready to run."""

    bundle: Bundle
    device: Device
    cascade: Cascade
    repairs: Mapping[str, Session]

    @staticmethod
    def open(
        bundle: Bundle,
        *,
        device: Device = "cpu",
        threads: int | None = None,
        cuda: CudaOptions = DEFAULT_CUDA,
        shared: bool = False,
        only_repairs: Collection[str] | None = None,
    ) -> Runtime:
        """Load every program of a bundle, and every repair or only those named.

        Each has `threads` threads (None: `container.cpus()`), which spin: right where nothing else needs the cores.
        `shared` is for a process with neighbours: the sessions together have `threads` threads, none spins, and the
        sessions of several shared Runtimes take turns, so that no more than that many compute. A shared Runtime holds
        all of the bundle in memory: ONNX Runtime maps files that it loads by their path, so that one that is written
        over while it is used would change the answers, and one that is cut short would end the process.

        Raises:
            BundleError: a program cannot be loaded, or is not what the manifest says.
            DeviceError: the device that was asked for is not there.
        """
        manifest, calibration = bundle.manifest, bundle.calibration
        threads = container.cpus() if threads is None else threads
        costs = [p.floor for p in manifest.programs]
        widths = divided(threads, costs) if shared else [threads] * len(costs)

        in_memory = shared and loads_files_from_memory()
        beside = {WEIGHTS: bundle.content(WEIGHTS)} if in_memory and WEIGHTS in bundle.files else {}

        def loaded(file: str, width: int) -> Session:
            place = bundle.path / file
            graph = GraphOfFiles(file, bundle.content(file), beside) if in_memory else place
            return Session(graph, device=device, threads=width, cuda=cuda, shared=shared)

        sessions = tuple(loaded(p.file, width) for p, width in zip(manifest.programs, widths, strict=True))
        width = 1 if shared else threads  # few items need a repair
        wanted = [r for r in manifest.repairs if r.opinions and (only_repairs is None or r.name in only_repairs)]
        repairs = {r.name: loaded(r.file, width) for r in wanted}
        model = manifest.model
        cascade = Cascade(model.input, model.output.classes, manifest.programs, sessions, calibration)
        return Runtime(bundle, device, cascade, repairs)

    @property
    def spec(self) -> InputSpec:
        """The input that the model takes."""
        return self.cascade.spec

    @property
    def calibration(self) -> Calibration:
        """The calibration that turns scores into p-values."""
        return self.cascade.calibration

    @property
    def programs(self) -> tuple[ProgramSpec, ...]:
        """The programs of the cascade, cheapest first."""
        return self.cascade.programs

    @property
    def sessions(self) -> tuple[Session, ...]:
        """The loaded sessions of the programs, in their order."""
        return self.cascade.sessions

    def read(self, images: NDArray[Any], *, complete: bool = False) -> Readings:
        """Run the cascade over wire inputs [item, ...]; see `Cascade.read`."""
        return self.cascade.read(images, complete=complete)

    def repair(self, images: NDArray[Any], name: str) -> Repaired:
        """Clean wire inputs [item, ...] with the bundle's denoiser `name`; shape and type stay the same."""
        self.cascade.check_images(images)
        self.bundle.repair(name)
        cleaned, classes = self.repairs[name].run(("cleaned", "classes"), images)
        return Repaired(cleaned.astype(self.spec.dtype, copy=False), classes)

    def made_with(self) -> str:
        """The version of ONNX Runtime that the bundle was calibrated with."""
        return self.bundle.manifest.made_by.get("onnxruntime", "its version is not recorded")

    def self_check(self) -> None:
        """Read the bundle's own samples and compare. Raises BundleError when this machine gives other answers."""
        samples = self.bundle.samples
        readings = self.read(samples.images)
        allowed = tolerated_logits(samples.logits, LOGITS_TOLERANCE)
        other = ~(logits_apart(readings.logits, samples.logits) <= allowed)  # NaN is other
        if other.any():
            item = int(np.flatnonzero(other)[0])
            apart = np.abs(readings.logits[item].astype(np.float64) - samples.logits[item])
            at = int(np.nan_to_num(apart, nan=np.inf).argmax())
            raise BundleError(
                f"self-check: the model's outputs differ from the bundle's samples on {self.device}: sample {item} has "
                f"{readings.logits[item, at]:.6g} for class {at}, and {samples.logits[item, at]:.6g} in the bundle; "
                f"tolerated is a difference of {allowed[item]:.2g}, so do {int(other.sum())} of {len(other)} samples. "
                f"Serve it with the ONNX Runtime that it was made with ({self.made_with()}), or train it anew here"
            )
        for rate in (self.bundle.manifest.reject_rate, self.bundle.manifest.flag_rate):
            flipped = (readings.p_value <= rate) != (samples.p_values <= rate)
            if flipped.any():
                raise BundleError(
                    f"self-check: {int(flipped.sum())} of {len(flipped)} samples got another verdict at {rate:g} "
                    f"on {self.device}"
                )
