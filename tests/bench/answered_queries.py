"""For maintainers: query attacks in closed loop, where what an attacker hears decides what is asked next.

    python -m tests.side attacks
    python -m tests.bench.answered_queries MODEL.onnx|BUNDLE --data ../shared/data/cifar10-test.npz [--items 60]
    python -m tests.bench.answered_queries BUNDLE --model MODEL.onnx --data … --port      through a real guard's port
    python -m tests.bench.answered_queries --quick

A query memory stands before the model, as `query_memory` has it. What it does with a query that it matches is a row:
nothing; it rejects; it answers as it did the nearest of the principal's earlier queries ("stale"), so that nobody hears
of it. Who is rejected takes the query for a failure and draws another (the attacks' own resampling), or knows better:
turns, shifts and blurs with noise all that is sent; goes on as another principal; sends 40 other pictures and asks
again. Success is a query of which the attacker heard that it fools the model, and which truly does as the attack means
it (turned back, that is), within --distance for the attacks without a budget. What it costs is told in requests,
principals and refusals an item.

With --port a real `guard serve` (enforce, query_memory = "reject", a principal an item) is asked instead, detectors and
all; "rejected" then also means by a verdict. The earlier answers are not to be had there: no guard gives them.
"""

from __future__ import annotations

import argparse
import secrets
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import grpc
import numpy as np
import torch
from numpy.typing import NDArray

from guard.arrays import read_examples
from guard.bundle import Bundle
from guard.queries.fingerprint import Fingerprinter
from guard.queries.memory import PRINCIPAL_QUERIES, QueryMemory
from guard.runtime import Runtime
from guard.serve.grpc.upstream import path
from guard.serve.grpc.wire.inference_pb2 import ModelInferResponse
from tests.bench.queries import NAMES, Floats, answers_of, moved, open_answers, search
from tests.bench.sidecar import serving, tiny
from tests.queries.streams import snapped
from tests.serve import tiny_bundle
from tests.serve.guarded import infer_request
from tests.side import reach

Policy = Literal["none", "reject", "stale"]
Cunning = Literal["resamples", "moves", "principals", "covers"]
AT_PORT: tuple[Cunning, ...] = ("resamples", "moves", "principals")
SURE_LOGIT = 10.0  # of the right class, as an attacker takes a refusal
COVER_ITEMS = 40
MAX_RETRIES = 1  # of a query as another principal, or after others
ROWS: tuple[tuple[str, Policy, Cunning], ...] = (
    ("no memory", "none", "resamples"),
    ("rejects", "reject", "resamples"),
    ("answers as before", "stale", "resamples"),
    ("rejects; each query turned and shifted", "reject", "moves"),
    ("answers as before; turned and shifted", "stale", "moves"),
    ("rejects; then another principal", "reject", "principals"),
    ("rejects; then 40 other pictures", "reject", "covers"),
)


class Refused(Exception):
    """A query that was rejected."""


Ask = Callable[[Floats, str], Floats]  # an item [1, ...] of a principal -> logits [class]; raises Refused


@dataclass
class Defence:
    """A query memory before a model, in this process."""

    answers: Callable[[Floats], Floats]
    policy: Policy
    streams: bool
    shape: tuple[int, ...]
    earlier: dict[str, list[tuple[Floats, Floats]]] = field(default_factory=dict)
    asked: int = 0

    def __post_init__(self) -> None:
        self.fingerprinter = Fingerprinter(self.shape, np.random.default_rng(0))
        self.memory = QueryMemory(self.fingerprinter, streams=self.streams)

    def __call__(self, image: Floats, principal: str) -> Floats:
        """Answer one query. Raises Refused."""
        self.asked += 1
        found = self.memory.see(principal, self.fingerprinter.of(image), self.asked / 10)
        known = self.earlier.setdefault(principal, [])
        if found.is_attack and self.policy == "reject":
            raise Refused
        if found.is_attack and self.policy == "stale" and known:
            distances = [float(((image - other) ** 2).sum()) for other, _ in known]
            return known[int(np.argmin(distances))][1]
        told = self.answers(image)[0]
        known.append((image, told))
        del known[:-PRINCIPAL_QUERIES]
        return told


@dataclass
class Attacker:
    """What stands between an attack's code and the port: it hides queries, and draws its lesson from refusals."""

    ask: Ask
    label: int
    cunning: Cunning
    cover: Floats
    generator: np.random.Generator
    name: str
    most: int  # queries
    classes: int
    sent: list[Floats] = field(default_factory=list)  # as the attack means them, before they are moved
    heard_fooled: list[bool] = field(default_factory=list)
    requests: int = 0
    principals: int = 1
    refusals: int = 0

    def __call__(self, images: Floats) -> Floats:
        """Ask one query after the other, and return what the attack takes for logits [query, class]."""
        return np.stack([self.one(image[None]) for image in images])

    def one(self, image: Floats) -> Floats:
        if len(self.sent) >= self.most:  # its budget is spent: whatever the attack's code still asks is not sent
            return self.taken_for_right()
        told = self.heard(moved(image, self.generator) if self.cunning == "moves" else image)
        self.sent.append(image[0])
        self.heard_fooled.append(int(told.argmax()) != self.label)
        return told

    def heard(self, image: Floats) -> Floats:
        """What is heard of a query, after what cunning does about a refusal."""
        for attempt in range(1 + MAX_RETRIES):
            try:
                return self.request(image)
            except Refused:
                self.refusals += 1
            if attempt == MAX_RETRIES or self.cunning not in ("principals", "covers"):
                break
            if self.cunning == "principals":
                self.principals += 1
            for other in self.others():
                try:
                    self.request(other[None])
                except Refused:
                    self.refusals += 1
        return self.taken_for_right()

    def others(self) -> Floats:
        """The pictures that are sent before a query is tried again."""
        count = COVER_ITEMS if self.cunning == "covers" else 0
        found: Floats = self.cover[self.generator.integers(0, len(self.cover), count)]
        return found

    def request(self, image: Floats) -> Floats:
        self.requests += 1
        return self.ask(image, f"{self.name}-{self.principals}")

    def taken_for_right(self) -> Floats:
        logits = np.zeros(self.classes, dtype=np.float32)
        logits[self.label] = SURE_LOGIT
        return logits


@dataclass(frozen=True)
class Result:
    """What an attack on one item came to."""

    succeeded: bool
    misled: bool  # it heard of success, and had none
    requests: int
    principals: int
    refusals: int


def run(
    attack: str, attacker: Attacker, truth: Callable[[Floats], Floats], image: Floats, options: Any, seed: int
) -> Result:
    """Run one attack on one item, and judge it by what the model truly answers."""
    search(attack, attacker, image, attacker.label, options, seed)
    claimed = np.flatnonzero(attacker.heard_fooled)
    points = [attacker.sent[place] for place in claimed]
    if attack in ("HopSkipJump", "Boundary"):
        points = [one for one in points if np.sqrt(((one - image) ** 2).mean()) <= options.distance]
    true = [int(truth(one[None])[0].argmax()) != attacker.label for one in points]
    return Result(any(true), bool(points) and not any(true), attacker.requests, attacker.principals, attacker.refusals)


def line(name: str, results: Sequence[Result]) -> str:
    """A line of the table."""
    won, misled = (100 * np.mean([getattr(one, key) for one in results]) for key in ("succeeded", "misled"))
    costs = [np.mean([getattr(one, key) for one in results]) for key in ("requests", "principals", "refusals")]
    return f"{name:44} {won:>8.0f} % {misled:>7.0f} % {costs[0]:>9.0f} {costs[1]:>11.1f} {costs[2]:>9.0f}"


HEADS = f"{'what a match meets':44} {'success':>10} {'misled':>9} {'requests':>9} {'principals':>11} {'refusals':>9}"


def in_process(
    answers: Callable[[Floats], Floats], images: Floats, labels: NDArray[np.int64], cover: Floats, options: Any
) -> Iterator[str]:
    """Yield the tables of attacks on a memory in this process."""
    for attack in options.attacks:
        yield f"{attack}, {len(images)} items, {'streams expected' if options.streams else 'single pictures'}"
        yield HEADS
        for name, policy, cunning in ROWS:
            results = []
            for number, (image, label) in enumerate(zip(images, labels, strict=True)):
                defence = Defence(answers, policy, options.streams, image.shape)
                generator = np.random.default_rng(number)
                limits = (f"p{number}", options.queries, answers(image[None]).shape[1])
                attacker = Attacker(defence, int(label), cunning, cover, generator, *limits)
                results.append(run(attack, attacker, answers, image, options, number))
            yield line(name, results)


@contextmanager
def port(bundle: Bundle, model: Path, principals: int, *, streams: bool) -> Iterator[Ask]:
    """A real guard as something to ask; it knows `principals` principals, and each new name is the next of them."""
    spec = bundle.manifest.model
    tokens = [secrets.token_hex(16) for _ in range(principals)]
    known: dict[str, str] = {}
    with tempfile.TemporaryDirectory() as name:
        file, settings = Path(name) / "tokens", Path(name) / "guard.toml"
        file.write_text("".join(f"p{number} {token}\n" for number, token in enumerate(tokens)), encoding="utf-8")
        file.chmod(0o600)
        settings.write_text(
            f'principal_from = "bearer"\nclient_tokens = "{file}"\nquery_memory = "reject"\n'
            f"query_streams = {str(streams).lower()}\n",
            encoding="utf-8",
        )
        with (
            serving(bundle.path, model, spec.name, "--config", str(settings)) as guard,
            grpc.insecure_channel(guard.address) as channel,
        ):
            call: Any = channel.unary_unary(path("ModelInfer"))

            def ask(image: Floats, principal: str) -> Floats:
                token = known.setdefault(principal, tokens[len(known) % principals])
                request = infer_request(spec.input.box.from_unit(image), name=spec.name)
                request.inputs[0].name = spec.input.name
                try:
                    answer = call(request.SerializeToString(), metadata=(("authorization", f"Bearer {token}"),))
                except grpc.RpcError as error:
                    if error.code() is grpc.StatusCode.PERMISSION_DENIED:
                        raise Refused from error
                    raise
                raw = ModelInferResponse.FromString(answer).raw_output_contents[0]
                return np.frombuffer(raw, dtype=np.float32)

            yield ask


def through_the_port(
    ask: Ask,
    answers: Callable[[Floats], Floats],
    images: Floats,
    labels: NDArray[np.int64],
    cover: Floats,
    options: Any,
) -> Iterator[str]:
    """Yield the table of attacks on a real guard."""
    yield f"through a guard's port, {len(images)} items an attack"
    yield HEADS
    for attack in options.attacks:
        for cunning in options.cunning:
            results = []
            for number, (image, label) in enumerate(zip(images, labels, strict=True)):
                generator = np.random.default_rng(number)
                limits = (f"{attack}-{cunning}-{number}", options.queries, answers(image[None]).shape[1])
                attacker = Attacker(ask, int(label), cunning, cover, generator, *limits)
                results.append(run(attack, attacker, answers, image, options, number))
            yield line(f"{attack}, {cunning}", results)


def quick() -> Iterator[str]:
    """Run it all on the tests' tiny bundle: no figures to quote."""
    with tempfile.TemporaryDirectory() as name:
        found, model, _ = tiny(Path(name))
        bundle = Bundle.open(found)
        answers = answers_of(Runtime.open(bundle, threads=1))
        images = snapped(tiny_bundle.clean(1, seed=70))
        labels, cover = answers(images).argmax(axis=1), snapped(tiny_bundle.clean(200, seed=71))
        options = argparse.Namespace(queries=30, distance=0.1, attacks=("SimBA-like", "Square"), streams=True)
        options.cunning = AT_PORT
        yield from in_process(answers, images, labels, cover, options)
        with port(bundle, model, 40, streams=True) as ask:
            yield from through_the_port(ask, answers, images[:1], labels[:1], cover, options)


def main(arguments: Sequence[str]) -> None:
    reach("attacks")
    torch.set_num_threads(1)
    if list(arguments) == ["--quick"]:
        print("\n".join(quick()))
        return
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bundle", type=Path, help="or an .onnx file")
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--items", type=int, default=60)
    parser.add_argument("--queries", type=int, default=300)
    parser.add_argument("--distance", type=float, default=0.02, help="within which an attack without a budget succeeds")
    parser.add_argument("--attacks", nargs="+", choices=NAMES, default=NAMES)
    parser.add_argument("--streams", action="store_true", help="expect cameras and videos, as the guard's default does")
    parser.add_argument("--port", action="store_true")
    parser.add_argument("--cunning", nargs="+", choices=AT_PORT, default=AT_PORT, help="with --port")
    parser.add_argument("--model", type=Path, help="with --port: what the guard's model server serves")
    options = parser.parse_args(arguments)
    answers, pictures = open_answers(options.bundle)
    examples = read_examples(options.data)
    images = pictures(examples)
    some = images[: 2 * options.items]
    right = np.flatnonzero(answers(some).argmax(axis=1) == examples.labels[: len(some)])[: options.items]
    given = answers, images[right], examples.labels[right], images[2 * options.items :]
    if not options.port:
        for text in in_process(*given, options):
            print(text, flush=True)
        return
    with port(Bundle.open(options.bundle), options.model, 50 * options.items, streams=options.streams) as ask:
        for text in through_the_port(ask, *given, options):
            print(text, flush=True)


if __name__ == "__main__":
    main(sys.argv[1:])
