"""A tap between guard and model server: it passes all bytes on, and tells which headers really went over the wire."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, closing, suppress
from dataclasses import dataclass, field

from tests.serve.frames import (
    CONTINUATION,
    END_HEADERS,
    FRAME_HEADER_BYTES,
    HEADERS,
    PREFACE,
    PRIORITISED,
    unpadded,
)
from tests.serve.hpack import Decoder

READ_BYTES = 65536


@dataclass
class Tap:
    """The bytes of each connection, as they went up to the model server and as they came down."""

    up: list[bytearray] = field(default_factory=list)
    down: list[bytearray] = field(default_factory=list)

    def asked(self, method: str) -> list[dict[str, bytes]]:
        """The headers of each call of a method, as they went up."""
        found = [dict(block) for sent in self.up for block in blocks(bytes(sent).removeprefix(PREFACE))]
        named = [{name.decode(): value for name, value in block.items()} for block in found]
        return [block for block in named if block.get(":path", b"").decode().endswith(f"/{method}")]


def blocks(sent: bytes) -> list[list[tuple[bytes, bytes]]]:
    """The header blocks in one direction of an HTTP/2 connection, in their order."""
    decoder, found, block, at = Decoder(), [], b"", 0
    while at + FRAME_HEADER_BYTES <= len(sent):
        length = int.from_bytes(sent[at : at + 3], "big")
        kind, flags = sent[at + 3], sent[at + 4]
        payload = sent[at + FRAME_HEADER_BYTES : at + FRAME_HEADER_BYTES + length]
        at += FRAME_HEADER_BYTES + length
        if kind == HEADERS:
            payload = unpadded(flags, payload)
            block = payload[5:] if flags & PRIORITISED else payload
        elif kind == CONTINUATION:
            block += payload
        if kind in (HEADERS, CONTINUATION) and flags & END_HEADERS:
            found.append(decoder.fields(block))
    return found


@asynccontextmanager
async def tapped(upstream: str) -> AsyncIterator[tuple[str, Tap]]:
    """Relay connections to `upstream` within the block; yields the address to connect to, and the tap."""
    tap, host, port = Tap(), *upstream.rsplit(":", 1)
    relays: set[asyncio.Task[None]] = set()

    async def relay(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        up, down = bytearray(), bytearray()
        tap.up.append(up)
        tap.down.append(down)
        with suppress(OSError), closing(writer):
            theirs, ours = await asyncio.open_connection(host, int(port))
            with closing(ours):
                await asyncio.gather(pump(reader, ours, up), pump(theirs, writer, down))

    def accepted(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        relays.add(asyncio.create_task(relay(reader, writer)))

    server = await asyncio.start_server(accepted, "127.0.0.1", 0)
    try:
        yield f"127.0.0.1:{server.sockets[0].getsockname()[1]}", tap
    finally:
        server.close()
        for task in relays:
            task.cancel()
        await asyncio.gather(*relays, return_exceptions=True)


async def pump(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, kept: bytearray) -> None:
    with suppress(OSError), closing(writer):
        while piece := await reader.read(READ_BYTES):
            kept += piece
            writer.write(piece)
            await writer.drain()
