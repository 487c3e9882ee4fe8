"""Files whose content is replaced while the guard serves: certificates, keys, tokens.

How it works. The files are read again every `POLL_S`: mounts swap directories, editors write in place, and no kind of
event covers both. A certificate and its key are often written one after the other, so what does not fit together is
looked at once more before anything is told.

Rule 1: what is at work is always whole and was checked; what cannot be used changes nothing, and is told once.
Rule 2: the content that was checked is the content that is used: it is read once.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Generic, Literal, TypeVar

from guard.errors import ConfigError

POLL_S = 1.0
MAX_FILE_BYTES = 4 * 2**20

Value = TypeVar("Value")
Found = Literal["same", "replaced", "doubtful", "refused"]


@dataclass(frozen=True)
class NamedFile:
    """A file and the setting that names it."""

    setting: str
    path: str
    kind: str = "a PEM file"

    def __str__(self) -> str:
        return f"{self.setting} = {self.path!r}"

    def content(self) -> bytes:
        """The file's content. Raises ConfigError."""
        try:
            with Path(self.path).open("rb") as stream:
                found = stream.read(MAX_FILE_BYTES + 1)
        except OSError as error:
            raise ConfigError(f"{self} cannot be read: {error.strerror}; wanted {self.kind}") from error
        if len(found) > MAX_FILE_BYTES:
            raise ConfigError(f"{self} has more than {MAX_FILE_BYTES} bytes; wanted a small file")
        return found


class Rotated(Generic[Value]):
    """The last good value of some files; `value` and `generation` may be read in any thread."""

    def __init__(self, files: tuple[NamedFile, ...], parse: Callable[[tuple[bytes, ...]], Value]) -> None:
        """Read the files. Raises ConfigError, as `parse` does."""
        self.files, self.parse = files, parse
        self.contents = self.read()
        self.value = parse(self.contents)
        self.generation = 0
        self.doubted: tuple[bytes, ...] | str | None = None  # what could not be used when last looked at
        self.told = False
        self.fault: str | None = None  # of what is in the files now

    @property
    def named(self) -> str:
        """The settings of the files, for log and metrics: the first stands for all."""
        return self.files[0].setting

    def read(self) -> tuple[bytes, ...]:
        return tuple(file.content() for file in self.files)

    def poll(self) -> Found:
        """Look at the files, and take over what is new and good."""
        doubted: tuple[bytes, ...] | str
        try:
            contents = self.read()
        except ConfigError as error:
            return self.doubt(str(error), str(error))
        if contents == self.contents:
            self.doubted, self.told, self.fault = None, False, None
            return "same"
        if contents == self.doubted and self.told:
            return "same"
        doubted = contents
        try:
            value = self.parse(contents)
        except ConfigError as error:
            return self.doubt(doubted, str(error))
        except Exception as error:  # noqa: BLE001  a fault of ours must not end the watch
            return self.doubt(doubted, f"{' and '.join(map(str, self.files))} cannot be used: {error!r}")
        self.value, self.contents = value, contents
        self.generation += 1  # last: whoever sees it finds the value
        self.doubted, self.told, self.fault = None, False, None
        return "replaced"

    def doubt(self, doubted: tuple[bytes, ...] | str, fault: str) -> Found:
        """Note what cannot be used; it is refused once it has stayed as it is."""
        if doubted != self.doubted:
            self.doubted, self.told = doubted, False
            return "doubtful"
        if self.told:
            return "same"
        self.told, self.fault = True, fault
        return "refused"

    async def watch(self, tell: Callable[[Found], None]) -> None:
        """Look at the files for ever; `tell` hears what was replaced or refused."""
        while True:
            await asyncio.sleep(POLL_S)
            found = await asyncio.to_thread(self.poll)
            if found in ("replaced", "refused"):
                tell(found)
