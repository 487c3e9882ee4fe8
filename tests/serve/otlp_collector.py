"""A collector of traces: a real OTLP receiver over gRPC that keeps the spans it gets, or holds its answers back."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import grpc
import opentelemetry.proto

from tests.side import SIDE, reach

reach("otlp")
# In place of the main environment's own, where the extra [envoy] has laid its files over those of the extra [otel].
opentelemetry.proto.__path__[:] = [str(SIDE / "otlp" / "opentelemetry" / "proto")]

from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import (  # noqa: E402
    ExportTraceServiceRequest,
    ExportTraceServiceResponse,
)

EXPORT = "/opentelemetry.proto.collector.trace.v1.TraceService/Export"


@dataclass
class Collector(grpc.GenericRpcHandler):
    """The spans that came, and how the service was named that sent them."""

    hang: threading.Event | None = None  # exports are answered once it is set
    spans: list[Any] = field(default_factory=list)
    resources: list[dict[str, Any]] = field(default_factory=list)
    exports: int = 0

    def service(self, details: Any) -> Any:
        if details.method != EXPORT:
            return None
        return grpc.unary_unary_rpc_method_handler(
            self.export,
            request_deserializer=ExportTraceServiceRequest.FromString,
            response_serializer=ExportTraceServiceResponse.SerializeToString,
        )

    def export(self, request: Any, context: Any) -> Any:
        self.exports += 1
        if self.hang is not None:
            self.hang.wait(60)
        for resource in request.resource_spans:
            self.resources.append(attributes_of(resource.resource))
            for scope in resource.scope_spans:
                self.spans.extend(scope.spans)
        return ExportTraceServiceResponse()

    def named(self, name: str) -> list[Any]:
        return [span for span in self.spans if span.name == name]


def attributes_of(span: Any) -> dict[str, Any]:
    return {pair.key: getattr(pair.value, pair.value.WhichOneof("value")) for pair in span.attributes}


@contextmanager
def collecting(collector: Collector) -> Iterator[str]:
    """The collector listens within the block, at the address that is yielded."""
    with ThreadPoolExecutor(4) as threads:
        server = grpc.server(threads, handlers=[collector], options=[("grpc.so_reuseport", 0)])
        port = server.add_insecure_port("127.0.0.1:0")
        server.start()
        try:
            yield f"127.0.0.1:{port}"
        finally:
            if collector.hang is not None:
                collector.hang.set()
            server.stop(0).wait()
