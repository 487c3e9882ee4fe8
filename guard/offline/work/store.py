"""Folder of results that are slow to make, each found again by what it follows from."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from numpy.typing import NDArray

from guard.offline.work.code import code_digest
from guard.offline.work.files import read_arrays, read_json, write_arrays, write_json

Choice = TypeVar("Choice")  # a value that JSON holds as it is: a size, or sizes by name
Arrays = Mapping[str, NDArray[Any]]


def cache_key(given: object, code: Sequence[str]) -> str:
    """Return the SHA-256 (hex) of what a result follows from: `given`, as it prints, and the code of these modules."""
    return hashlib.sha256(f"{given!r} {code_digest(*code)}".encode()).hexdigest()


@dataclass(frozen=True)
class KeptArrays:
    """Place of one result in a store, made or not."""

    file: Path
    names: Sequence[str] | None = None  # that it must hold: a file without one of them counts as not there

    def read(self) -> Arrays | None:
        """Return the arrays; None where they were not made, or cannot be read."""
        return read_arrays(self.file, self.names)

    def write(self, arrays: Arrays) -> None:
        write_arrays(self.file, arrays)


@dataclass(frozen=True)
class ResultStore:
    """Folder of results; a name is for display, a key tells results apart."""

    folder: Path

    def file(self, name: str, key: str, suffix: str) -> Path:
        """Return where a result lies, made or not."""
        return self.folder / f"{name}-{key[:24]}{suffix}"

    def place(self, name: str, key: str, names: Sequence[str] | None = None) -> KeptArrays:
        """Return the place of arrays under this key; `names` are those that it must hold."""
        return KeptArrays(self.file(name, key, ".npz"), names)

    def arrays(
        self,
        name: str,
        key: str,
        make: Callable[[], Arrays],
        *,
        names: Sequence[str] | None = None,
        anew: bool = False,
    ) -> Arrays:
        """Return the arrays kept under this key, or make and keep them; `anew`: make them whatever is there."""
        place = self.place(name, key, names)
        found: Arrays | None = None if anew else place.read()
        if found is None:
            found = make()
            place.write(found)
        return found

    def choice(self, name: str, key: str, make: Callable[[], Choice]) -> Choice:
        """Return the choice kept under this key, or make and keep it.

        Speeds differ from run to run; what is computed from a size that was chosen by them must not.
        """
        file = self.file(name, key, ".json")
        found: Choice | None = read_json(file)
        if found is None:
            found = make()
            write_json(file, found)
        return found
