"""A real Envoy as a process of its own: the configuration that the repository ships, on free ports."""

from __future__ import annotations

import json
import subprocess
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tests.side import ROOT, shelf

SHIPPED = ROOT / "deploy" / "envoy.yaml"
START_S = 30.0
ADMIN = "admin: {address: {socket_address: {address: 127.0.0.1, port_value: 0}}}\n"
# Istio's, where no VirtualService says otherwise: in the dump of istio/istio#58086.
RETRIES = (
    "retry_policy: {retry_on: 'connect-failure,refused-stream,unavailable,cancelled,retriable-status-codes', "
    "num_retries: 2, retriable_status_codes: [503], host_selection_retry_max_attempts: '5', retry_host_predicate: "
    "[{name: envoy.retry_host_predicates.previous_hosts, typed_config: {'@type': "
    "type.googleapis.com/envoy.extensions.retry.host.previous_hosts.v3.PreviousHostsPredicate}}]}"
)
ROUTED = "route: {cluster: model_server, timeout: 0s}"
PORTS = {"clients": "port_value: 8080", "guard": "port_value: 8084", "model": "port_value: 9000"}


def configuration(guard: str, model: str, **changes: str) -> str:
    """The shipped configuration with these addresses, and with further texts replaced, each of which is there once."""
    text = SHIPPED.read_text("utf-8").replace("address: 0.0.0.0", "address: 127.0.0.1")
    ports = {"clients": 0, "guard": int(guard.rpartition(":")[2]), "model": int(model.rpartition(":")[2])}
    replaced = {PORTS[name]: f"port_value: {port}" for name, port in ports.items()} | changes
    for old, new in replaced.items():
        assert text.count(old) == 1, old
        text = text.replace(old, new)
    return ADMIN + text


def with_istios_retries(text: str) -> str:
    """The configuration with Istio's retry policy on every route."""
    assert text.count(ROUTED) == 2
    return text.replace(ROUTED, f"route: {{cluster: model_server, timeout: 0s, {RETRIES}}}")


def without_checks(text: str) -> str:
    """The configuration of a mesh that knows nothing of the guard: it calls it as it would call the model server."""
    text = cut(text, "- name: envoy.filters.http.ext_authz", "- name: envoy.filters.http.router")
    return cut(text, "typed_per_filter_config:", "http_filters:")


def cut(text: str, first: str, following: str) -> str:
    """The text without the lines from the one that has `first` to the one before `following`."""
    start, end = (text.rindex("\n", 0, text.index(words)) for words in (first, following))
    return text[:start] + text[end:]


@contextmanager
def envoy_process(folder: Path, text: str) -> Iterator[str]:
    """The address of clients of an Envoy with this configuration, within the block. Raises StaleError."""
    program = shelf("envoy") / "envoy" / "_bin" / "envoy"
    file, admin, log = folder / "envoy.yaml", folder / "admin", folder / "envoy.log"
    file.write_text(text, encoding="utf-8")
    flags = ["--concurrency", "1", "--disable-hot-restart", "--log-level", "warning"]
    command = [program, "--config-path", file, "--admin-address-path", admin, *flags]
    with log.open("wb") as output, subprocess.Popen(command, stdout=output, stderr=output) as process:
        try:
            deadline = time.monotonic() + START_S
            while (found := clients_of(admin)) is None:
                ended = process.poll() is not None or time.monotonic() > deadline
                assert not ended, f"Envoy did not start; it wrote\n{log.read_text(errors='replace')}"
                time.sleep(0.02)
            yield found
        finally:
            process.kill()


def clients_of(admin: Path) -> str | None:
    """The address of the listener, asked of Envoy's admin interface; None as long as that does not answer."""
    try:
        address = admin.read_text("utf-8")
        with urllib.request.urlopen(f"http://{address}/listeners?format=json") as answer:
            found = json.load(answer)["listener_statuses"][0]["local_address"]["socket_address"]
    except (OSError, ValueError, LookupError):
        return None
    return f"{found['address']}:{found['port_value']}"
