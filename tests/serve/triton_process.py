"""An unmodified tritonclient as a process of its own environment: it is told a story, and tells what it found."""

from __future__ import annotations

import base64
import json
import subprocess
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

CLIENT = Path(__file__).with_name("triton_client.py")


def ask_triton(
    programs: Path, address: str, model: str, images: Iterable[NDArray[np.float32]], *, timeout_s: float = 60.0
) -> dict[str, Any]:
    """What `triton_client` found at `address`; each of the images is a request of one item."""
    requests = [
        {"id": f"request-{i}", "shape": [1, *image.shape], "images": base64.b64encode(image.tobytes()).decode()}
        for i, image in enumerate(images)
    ]
    told = json.dumps({"address": address, "model": model, "requests": requests})
    command = [programs / "python", CLIENT]
    done = subprocess.run(command, input=told, capture_output=True, text=True, timeout=timeout_s, check=True)
    found: dict[str, Any] = json.loads(done.stdout)
    return found
