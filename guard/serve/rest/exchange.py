"""A V2 REST request to a model and its answer, as inference sees them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from guard.errors import MalformedRequest
from guard.manifest import InputSpec, OutputSpec
from guard.serve.early_answer import in_sequence
from guard.serve.exchange import AskedModel
from guard.serve.rest.answer import RestAnswer, prediction
from guard.serve.rest.call import FailedAnswer, RestCall
from guard.serve.rest.decode import JSON_LENGTH, RestRequest, check_model, decode, encode, json_length, parse
from guard.serve.rest.headers import values
from guard.serve.rest.over_grpc import RestOverGrpc
from guard.serve.rest.packing import coding_of, packed, unpacked
from guard.serve.rest.upstream import RestUpstream
from guard.serve.tensor import Decoded

CHARSETS = frozenset({"utf-8", "utf8", "us-ascii"})


@dataclass
class RestExchange:
    """A request's bytes, and what is read of them."""

    call: RestCall
    upstream: RestUpstream | RestOverGrpc
    name: str
    version: str
    path: str  # for the upstream, with what stands behind a question mark
    body: bytes  # what is forwarded: as it came, unless it is repaired
    largest_bytes: int
    plain: bytes = field(default=b"", init=False)  # the body unpacked
    request: RestRequest | None = field(default=None, init=False)
    fault: str | None = field(default=None, init=False)  # why it cannot be decoded: an error would keep its frames
    coding: str | None = field(default=None, init=False)

    def unpack(self) -> int:
        """Unpack the body, and return how many bytes are held now; a body that is malformed is told by `named`.

        Raises:
            TooLarge: it unpacks to more than any request may have.
        """
        try:
            self.coding = coding_of(values(self.call.headers, "content-encoding"))
            self.plain = unpacked(self.body, self.coding, self.largest_bytes)
        except MalformedRequest as error:
            self.fault = str(error)
            return len(self.body)
        return len(self.body) + (0 if self.coding is None else len(self.plain))

    @property
    def size_bytes(self) -> int:
        return len(self.body) if self.fault is not None else len(self.plain)

    @property
    def versions(self) -> Mapping[str, tuple[str, ...]]:
        return self.upstream.versions

    def named(self) -> AskedModel:
        """Parse the body, which was unpacked before; the path names the model. Raises MalformedRequest."""
        if self.fault is None:
            try:
                self.request = self.read()
            except MalformedRequest as error:
                self.fault = str(error)
        if self.request is None:
            return AskedModel(self.name, self.version, "")
        check_model(self.request, self.name, self.version)
        return AskedModel(self.name, self.version, self.request.id, in_sequence(self.request.parameters))

    def read(self) -> RestRequest:
        """Parse the plain body. Raises MalformedRequest."""
        headers = self.call.headers
        check_charset(values(headers, "content-type"))
        return parse(self.plain, json_length(values(headers, JSON_LENGTH)))

    def decode(self, spec: InputSpec, *, max_items: int) -> Decoded:
        return decode(self.parsed, spec, max_items=max_items)

    def decoder(self, spec: InputSpec, *, max_items: int) -> Callable[[], Decoded]:
        return partial(decode, self.parsed, spec, max_items=max_items)

    def repair(self, images: NDArray[Any], decoded: Decoded, spec: InputSpec) -> None:  # noqa: ARG002  the JSON names it
        self.body = packed(encode(self.parsed, images, decoded.form), self.coding)

    @property
    def parsed(self) -> RestRequest:
        if self.fault is not None:
            raise MalformedRequest(self.fault)
        if self.request is None:
            raise RuntimeError("the request was not parsed")
        return self.request

    async def ask(self) -> RestAnswer:
        """Forward the request. Raises FailedAnswer, UpstreamDown."""
        answer = await self.upstream.ask("POST", self.path, self.call.upward, self.body)
        if not answer.ok:
            raise FailedAnswer(answer)
        return answer

    def predicted(self, answer: RestAnswer, output: OutputSpec, items: int) -> NDArray[np.int64] | None:
        return prediction(answer, output, items, largest_bytes=self.upstream.max_bytes)

    def answer_bytes(self, answer: RestAnswer) -> int:
        return self.upstream.max_bytes if values(answer.headers, "content-encoding") else len(answer.body)


def check_charset(content_types: list[str]) -> None:
    """Raise MalformedRequest for text that is not UTF-8 by its own word."""
    for content_type in content_types:
        for parameter in content_type.lower().split(";")[1:]:
            name, _, value = parameter.partition("=")
            if name.strip() == "charset" and value.strip().strip('"') not in CHARSETS:
                raise MalformedRequest(f"the Content-Type names the charset {value.strip()[:20]!r}; JSON is in UTF-8")
