"""`guard demo`: a model, a bundle, a model server, a guard, and a client that attacks, all real, all on this machine.

digits ─► train a network ─► guard train ─► model server ◄── guard ◄── client: clean, noise, freshly crafted
"""

from __future__ import annotations

import os
import shutil
import signal
import socket
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from guard.errors import ConfigError, GateError, NotReadyError

REJECT_RATE, FLAG_RATE = 0.05, 0.10  # what 1,800 images can promise
MIN_ACCURACY_SHARE = 0.97
STRONG_ATTACK_SHARE = 0.9  # success on the bare model from which an attack counts in `gate`
ADAPTIVE_ITEMS, ADAPTIVE_STEPS = 40, 50
START_S = 60.0
REQUEST_PAIRS = 200  # of requests, with and without the guard
MODEL = "digits"
MARK = ".guard-demo"
SESSION_THREADS = 1  # for so small a network more are slower, and every run on a machine gives the same bits


@dataclass(frozen=True)
class Caught:
    """The counts of one kind of input, as the client sees it: tried, verified and rejected."""

    name: str
    tried: int  # clean items that were attacked, or inputs sent
    verified: int  # sent: those that fool the model, or all
    rejected: int

    @property
    def success(self) -> float:
        return self.verified / self.tried if self.tried else 0.0

    @property
    def share(self) -> float:
        return self.rejected / self.verified if self.verified else 0.0

    @property
    def interval(self) -> tuple[float, float]:
        from guard.offline.findings.intervals import wilson

        return wilson(self.rejected, self.verified)


def run_demo(folder: Path, *, seed: int, keep: bool) -> None:
    """Run the demo and print what happens. Raises GateError when the guard does no better than chance."""
    from rich.console import Console

    console = Console(highlight=False)
    for number in (signal.SIGINT, signal.SIGTERM):  # also where a shell started this in the background
        signal.signal(number, signal.default_int_handler)
    started = time.monotonic()
    make_room(folder)
    inputs = make_bundle(folder, seed, console)
    with ExitStack() as stack:
        house = stack.enter_context(servers(folder))
        console.print(f"\n[bold]Model server on {house.upstream}, guard on {house.guarded}[/bold]")
        clean, attacks = attack_over_the_wire(house.guarded, inputs, console)
        compare_latency(house, inputs["clean"], console)
        show_adaptive(folder / "bundle", console)
        console.print(f"\nreport   {folder / 'bundle' / 'report.html'}", markup=False, soft_wrap=True)
        console.print(f"metrics  http://{house.metrics}/metrics{'' if keep else '  (with --keep)'}")
        console.print(f"took     {time.monotonic() - started:.0f} s")
        gate(attacks, clean)
        if keep:
            console.print("\nBoth go on running; Ctrl-C ends them.")
            wait_for_interrupt()


def make_room(folder: Path) -> None:
    """Make the folder, empty. Raises ConfigError rather than remove what an earlier demo did not make."""
    if folder.exists() and not (folder / MARK).is_file() and (not folder.is_dir() or any(folder.iterdir())):
        raise ConfigError(f"{folder} is there and was not made by a demo; name another --folder")
    if folder.exists():
        shutil.rmtree(folder)
    folder.mkdir(parents=True)
    (folder / MARK).write_text("made by guard demo, and removed by the next one\n", encoding="utf-8")


def make_bundle(folder: Path, seed: int, console: Any) -> dict[str, Any]:
    """Train the network and its guard; return the inputs that the client is going to send."""
    import torch

    from guard.offline.demo_model import accuracy, load_digits, save_model, train_network
    from guard.offline.job.job import Job
    from guard.offline.job.recipe import load_recipe
    from guard.offline.train import finish, prepare
    from guard.offline.work.progress import Stages

    stages = Stages(console)
    console.print("[bold]A network for scikit-learn's digits, and a guard for it[/bold]")
    digits = load_digits(seed)
    torch.set_num_threads(SESSION_THREADS)
    with stages.stage("train the network") as progress:
        trained = train_network(digits, seed, lambda done, total: progress.items("epochs", done, total))
        exported, _ = save_model(trained, folder)
    right = accuracy(trained, digits)
    console.print(f"  right on {right:.1%} of the {len(digits.unseen)} images it has not seen")
    if right < MIN_ACCURACY_SHARE:
        raise GateError(f"the demo's network is right on {right:.1%} of unseen images; wanted {MIN_ACCURACY_SHARE:.0%}")
    np.savez(folder / "data.npz", images=digits.unseen, labels=digits.unseen_labels)
    np.savez(folder / "seen.npz", images=digits.seen, labels=digits.seen_labels)
    job = Job(
        model=str(exported),
        data=folder / "data.npz",
        second_data=folder / "seen.npz",
        out=folder / "bundle",
        recipe=load_recipe("digits"),
        reject_rate=REJECT_RATE,
        flag_rate=FLAG_RATE,
        seed=seed,
        threads=SESSION_THREADS,
        serves=MODEL,
        adaptive_items=ADAPTIVE_ITEMS,
        adaptive_steps=ADAPTIVE_STEPS,
    )
    job, prepared = prepare(job, stages)
    finish(job, prepared, stages)
    with stages.stage("craft fresh attacks") as progress:
        return fresh_inputs(job, prepared, progress)


def fresh_inputs(job: Any, prepared: Any, progress: Any) -> dict[str, Any]:
    """Clean, noisy and freshly crafted inputs from images that nothing was fitted on."""
    import torch

    from guard.offline.attacks.attack import Attack
    from guard.offline.attacks.methods.deepfool import DeepFool
    from guard.offline.attacks.methods.pgd import Pgd
    from guard.offline.attacks.model import TorchModel
    from guard.offline.crafting.crafter import craft
    from guard.offline.crafting.shard import CraftSetup
    from guard.offline.data.grid import off_grid
    from guard.offline.data.splits import Split

    test, spec = prepared.data.part(Split.TEST), prepared.classifier.spec
    attacks: list[Attack] = [*(Pgd(budget=steps / 16, steps=40) for steps in (1, 2, 4)), DeepFool()]
    run = CraftSetup(
        TorchModel(prepared.classifier.graph), spec.input.grid, spec.fingerprint, job.work.demo, job.seed + 1
    )
    crafted = craft(run, test, attacks, progress=progress.items)
    names = ["PGD-40, 1/16", "PGD-40, 2/16", "PGD-40, 4/16", "DeepFool (never trained on)"]
    return {
        "clean": test.images,
        "attacks": dict(zip(names, crafted, strict=True)),
        "noise": by_answer(prepared.classifier.graph, crafted),
        "off-grid clean": off_grid(test.images, spec.input.grid, torch.Generator().manual_seed(job.seed)),
    }


def by_answer(graph: Callable[[Any], Any], crafted: Sequence[Any]) -> dict[bool, NDArray[np.float32]]:
    """Return the noise as large as the attacks, by whether the model is still right."""
    import torch

    noise = np.concatenate([found.noise for found in crafted])
    labels = np.concatenate([found.labels for found in crafted])
    with torch.no_grad():
        right = graph(torch.from_numpy(noise)).argmax(dim=1).numpy() == labels
    return {True: noise[right], False: noise[~right]}


@dataclass(frozen=True)
class House:
    """The addresses of the servers that the demo runs."""

    upstream: str
    guarded: str
    metrics: str


@contextmanager
def servers(folder: Path) -> Iterator[House]:
    """Run a model server and a guard before it within the block, as processes on free ports."""
    from guard.serve.probe import probe

    ports = free_ports(4)
    upstream, guarded, admin, metrics = (f"127.0.0.1:{port}" for port in ports)
    threads = ["--threads", str(SESSION_THREADS)]
    with ExitStack() as stack:
        model = ["model-server", "--model", str(folder / "model.onnx"), "--name", MODEL, "--listen", upstream, *threads]
        sidecar = ["serve", "--bundle", str(folder / "bundle"), "--upstream", upstream, "--listen", guarded]
        sidecar += ["--admin-listen", admin, "--metrics-listen", metrics, *threads]
        processes = [stack.enter_context(running(words, folder)) for words in (model, sidecar)]
        deadline = time.monotonic() + START_S
        while True:
            try:
                probe(guarded)
                break
            except NotReadyError:
                if time.monotonic() > deadline or any(p.poll() is not None for p in processes):
                    raise
                time.sleep(0.05)
        yield House(upstream, guarded, metrics)


@contextmanager
def running(words: Sequence[str], folder: Path) -> Iterator[subprocess.Popen[bytes]]:
    """Run `guard WORDS` as a process within the block, its log in the folder; SIGTERM ends it."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith("GUARD_")}
    with (folder / f"{words[0]}.log").open("wb") as log:
        process = subprocess.Popen([sys.executable, "-m", "guard", *words], stdout=log, stderr=log, env=environment)
        try:
            yield process
        finally:
            process.terminate()
            try:
                process.wait(timeout=20)
            except subprocess.TimeoutExpired:
                process.kill()


def free_ports(count: int) -> list[int]:
    with ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for one in sockets:
            one.bind(("127.0.0.1", 0))
        return [one.getsockname()[1] for one in sockets]


def attack_over_the_wire(address: str, inputs: Mapping[str, Any], console: Any) -> tuple[Caught, list[Caught]]:
    """Send everything through the guard, one item a request, and count what is rejected."""
    from guard.offline.work.tables import print_lines

    with client(address) as infer:
        calm = [
            count(infer, name, images)
            for name, images in (("clean", inputs["clean"]), ("clean, off the grid", inputs["off-grid clean"]))
        ]
        kept, misled = (count(infer, "noise, the model still right", inputs["noise"][right]) for right in (True, False))
        calm += [together("noise, sized as the attacks", kept, misled), kept]
        attacks = [count(infer, name, found.attacked, found.tried) for name, found in inputs["attacks"].items()]
    console.print()
    print_lines(console, lines_of(calm, attacks))
    return calm[0], attacks


def lines_of(calm: Sequence[Caught], attacks: Sequence[Caught]) -> list[str]:
    """Return the table of what was rejected; only an attack has a share that fools the bare model."""
    from guard.offline.work.tables import counts, new_table, plain_lines, shares

    columns = [*map(counts, ("fools model", "items", "rejected")), shares("95 % interval")]
    table = new_table("sent through the guard", columns)
    for row, fools in (*((row, "") for row in calm), *((row, f"{row.success:.0%}") for row in attacks)):
        low, high = row.interval
        table.add_row(row.name, fools, str(row.verified), f"{row.share:.1%}", f"{low:.1%} to {high:.1%}")
    return plain_lines([table])


def count(
    infer: Callable[[NDArray[Any]], bool], name: str, images: NDArray[np.float32], tried: int | None = None
) -> Caught:
    rejected = sum(not infer(image[None]) for image in images)
    return Caught(name, len(images) if tried is None else tried, len(images), rejected)


def together(name: str, *parts: Caught) -> Caught:
    return Caught(name, *(sum(getattr(one, of) for one in parts) for of in ("tried", "verified", "rejected")))


@contextmanager
def client(address: str) -> Iterator[Callable[[NDArray[Any]], bool]]:
    """A plain gRPC client of the Open Inference Protocol; its call says whether the input passed, in its own type."""
    import grpc

    from guard.serve.grpc.wire import inference_pb2
    from guard.serve.tensor import DTYPES

    names = {dtype: name for name, dtype in DTYPES.items()}

    with grpc.insecure_channel(address) as channel:
        call = channel.unary_unary(
            "/inference.GRPCInferenceService/ModelInfer",
            request_serializer=inference_pb2.ModelInferRequest.SerializeToString,
            response_deserializer=inference_pb2.ModelInferResponse.FromString,
        )

        def infer(images: NDArray[Any]) -> bool:
            request = inference_pb2.ModelInferRequest(model_name=MODEL)
            request.inputs.add(name="input", datatype=names[images.dtype.newbyteorder("<")], shape=images.shape)
            request.raw_input_contents.append(np.ascontiguousarray(images).tobytes())
            try:
                call(request, timeout=30.0)
            except grpc.RpcError as error:
                if error.code() is grpc.StatusCode.PERMISSION_DENIED:
                    return False
                raise
            return True

        yield infer


def compare_latency(house: House, images: NDArray[np.float32], console: Any) -> None:
    """Measure and print the latency of single clean items, in turn with and without the guard."""
    with client(house.guarded) as guarded, client(house.upstream) as bare:
        times: dict[str, list[float]] = {"bare": [], "guarded": []}
        for i in range(REQUEST_PAIRS):
            for name, infer in (("bare", bare), ("guarded", guarded)):
                began = time.perf_counter()
                infer(images[i % len(images), None])
                times[name].append(1000 * (time.perf_counter() - began))
    medians = {name: statistics.median(values) for name, values in times.items()}
    tails = {name: statistics.quantiles(values, n=100)[98] for name, values in times.items()}
    console.print(
        f"\nlatency of one item  bare {medians['bare']:.2f} ms (99 %: {tails['bare']:.2f}), "
        f"guarded {medians['guarded']:.2f} ms (99 %: {tails['guarded']:.2f})"
    )


def show_adaptive(bundle: Path, console: Any) -> None:
    """Print the report's rows about the adaptive attack, by an attacker who knows the guard."""
    import json

    report = json.loads((bundle / "report.json").read_text(encoding="utf-8"))
    console.print("\nan attacker who knows the guard (from the report):")
    for row in report["adaptive"]:
        proven = "" if row["proven"] else "  attack unproven"
        fooled, passed = row["fooled"], row["passed_reject"]["count"]
        rejected = 1 - passed / max(fooled["count"], 1)
        console.print(
            f"  budget {round(16 * row['budget'])}/16: fools the model on {fooled['value']:.0%} of {fooled['items']} "
            f"items, {rejected:.0%} of those are rejected{proven}"
        )


def gate(attacks: Sequence[Any], clean: Any) -> None:
    """Check the guard against the weakest attack that reliably fools the bare model.

    Raises:
        GateError: no attack is strong, or the guard rejects no more of it than a coin or its own false alarms would.
    """
    strong = [row for row in attacks if row.success >= STRONG_ATTACK_SHARE]
    if not strong:
        raise GateError(
            f"no attack fools the bare model on {STRONG_ATTACK_SHARE:.0%} of the items; the demo shows nothing"
        )
    row = strong[0]
    low, _ = row.interval
    _, alarms = clean.interval
    if low <= max(0.5, alarms):
        raise GateError(
            f"{row.name}: the guard rejects {row.share:.0%} of the attacked items (interval from {low:.0%}), and "
            f"{clean.share:.0%} of the clean ones; that is no better than chance"
        )


def wait_for_interrupt() -> None:
    """Wait until Ctrl-C or SIGTERM; the caller then ends the servers."""
    with suppress(KeyboardInterrupt):
        while True:
            time.sleep(3600)
