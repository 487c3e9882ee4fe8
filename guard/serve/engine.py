"""The engine: a bundle's programs, run on the device's thread, so that the event loop never waits for arithmetic."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from guard.bundle import Bundle
from guard.cascade import Readings
from guard.errors import BundleError, DeviceError, GuardError, Unchecked, first_line
from guard.explanation import Explanation, explained
from guard.runtime import Repaired, Runtime
from guard.serve.device_thread import DeviceThread
from guard.session import DEFAULT_CUDA, CudaOptions, Device

Answer = TypeVar("Answer")


class Engine:
    """A Runtime behind the device's thread. It reads nothing before `load` has checked it on the bundle's samples."""

    def __init__(
        self,
        bundle: Bundle,
        *,
        device: Device,
        threads: int | None,
        stage: Callable[[str, float], None],
        cuda: CudaOptions = DEFAULT_CUDA,
        only_repairs: Collection[str] | None = None,
        thread: DeviceThread | None = None,
    ) -> None:
        """Take a bundle whose programs, and all repairs or only those named, `load` will open.

        Engines that share a `thread` take turns on it; without one the engine makes its own, which `close` ends.
        """
        self.bundle = bundle
        self.only_repairs = only_repairs
        self.largest = 1  # items that are repaired at once
        self.device: Device = device
        self.threads = threads
        self.cuda = cuda
        self.stage = stage
        self.thread = DeviceThread() if thread is None else thread
        self.owns_thread = thread is None
        self.repairing = asyncio.Lock()  # one repair at a time, so that many are no more in the way of others than one
        self.runtime: Runtime | None = None
        self.item_s = 0.0  # that an item of the largest batch took, when the programs were warmed up

    async def load(self, *, largest: int) -> None:
        """Open the programs, run the self-check, and warm up on one item and on `largest` items.

        Raises:
            BundleError: the programs do not give the answers that the bundle promises.
            DeviceError: the device that was asked for is not there, or cannot run `largest` items.
        """
        self.largest = largest
        samples = (await self.thread.open(lambda: self.bundle.samples)).images
        if len(samples) == 0:
            raise BundleError(f"{self.bundle.path} has no samples to check the engine on; train the bundle again")
        with self.told_before_requests():
            runtime = await self.thread.open(self.open)
            await self.thread.run(runtime.self_check)
            for items in (1, largest):
                images = np.resize(samples, (items, *samples.shape[1:])).astype(samples.dtype, copy=False)
                self.item_s = await self.thread.run(partial(warm_up, runtime, images)) / items
                for name in runtime.repairs:
                    await self.thread.run(partial(runtime.repair, images, name))
        self.runtime = runtime

    def open(self) -> Runtime:
        return Runtime.open(
            self.bundle,
            device=self.device,
            threads=self.threads,
            cuda=self.cuda,
            shared=True,
            only_repairs=self.only_repairs,
        )

    @contextmanager
    def told_before_requests(self) -> Iterator[None]:
        """Raise what ONNX Runtime raises within the block as a DeviceError."""
        try:
            yield
        except GuardError:
            raise
        except Exception as error:  # onnxruntime raises its own untyped family
            what = first_line(error)
            raise DeviceError(
                f"the programs failed on {self.device} before the first request: {what}; "
                "if memory was short, lower max_rows or raise device_memory_bytes"
            ) from error

    @property
    def ready(self) -> bool:
        return self.runtime is not None

    async def read(self, images: NDArray[Any]) -> Readings:
        """Run the cascade over wire inputs [item, ...]. Raises Unchecked before `load` is done."""
        runtime = self.loaded()
        return await self.thread.run(lambda: self.timed("program", lambda: runtime.read(images)))

    async def check(self) -> None:
        """Run the bundle's self-check again. Raises the error of whatever is wrong with the device."""
        await self.thread.run(self.loaded().self_check)

    async def explain(self, image: NDArray[Any]) -> Explanation:
        """Explain one wire input [1, ...]. Raises Unchecked before `load` is done."""
        runtime = self.loaded()
        return await self.thread.run(lambda: self.timed("explain", lambda: explained(runtime, image)))

    async def repair(self, images: NDArray[Any], name: str) -> Repaired:
        """Clean images [item, ...] with the bundle's denoiser `name`, no more at once than were warmed up for."""
        runtime, parts = self.loaded(), []
        for start in range(0, len(images), self.largest):
            part = images[start : start + self.largest]
            async with self.repairing:
                parts.append(await self.thread.run(partial(self.timed, "repair", partial(runtime.repair, part, name))))
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

    def close(self) -> None:
        """Let go of the programs, and end a thread of its own; a hung device is not waited for."""
        self.runtime = None
        if self.owns_thread:
            self.thread.close()


def warm_up(runtime: Runtime, images: NDArray[Any]) -> float:
    """Run all programs on images [item, ...], and return how many seconds it took."""
    began = time.monotonic()
    runtime.read(images, complete=True)
    return time.monotonic() - began
