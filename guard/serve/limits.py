"""Limits on messages: the size of one, and the bytes of all that there are at once.

Rule 1: what can never be inspected is not read: the largest message is the largest request that the queue can hold.
Rule 2: several of the largest fit at once, unless the operator says otherwise; then the log says what that means.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from guard.config import ServeConfig
from guard.errors import ConfigError
from guard.manifest import InputSpec

MAX_DEFAULT_IN_FLIGHT_BYTES = 256 * 2**20
MIN_DEFAULT_IN_FLIGHT_BYTES = 32 * 2**20
MEMORY_DIVISOR = 4  # one part in so many of the memory limit; a message takes three times its size on its way in
LARGEST_MESSAGES = 8  # messages of the largest size that fit by default
MIN_LARGEST_MESSAGES = 4  # below that the log warns
HEADER_BYTES = 128 * 1024  # room for names, parameters and what else is not the tensor
MIN_ANSWER_BYTES = 128 * 2**20  # of the model server, at least


class BoundedQueue(Protocol):
    """The bounds of a queue in front of a device, in items: of one batch, and of all that waits."""

    @property
    def max_items(self) -> int:
        """The items of one batch at most."""

    @property
    def max_queue_items(self) -> int:
        """The items that may wait at once."""


@dataclass(frozen=True)
class Limits:
    """The limits in bytes: of one message, unpacked, and of all messages that are being read or held."""

    message_bytes: int
    in_flight_bytes: int

    @staticmethod
    def of(
        config: ServeConfig, inputs: Sequence[tuple[InputSpec, BoundedQueue]], *, memory_bytes: int | None
    ) -> Limits:
        """Compute the limits: as the operator set them, and for the rest from bundles, queues and container.

        Of several models, by input and queue, the one with the largest requests counts; without any, memory does.

        Raises:
            ConfigError: the two limits contradict each other.
        """
        message, in_flight = config.max_message_bytes, config.max_bytes_in_flight
        if in_flight is None:
            share = MAX_DEFAULT_IN_FLIGHT_BYTES if memory_bytes is None else memory_bytes // MEMORY_DIVISOR
            in_flight = max(MIN_DEFAULT_IN_FLIGHT_BYTES, min(MAX_DEFAULT_IN_FLIGHT_BYTES, share), 2 * (message or 0))
        if message is None:
            batch = max((request_bytes(spec, queue.max_items) for spec, queue in inputs), default=0)
            most = max((request_bytes(spec, queue.max_queue_items) for spec, queue in inputs), default=in_flight)
            message = min(most, max(batch, in_flight // LARGEST_MESSAGES), in_flight // 2)
        if in_flight < 2 * message:
            raise ConfigError(
                f"max_bytes_in_flight = {in_flight} has no room for two messages of max_message_bytes = {message}, "
                "one of them a probe's; raise the one or lower the other"
            )
        return Limits(message, in_flight)

    @property
    def warning(self) -> str | None:
        """The line for the log where few messages can be read at once; None otherwise."""
        at_once = self.in_flight_bytes // self.message_bytes
        if at_once >= MIN_LARGEST_MESSAGES:
            return None
        return (
            f"only {at_once} messages can be read at once: before a read max_message_bytes = {self.message_bytes} is "
            f"set aside, of max_bytes_in_flight = {self.in_flight_bytes}; lower the one or raise the other"
        )


def request_bytes(spec: InputSpec, items: int) -> int:
    """The most bytes of a request of so many items; typed, a UINT8 travels as a varint of up to two bytes."""
    elements = items * math.prod(spec.shape)
    return elements * max(2, spec.dtype.itemsize) + HEADER_BYTES
