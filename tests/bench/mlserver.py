"""For maintainers: tritonclient -> guard -> MLServer with clean and attacked inputs that the bundle has not seen.

    python -m tests.bench.mlserver --bundle cifar.guard --model cifar.onnx --data cifar10-test.npz

Client, guard and MLServer are processes, each with an installation of its own (`make side` first). The same inputs go
to MLServer directly. Exits with 1 unless what passed equals the direct answers, the metrics count every item, and the
clean rejections lie in the band that the promise allows.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
import urllib.request
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any

import grpc
import numpy as np
from numpy.typing import NDArray
from prometheus_client.parser import text_string_to_metric_families

from guard.bundle import Bundle
from guard.demo import free_ports, running
from guard.errors import NotReadyError
from guard.offline.attacks.methods.pgd import Pgd
from guard.offline.attacks.model import TorchModel
from guard.offline.crafting.crafted_set import CraftedSet
from guard.offline.crafting.crafter import craft
from guard.offline.crafting.shard import CraftSetup
from guard.offline.data.dataset import Dataset
from guard.offline.findings.intervals import rejections_band, wilson
from guard.offline.training.reopen import Work
from guard.serve.probe import probe
from tests.serve.mlserver_process import mlserver_process
from tests.serve.triton_process import ask_triton
from tests.side import ready

START_S = 120.0
CLIENT_S = 1800.0
REFUSED = str(grpc.StatusCode.PERMISSION_DENIED)


def main(arguments: Sequence[str] | None = None) -> int:
    options = parse(arguments)
    bundle = Bundle.open(options.bundle)
    clean, crafted = inputs(bundle, options)
    sent = bundle.manifest.model.input.box.from_unit(np.concatenate([clean, crafted.attacked[: options.attacked]]))
    name = bundle.manifest.model.name
    with servers(bundle, options.model, options.threads) as (upstream, guarded, metrics):
        direct = timed("direct", ask_triton, ready("triton"), upstream, name, sent, timeout_s=CLIENT_S)
        through = timed("guarded", ask_triton, ready("triton"), guarded, name, sent, timeout_s=CLIENT_S)
        found = Found.of(direct["answers"], through["answers"], len(clean), scraped(metrics))
    print(f"bundle   {bundle.path} ({bundle.digest[:12]}), model {name!r} in MLServer")
    print(f"attack   {crafted.attack}: fools the model on {len(crafted)} of {crafted.tried}")
    faults = report(found, bundle)
    for fault in faults:
        print(f"WRONG    {fault}")
    return int(bool(faults))


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m tests.bench.mlserver", description=__doc__.splitlines()[0])
    parser.add_argument("--bundle", type=Path, required=True)
    parser.add_argument("--model", type=Path, required=True, help="the .onnx file that MLServer serves")
    parser.add_argument(
        "--data", type=Path, required=True, help="labelled inputs; those the bundle knows are put aside"
    )
    parser.add_argument("--work", type=Path, help="what guard train kept; BUNDLE.work unless given")
    parser.add_argument("--clean", type=int, default=500)
    parser.add_argument("--attacked", type=int, default=200, help="verified on the model, and on the data's grid")
    parser.add_argument("--budget", type=lambda text: float(Fraction(text)), default=8 / 255, help="of PGD, as 8/255")
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--threads", type=int, default=1, help="of the guard's programs")
    parser.add_argument("--seed", type=int, default=0)
    return parser.parse_args(arguments)


def inputs(bundle: Bundle, options: argparse.Namespace) -> tuple[NDArray[np.float32], CraftedSet]:
    """Clean items, and attacked ones made of others; unit space, none of them known to the bundle."""
    work = Work.beside(bundle, options.work)
    held_out, _ = work.held_out(bundle, options.data)
    order = np.random.default_rng(options.seed).permutation(len(held_out.images))
    clean, rest = order[: options.clean], order[options.clean :]
    crafted = attacked(work, bundle, held_out, rest, options)
    if len(clean) < options.clean or len(crafted) < options.attacked:
        sys.exit(
            f"{options.data}: {len(held_out.images)} unseen items gave {len(clean)} clean and {len(crafted)} attacked; "
            f"wanted {options.clean} and {options.attacked}: bring more, or ask for fewer"
        )
    return held_out.images[clean], crafted


def attacked(
    work: Work, bundle: Bundle, held_out: Dataset, rest: NDArray[np.int64], options: argparse.Namespace
) -> CraftedSet:
    """PGD on as many of the items as it takes; crafted shards are kept in the work directory."""
    classifier = work.subject(bundle).classifier
    grid, work_path = bundle.manifest.model.input.grid, work.directory.crafted
    run = CraftSetup(TorchModel(classifier.graph), grid, classifier.spec.fingerprint, work_path, options.seed)
    tried = min(len(rest), 3 * options.attacked // 2)
    while True:
        (crafted,) = craft(run, held_out.take(rest[:tried]), [Pgd(budget=options.budget, steps=options.steps)])
        if len(crafted) >= options.attacked or tried == len(rest):
            return crafted
        tried = min(len(rest), 2 * tried)


@contextmanager
def servers(bundle: Bundle, model: Path, threads: int) -> Iterator[tuple[str, str, str]]:
    """Addresses of MLServer, of the guard before it, and of the guard's metrics."""
    listen, admin, metrics = (f"127.0.0.1:{port}" for port in free_ports(3))
    words = ["serve", "--bundle", str(bundle.path), "--threads", str(threads), "--mode", "enforce", "--listen", listen]
    words += ["--admin-listen", admin, "--metrics-listen", metrics]
    with (
        tempfile.TemporaryDirectory() as folder,
        mlserver_process(ready("mlserver"), Path(folder), model, bundle.manifest.model.name) as upstream,
        running([*words, "--upstream", upstream], Path(folder)) as guard,
    ):
        deadline = time.monotonic() + START_S
        while True:
            try:
                probe(listen)
                break
            except NotReadyError:
                if time.monotonic() > deadline or guard.poll() is not None:
                    sys.stderr.write((Path(folder) / "serve.log").read_text("utf-8"))
                    raise
                time.sleep(0.1)
        yield upstream, listen, metrics


def timed(what: str, ask: Any, *arguments: Any, **options: Any) -> Any:
    began = time.monotonic()
    answer = ask(*arguments, **options)
    print(f"{what:<9}{len(answer['answers'])} requests answered in {time.monotonic() - began:.1f} s")
    return answer


def scraped(address: str) -> dict[tuple[str, str], float]:
    """The guard's counters: (name, action or empty) -> value."""
    with urllib.request.urlopen(f"http://{address}/metrics") as page:
        text = page.read().decode()
    found: Counter[tuple[str, str]] = Counter()
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            found[sample.name, sample.labels.get("action", "")] += sample.value
    return dict(found)


@dataclass(frozen=True)
class Found:
    """What client and metrics say of the same requests, the clean ones first."""

    clean: NDArray[np.bool_]  # [item] rejected?
    attacked: NDArray[np.bool_]
    passed: int
    equal: int  # of those that passed: the whole answer, byte for byte
    difference: float  # largest, of a logit
    unexpected: tuple[str, ...]  # statuses that are neither an answer nor a rejection
    metrics: dict[tuple[str, str], float]

    @staticmethod
    def of(
        direct: Sequence[dict[str, Any]],
        through: Sequence[dict[str, Any]],
        clean: int,
        metrics: dict[tuple[str, str], float],
    ) -> Found:
        rejected = np.asarray([answer.get("status") == REFUSED for answer in through])
        passed = [(plain, seen) for plain, seen in zip(direct, through, strict=True) if "logits" in seen]
        both = [pair for pair in passed if "logits" in pair[0]]
        differences = [np.abs(np.subtract(plain["logits"], seen["logits"])).max() for plain, seen in both]
        statuses = [str(answer.get("status", "")) for answer in (*direct, *through)]
        return Found(
            rejected[:clean],
            rejected[clean:],
            len(passed),
            sum(plain == seen for plain, seen in passed),
            float(max(differences, default=np.nan)),
            tuple(status for status in statuses if status not in ("", REFUSED)),
            metrics,
        )

    def counted(self, *actions: str) -> int:
        return int(sum(self.metrics["guard_items_total", action] for action in actions))


def report(found: Found, bundle: Bundle) -> list[str]:
    """Print what was found, and return what is not as it has to be."""
    manifest, items = bundle.manifest, bundle.calibration.items
    rejected, sent = int(found.clean.sum() + found.attacked.sum()), len(found.clean) + len(found.attacked)
    low, high = rejections_band(manifest.reject_rate, items, len(found.clean))
    promise = f"promised {manifest.reject_rate:.1%}, calibrated on {items}, band {low} to {high}"
    compared = int(found.metrics["guard_upstream_compared_items_total", ""])
    disagreed = int(found.metrics["guard_upstream_disagreement_items_total", ""])
    print(f"passed   {found.passed} of {sent}; {found.equal} equal to the direct answer byte for byte,")
    print(f"         largest difference of a logit {found.difference:g}")
    print(f"clean    {share(found.clean)}; {promise}")
    print(f"attacked {share(found.attacked)}")
    print(f"metrics  {found.counted('reject')} rejected, {found.counted('pass', 'flag', 'repair')} passed", end=" ")
    print(f"({found.counted('flag')} of them flagged); {compared} answers compared, {disagreed} disagreed")
    checks = {
        "an answer that passed is not the direct answer": found.equal == found.passed,
        f"statuses {', '.join(sorted(set(found.unexpected)))}": not found.unexpected,
        "the metrics count other rejections than the client": found.counted("reject") == rejected,
        "the metrics count other passes than the client": found.counted("pass", "flag", "repair") == found.passed,
        "the guard compared other answers than passed": compared == found.passed,
        "clean rejections lie outside the band": low <= found.clean.sum() <= high,
    }
    return [fault for fault, holds in checks.items() if not holds]


def share(rejected: NDArray[np.bool_]) -> str:
    """How many were rejected, with the 95 % interval."""
    count = int(rejected.sum())
    low, high = wilson(count, len(rejected))
    return f"{count} of {len(rejected)} rejected, {rejected.mean():.1%} ({low:.1%} to {high:.1%})"


if __name__ == "__main__":
    sys.exit(main())
