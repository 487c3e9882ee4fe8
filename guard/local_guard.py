"""The guard in the caller's own process: a bundle's programs and their judge, without a server.

Rule 1: the verdict on an input is the sidecar's: the same programs, the same calibration, the same judge.
Rule 2: threads may share a guard; on the CPU they take turns, so that no more threads compute than it was given.
Rule 3: an input is judged and never changed: repairs and the comparison with a model's answer are the sidecar's.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args

import numpy as np
from numpy.typing import NDArray

from guard.calibration import check_promise
from guard.cascade import Readings, joined
from guard.errors import ConfigError, DataError
from guard.explanation import Explanation, explain
from guard.judge import Inspection, Judge
from guard.manifest import ModelSpec
from guard.policy import Mode, OnFailure, Policy, Rows
from guard.runtime import Runtime
from guard.session import Device
from guard.signing import Trust, open_trusted
from guard.value_faults import value_fault

CHOICES = {"rows": get_args(Rows), "mode": get_args(Mode), "on_failure": get_args(OnFailure)}
MAX_BATCH_ROWS = 64  # on the device at once, variant rows counted: what the sidecar takes by default


@dataclass(frozen=True)
class LocalGuard:
    """A bundle that is opened, checked on this machine, and ready to inspect."""

    runtime: Runtime
    judge: Judge

    @staticmethod
    def open(
        bundle: str | Path,
        *,
        reject_rate: float | None = None,
        flag_rate: float | None = None,
        rows: Rows = "any",
        mode: Mode = "enforce",
        on_failure: OnFailure = "closed",
        device: Device = "cpu",
        threads: int | None = None,
        trusted_keys: Sequence[str | Path] = (),
    ) -> LocalGuard:
        """Open a bundle, verify every file, and let it check itself; rates that are None are the bundle's own.

        `mode` is what becomes of a verdict (`enacted`); `on_failure` counts for the interceptors of a server alone.

        With `trusted_keys`, PEM files of public keys, the bundle must be signed by one of them.

        Raises:
            BundleError: the bundle is damaged, foreign, not signed as wanted, or answers otherwise on this machine.
            ConfigError: a key cannot be read, or flags are rarer than rejections.
            PromiseError: the clean data cannot promise a rate.
            DeviceError: the device that was asked for is not there.
        """
        opened, _ = open_trusted(bundle, Trust.of(trusted_keys))
        manifest = opened.manifest
        policy = Policy(
            reject_rate=manifest.reject_rate if reject_rate is None else reject_rate,
            flag_rate=manifest.flag_rate if flag_rate is None else flag_rate,
            rows=rows,
            mode=mode,
            on_failure=on_failure,
        )
        if policy.flag_rate < policy.reject_rate:
            raise ConfigError(
                f"flag_rate = {policy.flag_rate:g} is below reject_rate = {policy.reject_rate:g}; "
                "every rejected item counts as flagged, so it must be at least as large"
            )
        for name, choices in CHOICES.items():
            if (found := getattr(policy, name)) not in choices:
                raise ConfigError(f"{name} = {found!r}; wanted one of {', '.join(choices)}")
        for name in ("reject_rate", "flag_rate"):
            check_promise(getattr(policy, name), opened.calibration.items, name=name)
        runtime = Runtime.open(opened, device=device, threads=threads, shared=True, only_repairs=())
        runtime.self_check()
        return LocalGuard(runtime, Judge(policy, opened.calibration))

    @property
    def model(self) -> ModelSpec:
        """The model that the bundle was made for."""
        return self.runtime.bundle.manifest.model

    def inspect(self, images: NDArray[Any]) -> Inspection:
        """Inspect wire inputs [item, ...] as one request: the readings and the verdict on each item and on all.

        The array has the shape, the type and the range that the model server takes.

        Raises:
            DataError: the array is not the model's input.
            Uninspectable: it cannot be judged as a whole, as `rows` wants it.
        """
        images = self.checked(images)
        self.judge.check_judgeable(len(images))
        items = max(1, MAX_BATCH_ROWS // max(program.rows_at_once for program in self.runtime.programs))
        parts = [self.runtime.read(images[start : start + items]) for start in range(0, len(images), items)]
        readings: Readings = parts[0] if len(parts) == 1 else joined(parts)
        return self.judge.judged(readings, self.judge.calibration, np.zeros(len(images)))

    def explain(self, images: NDArray[Any]) -> list[Explanation]:
        """Explain the verdict on each of these wire inputs [item, ...]; it costs every program anew. Raises DataError.

        The map is absent where the bundle's detectors read no input gradient.
        """
        return explain(self.runtime, self.checked(images))

    def checked(self, images: NDArray[Any]) -> NDArray[Any]:
        """The array, contiguous, after a look at its form and its values. Raises DataError."""
        images = np.asarray(images)
        self.runtime.cascade.check_images(images)
        if len(images) == 0:
            raise DataError("inputs hold no items; wanted at least one")
        if (fault := value_fault(images, self.runtime.spec)) is not None:
            raise DataError(fault)
        return np.ascontiguousarray(images)
