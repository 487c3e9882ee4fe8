"""The set-up of OpenTelemetry: the variables `OTEL_*` decide whether requests are traced, and where spans go.

Spans are exported by a thread of the SDK's own, from a queue with bounds (`OTEL_BSP_*`): a collector that hangs or is
away costs spans, and no request its time.

Rule 1: a mistake in these variables, or a missing SDK, is a line in the log: a platform may set them everywhere.
Rule 2: the end of the guard waits for its last spans for `FLUSH_S`, and no longer.
"""

from __future__ import annotations

import asyncio
import os
import threading
from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import asynccontextmanager
from importlib.metadata import entry_points
from typing import Any
from urllib.parse import unquote

from opentelemetry import trace

from guard.serve.build import guard_version
from guard.serve.log import SERVICE, Log
from guard.serve.request_span import Tracing

SCOPE = "inference-guard"
EXPORTER = "OTEL_TRACES_EXPORTER"
TURN_ON = (EXPORTER, "OTEL_EXPORTER_OTLP_ENDPOINT", "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT")
PROTOCOLS = ("OTEL_EXPORTER_OTLP_TRACES_PROTOCOL", "OTEL_EXPORTER_OTLP_PROTOCOL")
EXPORTER_GROUP = "opentelemetry_traces_exporter"
OTLP_EXPORTERS = {"grpc": "otlp_proto_grpc", "http/protobuf": "otlp_proto_http"}
FLUSH_S = 2.0


@asynccontextmanager
async def tracing(log: Log, environment: Mapping[str, str] = os.environ) -> AsyncIterator[Tracing | None]:
    """Trace requests within the block, if the variables ask for it."""
    provider: Any = None
    opened: Tracing | None = None
    if is_wanted(environment):
        try:
            provider = provider_set_elsewhere() or build_provider(environment)
            opened = open_tracing(provider)
        except Exception as error:  # noqa: BLE001  the SDK raises what it likes about its variables
            log.warning("no traces", cause=str(error), warning=advice(error))
    try:
        yield opened
    finally:
        if provider is not None and provider is not trace.get_tracer_provider():
            await flush(provider)


def is_wanted(environment: Mapping[str, str]) -> bool:
    """Whether the variables name a place for traces, and do not turn them off."""
    if environment.get("OTEL_SDK_DISABLED", "").strip().lower() == "true":
        return False
    if environment.get(EXPORTER, "").strip().lower() == "none":
        return False
    return any(environment.get(name, "").strip() for name in TURN_ON)


def provider_set_elsewhere() -> Any:
    """The process' provider, where a launcher such as opentelemetry-instrument has set one; else None."""
    found = trace.get_tracer_provider()
    return None if isinstance(found, trace.ProxyTracerProvider) else found


def build_provider(environment: Mapping[str, str]) -> Any:
    """Build the SDK's provider of tracers, which reads all further variables itself.

    Raises:
        ImportError: the SDK is not installed.
        ValueError: an exporter is not known here.
    """
    from opentelemetry.sdk.resources import Resource
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.sdk.trace.export import BatchSpanProcessor

    own = {"service.version": guard_version(), "service.name": service_name(environment)}
    provider = TracerProvider(resource=Resource.create(own), shutdown_on_exit=False)
    for name in exporter_names(environment):
        provider.add_span_processor(BatchSpanProcessor(exporter(name)))
    return provider


def service_name(environment: Mapping[str, str]) -> str:
    """The name of this service in traces and log lines, as OpenTelemetry's variables say it."""
    attributes = environment.get("OTEL_RESOURCE_ATTRIBUTES", "").split(",")
    pairs = {key.strip(): unquote(value.strip()) for key, _, value in (one.partition("=") for one in attributes)}
    return environment.get("OTEL_SERVICE_NAME") or pairs.get("service.name") or SERVICE


def exporter_names(environment: Mapping[str, str]) -> Iterator[str]:
    """The names of the exporters that the variables ask for, by which packages offer them."""
    for name in (environment.get(EXPORTER) or "otlp").split(","):
        if name.strip() == "otlp":
            protocol = next((environment[key] for key in PROTOCOLS if environment.get(key)), "grpc")
            yield OTLP_EXPORTERS.get(protocol, protocol)
        else:
            yield name.strip()


def exporter(name: str) -> Any:
    """Make the exporter that an installed package offers under a name. Raises ValueError where none does."""
    for found in entry_points(group=EXPORTER_GROUP, name=name):
        return found.load()()
    offered = sorted({point.name for point in entry_points(group=EXPORTER_GROUP)})
    raise ValueError(f"no installed package offers the exporter {name!r}; there are {', '.join(offered) or 'none'}")


def open_tracing(provider: Any) -> Tracing:
    """The tracer of a provider, with the propagators that OTEL_PROPAGATORS names. Raises ValueError."""
    from opentelemetry import propagate

    return Tracing(provider.get_tracer(SCOPE, guard_version()), propagate.get_global_textmap())


def advice(error: Exception) -> str:
    """What to do about an error in the set-up."""
    if "opentelemetry.proto" in str(error):
        return (
            "xds-protos (of the extra [envoy]) and opentelemetry-proto have files of the same names, and the older "
            "were installed last; pip install --force-reinstall --no-deps opentelemetry-proto mends it"
        )
    if isinstance(error, ImportError):
        return (
            "OTEL_* variables ask for traces, and the SDK is missing; install inference-guard[otel], or set "
            "OTEL_SDK_DISABLED=true"
        )
    return "OTEL_* variables ask for traces that cannot be made; requests are not traced"


async def flush(provider: Any) -> None:
    """Export what is left, for `FLUSH_S` at most; a collector that hangs is not waited for."""
    closing = threading.Thread(target=provider.shutdown, name="last spans", daemon=True)
    closing.start()
    await asyncio.to_thread(closing.join, FLUSH_S)
