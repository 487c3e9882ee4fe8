"""GOAWAY, the frame by which HTTP/2 tells a client that its connection takes no further calls.

How it works. gRPC's core sends it by itself where a connection grows too old, which no call of the library brings
about, and where its server shuts down: but then it cancels each call that comes before the client has read the frame
(measured: two to three a shutdown on eight busy connections). So the frame is written here, beside the core, between
two of its own frames: the core then knows nothing of it, answers what still comes on the connection, and the client
closes it after its last answer.

Rule 1: the frame never lands within one of the core's. The core writes in pieces only where the socket is full, so it
        is written where the socket holds next to nothing and no large answer is on its way.
Rule 2: it is never the first frame: the client has acknowledged the core's SETTINGS.
Rule 3: only on plain connections: within TLS only the core can write a frame.
"""

from __future__ import annotations

import asyncio
import fcntl
import socket
import struct
import sys
from typing import Any

GOAWAY_CODE = 7  # the type of the frame
EVERY_STREAM_CODE = 2**31 - 1  # every stream that has begun will be answered
REASON = b"draining"
FRAME = struct.pack(">I", 8 + len(REASON))[1:] + struct.pack(">BBIII", GOAWAY_CODE, 0, 0, EVERY_STREAM_CODE, 0) + REASON

MAX_WAITING_BYTES = 4096  # in a quiet socket, or of an answer that goes there in one piece; sockets hold far more
LINUX_SIOCOUTQ_CODE = 0x5411  # bytes that are not acknowledged, of a TCP socket
LINUX_BYTES_ACKED = struct.Struct("=120xQ")  # of its tcp_info
MIN_SETTINGS_BYTES = 9


class Replies:
    """The large answers that are on their way to clients, from the end of their handlers on."""

    def __init__(self) -> None:
        self.contexts: dict[Any, Any] = {}  # by the task that sends

    def begin(self, answer: object, context: Any) -> None:
        """Note that the running task sends the answer of a call, and nothing else until it is done."""
        if not isinstance(answer, bytes) or len(answer) <= MAX_WAITING_BYTES:
            return
        task: Any = asyncio.current_task()
        self.contexts[task] = context
        task.add_done_callback(self.contexts.pop)

    def ports(self) -> set[int]:
        """The ports of the clients that large answers are on their way to."""
        return {int(port) for context in self.contexts.values() if (port := port_text(context.peer())).isdigit()}


def port_text(peer: str) -> str:
    """The port in gRPC's name of a client, such as ipv4:10.0.0.7:40312."""
    return peer.rpartition(":")[2]


def is_quiet(connection: socket.socket) -> bool:
    """Whether a frame can be written between two of the core's: its SETTINGS have come, and next to nothing waits."""
    if sys.platform != "linux":
        return False
    waiting = int.from_bytes(fcntl.ioctl(connection, LINUX_SIOCOUTQ_CODE, bytes(4)), sys.byteorder)
    information = connection.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, LINUX_BYTES_ACKED.size)
    if len(information) < LINUX_BYTES_ACKED.size:
        return False
    acknowledged: int = LINUX_BYTES_ACKED.unpack(information)[0]
    return waiting <= MAX_WAITING_BYTES and acknowledged >= MIN_SETTINGS_BYTES


def send_goaway(connection: socket.socket) -> bool:
    """Tell the client of a connection to connect again, if the connection is quiet; return whether it was told.

    Raises:
        OSError: the connection has ended.
    """
    if not is_quiet(connection):
        return False
    sent = connection.send(FRAME, socket.MSG_DONTWAIT | socket.MSG_NOSIGNAL)
    if sent != len(FRAME):  # which cannot be, since there is room; what would follow is no HTTP/2
        connection.shutdown(socket.SHUT_RDWR)
        raise OSError(f"{sent} of {len(FRAME)} bytes of a GOAWAY were taken")
    return True
