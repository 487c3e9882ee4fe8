"""The gRPC service of reflection: what a listener serves, from descriptors of our own."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from typing import Any

from google.protobuf.descriptor_pool import DescriptorPool
from google.protobuf.message import DecodeError
from grpc_health.v1 import health_pb2
from grpc_reflection.v1alpha import reflection, reflection_pb2

from guard.errors import MalformedRequest, TooLarge
from guard.serve.grpc.call import Call
from guard.serve.grpc.door import INLINE_BYTES, Door
from guard.serve.grpc.listener import Methods
from guard.serve.grpc.wire import guard_pb2, inference_pb2

METHOD = f"/{reflection.SERVICE_NAME}/ServerReflectionInfo"


def reflecting(services: Sequence[str], door: Door) -> Methods:
    """The method of reflection, which lists `services` and itself."""
    pool = DescriptorPool()
    for file in (inference_pb2, guard_pb2, health_pb2, reflection_pb2):
        pool.AddSerializedFile(file.DESCRIPTOR.serialized_pb)
    servicer: Any = reflection.aio.ReflectionServicer([*services, reflection.SERVICE_NAME], pool=pool)

    async def answer(call: Call) -> None:
        async with aclosing(asked(door, call)) as requests:
            async for found in servicer.ServerReflectionInfo(requests, call.context):
                await call.context.write(found.SerializeToString())

    return {METHOD: door.streaming(answer)}


async def asked(door: Door, call: Call) -> AsyncGenerator[Any, None]:
    """Yield the reflection requests of a call. Raises MalformedRequest, TooLarge."""
    async with aclosing(door.stream(call)) as messages:
        async for message in messages:
            if len(message) > INLINE_BYTES:
                raise TooLarge(f"a reflection request of {len(message)} bytes; wanted at most {INLINE_BYTES}")
            try:
                yield reflection_pb2.ServerReflectionRequest.FromString(message)
            except DecodeError as error:
                raise MalformedRequest("the request is no ServerReflectionRequest") from error
