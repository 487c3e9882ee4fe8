"""The seam between a door and inference: a request and its answer, as the door's protocol has them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol, TypeVar

import numpy as np
from numpy.typing import NDArray

from guard.manifest import InputSpec, OutputSpec
from guard.serve.tensor import Decoded

Answer = TypeVar("Answer")


@dataclass(frozen=True)
class AskedModel:
    """The model that a request names, and the request's own id."""

    name: str
    version: str
    request_id: str
    in_sequence: bool = False  # of a model that keeps a state between requests


class Exchange(Protocol[Answer]):
    """A request and its answer, as a door's protocol has them; all but `ask` may run on a thread."""

    @property
    def size_bytes(self) -> int: ...

    @property
    def versions(self) -> Mapping[str, tuple[str, ...]] | None:
        """The versions of models that are to be had by this protocol; None: those that `Models` knows."""

    def named(self) -> AskedModel:
        """Parse the request, and tell which model it is for.

        One that is malformed and still shows its model may be of a model that passes uninspected: `decode` tells why.

        Raises:
            MalformedRequest: it does not show its model, or names two.
        """

    def decode(self, spec: InputSpec, *, max_items: int) -> Decoded:
        """Decode the tensor of a parsed request. Raises MalformedRequest, Uninspectable."""

    def decoder(self, spec: InputSpec, *, max_items: int) -> Callable[[], Decoded]:
        """The work of `decode`, to be done later, without the call."""

    def repair(self, images: NDArray[Any], decoded: Decoded, spec: InputSpec) -> None:
        """Put other images in the place of the decoded ones in what is forwarded."""

    async def ask(self) -> Answer:
        """Forward the request, and return the model server's answer; raises its error, or UpstreamDown."""

    def predicted(self, answer: Answer, output: OutputSpec, items: int) -> NDArray[np.int64] | None:
        """The class [item] that an answer names; None where it does not show it. It never fails."""

    def answer_bytes(self, answer: Answer) -> int: ...
