"""What the guard makes of one file: whether it opens, whether its gradient is the network's, trains, and serves."""

from __future__ import annotations

import contextlib
import copy
import io
import shutil
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import grpc
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from guard import cli
from guard.bundle import Bundle
from guard.demo import free_ports, running
from guard.errors import GuardError, NotReadyError
from guard.offline.model.classifier import Classifier
from guard.offline.model.gradient.input_gradient import with_gradient
from guard.offline.model.open_model import Source, open_model
from guard.serve.grpc.wire import inference_pb2
from guard.serve.probe import probe

COMPARED_ITEMS = 6
MAX_GRADIENT_ERROR = 1e-4  # relative L2 of the median item, or as far as torch itself is from double precision
MAX_ROUNDING_FACTOR = 10.0
RECIPE = Path(__file__).with_name("gradient.toml")
SMALL = (
    *("--craft-items", "40", "--attack-items", "20", "--adaptive-items", "2", "--adaptive-steps", "2"),
    *("--reject-rate", "0.05", "--flag-rate", "0.1", "--threads", "1", "--serves", "zoo"),
)
SENT_ITEMS = 8
START_S = 60.0
METHOD = "/inference.GRPCInferenceService/ModelInfer"


@dataclass(frozen=True)
class Opened:
    """A file that was opened, or why it was not."""

    classifier: Classifier | None
    message: str
    gradient_error: float = float("nan")  # of the median item, relative
    gradient_agrees: bool = False


def opened(file: Path, network: nn.Module, images: Tensor, source: Source) -> Opened:
    """Open a file and compare the gradient of its margin with torch's on the network; a refusal is its message."""
    try:
        classifier = open_model(source)
        found = with_gradient(classifier.graph, seed=margin)(images)[1]
    except GuardError as error:
        return Opened(None, said(str(error), file))
    wanted = torch_gradient(network, images)
    error = median_difference(found, wanted)
    limit = MAX_GRADIENT_ERROR
    if error > limit:
        exact = torch_gradient(copy.deepcopy(network).double(), images.double())
        limit = MAX_ROUNDING_FACTOR * median_difference(wanted, exact)
    return Opened(classifier, "", error, error <= limit)


def said(message: str, file: Path) -> str:
    """A message in one line, without the folder that only this run knows."""
    return " ".join(message.replace(f"{file.parent}/", "").split())


def torch_gradient(network: nn.Module, images: Tensor) -> Tensor:
    given = images.clone().requires_grad_()
    logits = network(given)
    (gradient,) = torch.autograd.grad((logits * margin(logits.detach())).sum(), given)
    return gradient


def margin(logits: Tensor) -> Tensor:
    """The seed [item, class] of the difference between the top two logits."""
    places = torch.arange(logits.shape[1])
    first, second = (place == places for place in logits.topk(2, dim=1).indices.unsqueeze(2).unbind(1))
    return first.to(logits.dtype) - second.to(logits.dtype)


def median_difference(found: Tensor, wanted: Tensor) -> float:
    errors = (found - wanted).flatten(1).norm(dim=1) / wanted.flatten(1).norm(dim=1)
    return float(errors.median())


def trained(file: Path, data: Path, out: Path, recipe: Sequence[str], options: Sequence[str]) -> str:
    """Run `guard train`, as its command line does; empty, or what it said when it failed."""
    shutil.rmtree(out, ignore_errors=True)
    words = ["train", "--model", str(file), "--data", str(data), "--out", str(out), *recipe, *options, *SMALL]
    heard = io.StringIO()
    with contextlib.redirect_stderr(heard), contextlib.redirect_stdout(io.StringIO()):
        code = cli.run(words)
    return "" if code == 0 else said(heard.getvalue().strip(), file) or f"exit code {code}"


def served(bundle: Bundle, file: Path, images: NDArray[np.float32], classes: NDArray[np.int64], folder: Path) -> str:
    """Send items [item, channel, height, width], of these classes to torch, to the sidecar and to the model server.

    Empty where what passes is answered with the same bytes, of the same class; else what was seen.
    """
    wire = images.transpose(0, 2, 3, 1) if bundle.manifest.model.input.layout == "NHWC" else images
    items = [np.ascontiguousarray(item[None]) for item in wire[:SENT_ITEMS]]
    with servers(bundle.path, file, folder) as (upstream, guarded):
        direct, through = (answers(address, bundle, items) for address in (upstream, guarded))
    passed = [place for place, answer in enumerate(through) if answer]
    if not passed:
        return "rejected every item"
    named = [int(np.frombuffer(answer, "<f4").argmax()) for answer in direct]
    if other := sum(name != int(wanted) for name, wanted in zip(named, classes, strict=False)):
        return f"the model server names another class than torch for {other} of {len(named)} items"
    wrong = [place for place in passed if through[place] != direct[place]]
    return f"answered {len(wrong)} of {len(passed)} items otherwise than the model server" if wrong else ""


def answers(address: str, bundle: Bundle, items: Sequence[NDArray[np.float32]]) -> list[bytes]:
    """The raw output for each item; empty for one that was rejected."""
    given = bundle.manifest.model.input
    found = []
    with grpc.insecure_channel(address) as channel:
        call = channel.unary_unary(METHOD, request_serializer=inference_pb2.ModelInferRequest.SerializeToString,
                                   response_deserializer=inference_pb2.ModelInferResponse.FromString)  # fmt: skip
        for item in items:
            request = inference_pb2.ModelInferRequest(model_name="zoo")
            request.inputs.add(name=given.name, datatype="FP32", shape=item.shape)
            request.raw_input_contents.append(item.astype("<f4").tobytes())
            try:
                found.append(b"".join(call(request, timeout=30.0).raw_output_contents))
            except grpc.RpcError as error:
                if error.code() is not grpc.StatusCode.PERMISSION_DENIED:
                    raise
                found.append(b"")
    return found


@contextlib.contextmanager
def servers(bundle: Path, file: Path, folder: Path) -> Iterator[tuple[str, str]]:
    """A model server and the sidecar before it, as processes; their addresses."""
    upstream, guarded, admin, metrics = (f"127.0.0.1:{port}" for port in free_ports(4))
    model = ["model-server", "--model", str(file), "--name", "zoo", "--listen", upstream, "--threads", "1"]
    sidecar = ["serve", "--bundle", str(bundle), "--upstream", upstream, "--listen", guarded, "--admin-listen", admin,
               "--metrics-listen", metrics, "--threads", "1"]  # fmt: skip
    with running(model, folder) as first, running(sidecar, folder) as second:
        deadline = time.monotonic() + START_S
        while True:
            try:
                probe(guarded)
                break
            except NotReadyError:
                if time.monotonic() > deadline or first.poll() is not None or second.poll() is not None:
                    raise
                time.sleep(0.05)
        yield upstream, guarded
