"""Tritonclients in a process of their own that keep their connections, for restarts that must lose nothing."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from tests import side
from tests.serve import tiny_bundle


@contextmanager
def asking(addresses: Sequence[str], clients: int, pause_s: float = 0.0) -> Iterator[subprocess.Popen[str]]:
    """Start tritonclients that keep their connections to the first address that takes them."""
    image = tiny_bundle.ordinary(1)
    story: dict[str, Any] = {"target": f"ipv4:{','.join(addresses)}", "model": tiny_bundle.MODEL_NAME}
    story |= {"shape": list(image.shape), "image": image.ravel().tolist(), "clients": clients, "pause_s": pause_s}
    words = [str(side.ready("triton") / "python"), str(Path(__file__).with_name("sticky_client.py"))]
    with subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as popen:
        assert popen.stdin is not None
        assert popen.stdout is not None
        try:
            popen.stdin.write(json.dumps(story) + "\n")
            popen.stdin.flush()
            assert popen.stdout.readline() == "asking\n"
            yield popen
        finally:
            popen.kill()
