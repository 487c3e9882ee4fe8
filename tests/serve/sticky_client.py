"""Runs in the side environment `triton`: tritonclients that keep their connections and ask until they are told to stop.

It reads {"target": …, "model": …, "shape": […], "image": […], "clients": n} in the first line of standard input, writes
a line once every client has had an answer, asks until standard input ends, and writes how many answers ended how, in
JSON. With "pause_s" each client waits so long between two questions. It imports nothing of ours.
"""

from __future__ import annotations

import json
import sys
import threading
from collections import Counter
from typing import Any

import numpy as np
import tritonclient.grpc as triton  # type: ignore[import-not-found]  # lives in the side environment only
from tritonclient.utils import InferenceServerException  # type: ignore[import-not-found]


def main() -> None:
    story = json.loads(sys.stdin.readline())
    stop, ended = threading.Event(), Counter[str]()
    begun = threading.Barrier(story["clients"] + 1)
    threads = [
        threading.Thread(target=ask, args=(story, number, begun, stop, ended)) for number in range(story["clients"])
    ]
    for thread in threads:
        thread.start()
    begun.wait()
    print("asking", flush=True)
    sys.stdin.read()
    stop.set()
    for thread in threads:
        thread.join()
    print(json.dumps(ended))


def ask(
    story: dict[str, Any], number: int, begun: threading.Barrier, stop: threading.Event, ended: Counter[str]
) -> None:
    # A channel argument of its own, or the clients would share one connection
    own = [("grpc.use_local_subchannel_pool", 1), ("client", number)]
    client = triton.InferenceServerClient(story["target"], channel_args=own)
    tensor = triton.InferInput("input", story["shape"], "FP32")
    tensor.set_data_from_numpy(np.asarray(story["image"], np.float32).reshape(story["shape"]))
    first = True
    while not stop.is_set():
        try:
            client.infer(story["model"], [tensor])
            ended["OK"] += 1
            stop.wait(story.get("pause_s", 0.0))
        except InferenceServerException as error:
            ended[f"{error.status()}: {error.message()}"] += 1
            stop.wait(0.005)
        if first:
            begun.wait()
            first = False
    client.close()


if __name__ == "__main__":
    main()
