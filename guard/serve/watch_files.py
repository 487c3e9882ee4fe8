"""The watch on settings and bundles: a change of either that has settled asks for a reload.

How it works. What is compared is a fingerprint: the content of guard.toml, and of each bundle's directory the names,
sizes, times and numbers (inodes) of its files. It is taken every `POLL_S`, and at once where the system reports a
change. One that differs is taken again until two in a row are alike, so that a burst of writes is one reload; then the
reload decides whether what is there is valid. Both a directory that is written into and one that is swapped by rename
(as Kubernetes does with `..data`) change the fingerprint, since paths are followed to where they lead.

Rule 1: notifications only make it quicker. Where there are none (a mount without inotify) polling sees the same.
Rule 2: a reload that failed is tried again now and then, as long as what is there is not what is at work.
Rule 3: what is at work was read after the fingerprint that it is compared with; where that is not certain (at the
        start, or once other bundles are named) a reload finds out, which changes nothing where nothing has changed.
"""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Awaitable, Callable, Collection
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from guard.serve.log import Log

POLL_S = 2.0
SETTLE_S = 0.25  # between two looks, which have to be alike
MAX_SETTLE_S = 5.0  # of a burst without an end
RETRY_S = (5.0, 60.0)  # after a failed reload: at first, and at most

Fingerprint = tuple[Any, ...]


@dataclass(frozen=True)
class Watched:
    """The files that are watched: the settings, where there is a file of them, and the bundles' directories."""

    settings: Path | None
    bundles: tuple[Path, ...]

    def fingerprint(self) -> Fingerprint:
        """What tells one state of the files from another; what cannot be read is a state as well."""
        return (content(self.settings), *(listing(bundle) for bundle in self.bundles))

    def directories(self) -> frozenset[Path]:
        """The directories in which a change shows; those that there are."""
        files = ([] if self.settings is None else [self.settings]) + list(self.bundles)
        places = {place for file in files for place in (file.absolute().parent, file.resolve().parent)}
        return frozenset(place for place in {*places, *self.bundles} if place.is_dir())


def content(file: Path | None) -> bytes | str:
    """The content of a file; the error's name where there is none."""
    if file is None:
        return b""
    try:
        return file.read_bytes()
    except OSError as error:
        return type(error).__name__


def listing(directory: Path) -> Fingerprint | str:
    """The files of a directory as the file system knows them; the error's name where they cannot be listed."""
    try:
        with os.scandir(directory) as entries:
            return tuple(sorted((entry.name, state(entry)) for entry in entries))
    except OSError as error:
        return type(error).__name__


def state(entry: os.DirEntry[str]) -> Fingerprint:
    """What tells one state of a file from another; of a link that leads nowhere, the link's own."""
    try:
        found = entry.stat()
    except OSError:
        found = entry.stat(follow_symlinks=False)
    return (found.st_ino, found.st_size, found.st_mtime_ns)


@dataclass
class FileWatch:
    """The watch that asks for a reload after each change that has settled."""

    watched: Callable[[], Watched]  # as the settings at work name them
    reload: Callable[[str], Awaitable[Any]]
    look: Callable[[Callable[[], Fingerprint]], Awaitable[Fingerprint]]  # runs it off the event loop
    log: Log
    seen: Fingerprint = ()  # before what is at work was read; (): not known, so the first look asks for a reload
    hint: asyncio.Event = field(default_factory=asyncio.Event)  # that something may have changed

    async def run(self) -> None:
        """Watch until the task is cancelled."""
        notices = asyncio.create_task(self.notices())
        retry_at, wait_s = float("inf"), RETRY_S[0]
        try:
            while True:
                found = await self.look(self.watched().fingerprint)
                due = time.monotonic() >= retry_at
                if found != self.seen or due:
                    trigger = "retry" if found == self.seen else "files"
                    self.seen = await self.settled(found)
                    wait_s = min(2 * wait_s, RETRY_S[1]) if trigger == "retry" else RETRY_S[0]
                    retry_at = float("inf") if await self.worked(trigger) else time.monotonic() + wait_s
                    continue
                with suppress(TimeoutError):
                    async with asyncio.timeout(POLL_S):
                        await self.hint.wait()
                self.hint.clear()
        finally:
            notices.cancel()
            await asyncio.gather(notices, return_exceptions=True)

    async def settled(self, found: Fingerprint) -> Fingerprint:
        """Wait until the files are as they were a moment ago, and return their fingerprint."""
        end = time.monotonic() + MAX_SETTLE_S
        while time.monotonic() < end:
            await asyncio.sleep(SETTLE_S)
            again = await self.look(self.watched().fingerprint)
            if again == found:
                break
            found = again
        return found

    async def worked(self, trigger: str) -> bool:
        """Ask for a reload, and return whether it succeeded; its fault is logged and counted where it happened."""
        try:
            await self.reload(trigger)
        except Exception:  # noqa: BLE001  what is at work stays there, whatever it was
            return False
        return True

    async def notices(self) -> None:
        """Set the hint at each change that the system reports, for the directories that are watched at the time."""
        from watchfiles import awatch

        while True:
            places: Collection[Path] = self.watched().directories()
            try:
                async for _ in awatch(
                    *places,
                    watch_filter=None,
                    debounce=200,
                    rust_timeout=1000,
                    yield_on_timeout=True,
                    recursive=False,
                ):
                    self.hint.set()
                    if self.watched().directories() != places:
                        break
            except Exception as error:  # noqa: BLE001  watchfiles raises its own, and OSError where inotify is used up
                self.log.debug("no notifications of changed files", cause=repr(error), poll_s=POLL_S)
                await asyncio.sleep(POLL_S)
