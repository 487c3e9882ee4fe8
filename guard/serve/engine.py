"""The engine: a bundle's programs, run on a thread of their own, so that the event loop never waits for arithmetic."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Collection
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from guard.bundle import Bundle
from guard.cascade import Readings
from guard.errors import BundleError, DeviceError, GuardError, Unchecked, first_line
from guard.runtime import Repaired, Runtime
from guard.session import DEFAULT_CUDA, CudaOptions, Device

Answer = TypeVar("Answer")


class Engine:
    """A Runtime behind one thread. It reads nothing before `load` has checked it against the bundle's own samples."""

    def __init__(
        self,
        bundle: Bundle,
        *,
        device: Device,
        threads: int | None,
        stage: Callable[[str, float], None],
        cuda: CudaOptions = DEFAULT_CUDA,
        only_repairs: Collection[str] | None = None,
    ) -> None:
        """Take a bundle whose programs, and all repairs or only those named, `load` will open."""
        self.bundle = bundle
        self.only_repairs = only_repairs
        self.largest = 1  # items that are repaired at once
        self.device: Device = device
        self.threads = threads
        self.cuda = cuda
        self.stage = stage
        self.thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="program")
        self.runtime: Runtime | None = None
        self.item_s = 0.0  # that an item of the largest batch took, when the programs were warmed up

    async def load(self, *, largest: int) -> None:
        """Open the programs, run the self-check, and warm up on one item and on `largest` items.

        Raises:
            BundleError: the programs do not give the answers that the bundle promises.
            DeviceError: the device that was asked for is not there, or cannot run `largest` items.
        """
        self.largest = largest
        self.runtime = await self.on_thread(lambda: self.open(largest))

    def open(self, largest: int) -> Runtime:
        runtime = Runtime.open(
            self.bundle,
            device=self.device,
            threads=self.threads,
            cuda=self.cuda,
            shared=True,
            only_repairs=self.only_repairs,
        )
        try:
            runtime.self_check()
            self.warm_up(runtime, largest)
        except GuardError:
            raise
        except Exception as error:  # onnxruntime raises its own untyped family
            what = first_line(error)
            raise DeviceError(
                f"the programs failed on {self.device} before the first request: {what}; "
                "if memory was short, lower max_rows or raise device_memory_bytes"
            ) from error
        return runtime

    def warm_up(self, runtime: Runtime, largest: int) -> None:
        samples = self.bundle.samples.images
        if len(samples) == 0:
            raise BundleError(f"{self.bundle.path} has no samples to check the engine on; train the bundle again")
        for items in (1, largest):
            images = np.resize(samples, (items, *samples.shape[1:])).astype(samples.dtype, copy=False)
            began = time.monotonic()
            runtime.read(images, complete=True)
            self.item_s = (time.monotonic() - began) / items
            for name in runtime.repairs:
                runtime.repair(images, name)

    @property
    def ready(self) -> bool:
        return self.runtime is not None

    async def read(self, images: NDArray[Any]) -> Readings:
        """Run the cascade over wire inputs [item, ...]. Raises Unchecked before `load` is done."""
        runtime = self.loaded()
        return await self.on_thread(lambda: self.timed("program", lambda: runtime.read(images)))

    async def check(self) -> None:
        """Run the bundle's self-check again. Raises the error of whatever is wrong with the device."""
        await self.on_thread(self.loaded().self_check)

    async def repair(self, images: NDArray[Any], name: str) -> Repaired:
        """Clean images [item, ...] with the bundle's denoiser `name`, no more at once than were warmed up for."""
        runtime, parts = self.loaded(), []
        for start in range(0, len(images), self.largest):
            part = images[start : start + self.largest]
            parts.append(await self.on_thread(partial(self.timed, "repair", partial(runtime.repair, part, name))))
        return Repaired(np.concatenate([p.images for p in parts]), np.concatenate([p.classes for p in parts]))

    def loaded(self) -> Runtime:
        if self.runtime is None:
            raise Unchecked("the guard is still loading its programs; try again shortly")
        return self.runtime

    def timed(self, stage: str, work: Callable[[], Answer]) -> Answer:
        began = time.monotonic()
        answer = work()
        self.stage(stage, time.monotonic() - began)
        return answer

    async def on_thread(self, work: Callable[[], Answer]) -> Answer:
        return await asyncio.get_running_loop().run_in_executor(self.thread, work)

    def close(self) -> None:
        """Let the thread end after its current work; a hung device is not waited for."""
        self.thread.shutdown(wait=False, cancel_futures=True)
