"""A model server of all doors for the soak: the tests' tiny model over unary and streamed gRPC and over V2 REST.

It is a process of its own, answers what the tests' fakes answer, and keeps nothing of what came, so that it can run for
as long as the guard before it.
"""

from __future__ import annotations

import asyncio
import json
import sys
from typing import Any

from tests.serve import fake_upstream
from tests.serve.rest import fake_rest_upstream
from tests.serve.rest.fake_rest_upstream import FakeRestUpstream
from tests.serve.streaming_upstream import StreamingUpstream


class Nothing(list[Any]):
    """A list that keeps nothing of what is appended."""

    def append(self, item: Any, /) -> None:
        """Drop the item."""


async def serve() -> None:
    """Listen for both protocols until the process ends, and say where as the guard does."""
    streams = StreamingUpstream(shape="bare", server="mlserver")
    streams.requests = streams.headers = streams.remaining = streams.calls = Nothing()
    rest = FakeRestUpstream(bodies=Nothing(), headers=Nothing(), tensors=Nothing(), targets=Nothing())
    async with fake_upstream.listening(streams) as address, fake_rest_upstream.listening(rest) as url:
        line = {"event": "listening", "inference": address, "rest": url}
        print(json.dumps(line), file=sys.stderr, flush=True)
        await asyncio.Event().wait()


if __name__ == "__main__":
    asyncio.run(serve())
