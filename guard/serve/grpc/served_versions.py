"""The versions of a model that its server has, which its metadata do not always tell.

How it works. Triton and OpenVINO list them in a model's metadata. MLServer lists there the versions of packages that
the model was trained with, such as "sklearn/0.20.1", or nothing; its own versions stand in the index of its repository.
So a server that is not one of the first two by its name is asked for the index as well, and the index counts. Where
MLServer gives none, the versions are not known: a request that names one which is not the bundle's own does not pass.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Collection, Sequence
from dataclasses import dataclass, field

LISTING = ("triton", "openvino")  # how names of servers begin whose metadata list a model's versions
MLSERVER = "mlserver"

Index = Collection[tuple[str, str]]  # name and version of each model


@dataclass
class ServerFacts:
    """What is known of a model server for as long as it is there: its name, and the index of its repository."""

    places: tuple[str, ...]  # at which it may answer with its index: methods of gRPC, or paths of HTTP
    name: str | None = None
    absent: set[str] = field(default_factory=set)  # places that have no index
    index: Index | None = None  # as last told

    def forget(self) -> None:
        """Forget all: the server is away, and another one may come."""
        self.name, self.index = None, None
        self.absent.clear()

    async def versions_of(
        self,
        model: str,
        listed: Sequence[str],
        *,
        ask_name: Callable[[], Awaitable[str | None]],
        ask_index: Callable[[str], Awaitable[Index | None]],
    ) -> tuple[str, ...] | None:
        """The versions of a model, of which the metadata list some; (): it has none, None: nothing tells them.

        `ask_name` gives the server's name, and `ask_index` its index at a place; None where they get no answer.
        """
        if self.name is None:
            self.name = await ask_name() or ""
        if self.name.lower().startswith(LISTING):
            return tuple(listed)
        for place in self.places:
            if place in self.absent:
                continue
            found = await ask_index(place)
            if found is not None:
                self.index = found
                break
            if self.index is None:  # otherwise it has answered before, and will again
                self.absent.add(place)
        return versions_told(self.name, model, listed, self.index)


def versions_told(server: str, model: str, listed: Sequence[str], index: Index | None) -> tuple[str, ...] | None:
    """The versions of a model by the server's name, its metadata and its index; None where nothing tells them."""
    found = {version for name, version in index or () if name == model}
    if found:
        return () if found == {""} else tuple(sorted(found))
    return None if server.lower().startswith(MLSERVER) else tuple(listed)


def noted(told: dict[str, tuple[str, ...]], model: str, found: tuple[str, ...] | None) -> tuple[str, ...]:
    """The versions found of a model, none where nothing tells them; kept in `told`, or forgotten there."""
    if found is None:
        told.pop(model, None)
        return ()
    told[model] = found
    return found
