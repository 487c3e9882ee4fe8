"""Reloading: settings and bundles are read again while the guard serves, verified, warmed, and swapped in at once.

How it works. All that is new is opened beside what is at work: settings, bundles, engines, warmed up on the device's
thread between the batches of clients. Only when all of it is there, and the model server has the models that it is for,
one assignment puts the new table in the place of the old one. Calls under way keep the model that they began with; its
engine is freed when the last of them is over. For example, with 40 requests in the queue of the old bundle these are
answered by the old one, and the 41st by the new one.

Rule 1: on any fault what is at work stays at work, whole; the fault is logged, counted and told to who asked.
Rule 2: a setting that cannot change without a restart stays as it is, and is told by its name.
"""

from __future__ import annotations

import asyncio
import time
import weakref
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields, replace
from typing import Literal, Protocol

from guard.config import MODELS, OF_A_MODEL, ServeConfig
from guard.errors import ConfigError, GuardError
from guard.manifest import ModelSpec
from guard.serve.allocator import give_back
from guard.serve.check_settings import check_complete
from guard.serve.limits import Limits, request_bytes
from guard.serve.loaded_bundle import LoadedBundle
from guard.serve.model_metrics import show_models
from guard.serve.models import Models, ModelTable
from guard.serve.open_models import Workshop, open_models, told
from guard.signing import Trust

Result = Literal["applied", "unchanged", "failed"]
RELOADABLE = frozenset({*OF_A_MODEL, MODELS, "allow_models", "log_level"})


class ServerWatch(Protocol):
    """A watch on the model server."""

    async def objection(self, model: ModelSpec) -> str | None:
        """What the model server, if it is there, lacks of a model; None where nothing speaks against it."""

    def look_again(self) -> None:
        """Have the server and all models checked at once."""


@dataclass(frozen=True)
class Reloaded:
    """What a reload has done: nothing, or the models that changed; and what would need a restart."""

    result: Result
    changed: tuple[str, ...] = ()  # labels of models that are new, gone, or not as before
    needs_restart: tuple[str, ...] = ()  # settings that were changed, and stay as they are


class Reloader:
    """The way in which settings and bundles are read again; one reload at a time."""

    def __init__(
        self,
        config: ServeConfig,
        read: Callable[[], ServeConfig],
        *,
        models: Models,
        workshop: Workshop,
        watches: Sequence[ServerWatch],
        limits: Limits,
    ) -> None:
        """Take the settings at work, and `read`, which reads them again.

        `watches` are those on the model server, one for each protocol in which it is asked; more may join them.
        """
        self.config = config
        self.read = read
        self.models, self.workshop, self.watches, self.limits = models, workshop, list(watches), limits
        self.metrics, self.log = workshop.metrics, workshop.log
        self.lock = asyncio.Lock()
        self.tasks: set[asyncio.Task[Reloaded]] = set()
        self.last_fault = ""
        self.metrics.reload_succeeded(time.time())

    async def begin(self) -> None:
        """Load what the guard starts with; a reload that is asked for meanwhile comes after.

        Raises:
            BundleError, DeviceError: as `Workshop.load`.
        """
        async with self.lock:
            await self.workshop.load(self.models.table)
            self.models.begin()

    async def reload(self, trigger: str) -> Reloaded:
        """Read settings and bundles again and swap them in; the caller may leave, the reload goes on.

        Raises:
            GuardError: what is wrong with them; nothing was changed.
        """
        task = asyncio.create_task(self.one_at_a_time(trigger))
        self.tasks.add(task)
        task.add_done_callback(self.tasks.discard)
        return await asyncio.shield(task)

    async def one_at_a_time(self, trigger: str) -> Reloaded:
        async with self.lock:
            try:
                found = await self.changed_table()
            except Exception as error:
                self.failed(trigger, error)
                raise
            self.metrics.reloads.labels(found.result).inc()
            self.metrics.reload_succeeded(time.time())
            self.last_fault = ""
            level = self.log.info if found.result == "applied" else self.log.debug
            level("reloaded", trigger=trigger, result=found.result, models=found.changed)
            return found

    def failed(self, trigger: str, error: Exception) -> None:
        """Count and log a reload that failed; a fault that is the last one again is no news."""
        self.metrics.reloads.labels("failed").inc()
        self.metrics.reload_ok.set(0)
        cause = str(error) if isinstance(error, GuardError) else repr(error)
        level = self.log.debug if cause == self.last_fault else self.log.error
        level("reload failed", trigger=trigger, cause=cause, kept="all settings and bundles that are at work")
        self.last_fault = cause

    async def changed_table(self) -> Reloaded:
        """Open what the settings say now, and put it to work where it differs from what is."""
        thread, before = self.workshop.thread, self.models.table
        wanted = await thread.open(self.read)
        config, kept = with_lasting_settings(wanted, self.config)
        if kept:
            self.log.warning("restart needed", settings=kept, warning="these settings changed and stay as they are")
        check_complete(config)
        opened = await thread.open(
            lambda: open_models(config, Trust.of(config.trusted_keys, required=config.require_signature))
        )
        digests = {model.label: model.bundle.digest for model in opened}
        at_work = {model.label: model.bundle.digest for model in before.models}
        if config == self.config and digests == at_work:
            return Reloaded("unchanged", needs_restart=kept)
        loaded = await thread.open(lambda: self.workshop.loaded_bundles(opened, config, before.loaded))
        table = self.workshop.table(opened, loaded, config, before)
        new = [one for one in table.loaded if one not in before.loaded]
        try:
            for one in new:
                one.batcher.start()
            await self.workshop.load(table)
            self.check_size(table)
            await self.check_upstream(table, before)
        except BaseException:
            for one in new:
                await one.close()
            raise
        changed = differences(before, table)
        told([model for model in opened if model.label in changed], self.log)
        self.swap(config, table, before)
        return Reloaded("applied", changed, kept)

    def swap(self, config: ServeConfig, table: ModelTable, before: ModelTable) -> None:
        """Put a table to work that is complete, and let the old one go."""
        if config.log_level != self.config.log_level:
            self.log.level = config.log_level
        self.config = config
        self.models.swap(table)
        show_models(self.metrics, before, table)
        for one in table.loaded:
            if one not in before.loaded:
                self.models.watch(one)
        for one in before.loaded:
            if one not in table.loaded:
                self.let_go(one)
        self.workshop.readiness.keep(table.labels)
        for watch in self.watches:
            watch.look_again()  # versions and readiness of what is new are asked for at once

    def let_go(self, loaded: LoadedBundle) -> None:
        """Retire a bundle; once its last call is over, its memory goes back to the system, with a line in the log."""
        loop, log, digest = asyncio.get_running_loop(), self.log, loaded.bundle.digest

        def freed() -> None:
            log.info("bundle released", digest=digest)
            loop.run_in_executor(None, give_back)

        def freed_on_any_thread() -> None:
            if not loop.is_closed():
                loop.call_soon_threadsafe(freed)

        weakref.finalize(loaded.engine.loaded(), freed_on_any_thread).atexit = False
        loaded.retire()

    def check_size(self, table: ModelTable) -> None:
        """Raise ConfigError where one item is larger than the listeners take, since their limit cannot change."""
        for model in table.models:
            if (needed := request_bytes(model.spec.input, 1)) > self.limits.message_bytes:
                raise ConfigError(
                    f"an item of {model.label!r} takes up to {needed} bytes, and this guard has started with "
                    f"max_message_bytes = {self.limits.message_bytes}; restart it"
                )

    async def check_upstream(self, table: ModelTable, before: ModelTable) -> None:
        """Raise ConfigError where the model server, if it is there, lacks a model that would be new or differs from it.

        Otherwise a bundle for another model would make a guard not ready that was so before.
        """
        for model in table.models:
            old = next((one for one in before.models if one.label == model.label), None)
            if old is not None and (old.spec == model.spec or self.workshop.readiness.of(old.label) is not None):
                continue
            for watch in self.watches:
                if (reason := await watch.objection(model.spec)) is not None:
                    raise ConfigError(f"{model.label}: {reason}; it can be put to work once that is so")


def with_lasting_settings(wanted: ServeConfig, at_work: ServeConfig) -> tuple[ServeConfig, tuple[str, ...]]:
    """The settings that are wanted, but for those that cannot change without a restart; and the names of these."""
    names = [field.name for field in fields(ServeConfig) if field.name not in RELOADABLE]
    kept = {name: getattr(at_work, name) for name in names if getattr(at_work, name) != getattr(wanted, name)}
    return replace(wanted, **kept), tuple(kept)


def differences(before: ModelTable, after: ModelTable) -> tuple[str, ...]:
    """The labels of the models that are new, gone, or have other settings or another bundle."""
    old, new = ({model.label: model for model in table.models} for table in (before, after))
    same = {
        label
        for label in old.keys() & new.keys()
        if old[label].config == new[label].config and old[label].bundle.digest == new[label].bundle.digest
    }
    labels: Sequence[str] = tuple(dict.fromkeys((*new, *old)))
    return tuple(label for label in labels if label not in same)
