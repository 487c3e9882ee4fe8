"""A model server over HTTP that a test can turn: what it says of itself, and by which clock."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from tests.serve import tiny_bundle

METADATA: dict[str, Any] = {
    "name": tiny_bundle.MODEL_NAME,
    "versions": [],
    "inputs": [{"name": "input", "datatype": "FP32", "shape": [-1, *tiny_bundle.SHAPE]}],
    "outputs": [{"name": "logits", "datatype": "FP32", "shape": [-1, tiny_bundle.CLASSES]}],
}


@contextmanager
def http_server(host: str = "127.0.0.1", *, date: str | None = None, name: str = METADATA["name"]) -> Iterator[str]:
    """HOST:PORT of a server that has the tiny model by this name, and tells this date, or the true one."""

    class Handler(BaseHTTPRequestHandler):
        """Health and metadata of the Open Inference Protocol."""

        def do_GET(self) -> None:
            found: dict[str, Any] | None = {"ready": True} if self.path.startswith("/v2/health/") else None
            if self.path.rstrip("/").endswith(("/ready", f"/models/{name}")) and f"/models/{name}" in self.path:
                found = {"ready": True} if self.path.endswith("/ready") else {**METADATA, "name": name}
            body = json.dumps(found or {"error": "unknown"}).encode()
            self.send_response(404 if found is None else 200)
            self.send_header("content-length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def date_time_string(self, timestamp: float | None = None) -> str:
            return super().date_time_string(timestamp) if date is None else date

        def log_message(self, *_: Any) -> None:
            """Say nothing."""

    with ThreadingHTTPServer((host, 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        try:
            yield f"{host}:{server.server_address[1]}"
        finally:
            server.shutdown()
            thread.join()
