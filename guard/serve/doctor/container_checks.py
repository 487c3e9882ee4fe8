"""Checks of what the container leaves the guard: processor time, memory, and the device that its programs run on."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version

from guard.bundle import WEIGHTS, Bundle
from guard.container import affinity, cpu_quota, cpus, folders, lines, memory_bytes
from guard.errors import GuardError
from guard.model_config import ModelConfig
from guard.serve.doctor.remark import Remark
from guard.serve.doctor.setup import Setup
from guard.serve.limits import Limits
from guard.session import PROVIDERS, onnxruntime

GUARD_BYTES = 100 * 2**20  # of a guard without a bundle: Python, gRPC, numpy and ONNX Runtime
COPIES_OF_BUNDLE = 2  # its files in memory, and what ONNX Runtime makes of them
COPIES_OF_MESSAGE = 3  # while it is put together
MIN_QUOTA_ROUNDS = 100  # of a quota, before what was throttled of them says anything
MAX_THROTTLED_SHARE = 0.1


def cpu(setup: Setup) -> Iterator[Remark]:
    """Whether the threads have a CPU each, and whether the quota stops them."""
    root, threads = setup.machine.root, setup.given.config.threads
    quotas = [quota for folder in folders("cpu", root) if (quota := cpu_quota(folder)) is not None]
    quota, allowed = min(quotas, default=None), cpus(root)
    has = f"{affinity()} CPUs" if quota is None else f"{affinity()} CPUs, a quota of {quota:g}"
    if threads is not None and threads > allowed:
        said = f"threads = {threads}, and the container has {has}: they wait for each other; set threads = {allowed}"
        yield Remark("cpu", "wrong", f"{said}, or give it more")
        return
    if quota is not None and quota < 1:
        said = f"{has}: each inspection is stopped for a part of its time; give it a whole CPU"
        yield Remark("cpu", "warn", said)
        return
    throttled = throttled_share(setup)
    if throttled is not None and throttled > MAX_THROTTLED_SHARE:
        said = f"{has}: the quota has stopped the container in {throttled:.0%} of its periods; raise limits.cpu, or"
        yield Remark("cpu", "warn", f"{said} leave it out")
        return
    yield Remark("cpu", "ok", f"{has}; threads {allowed if threads is None else threads}")


def throttled_share(setup: Setup) -> float | None:
    """The share of the quota's periods in which the container was stopped; None where that is not known."""
    shares = []
    for folder in folders("cpu", setup.machine.root):
        facts = dict(words for line in lines(folder / "cpu.stat") if len(words := line.split()) == 2)
        periods, stopped = (facts.get(name, "") for name in ("nr_periods", "nr_throttled"))
        if periods.isdecimal() and stopped.isdecimal() and int(periods) >= MIN_QUOTA_ROUNDS:
            shares.append(int(stopped) / int(periods))
    return max(shares, default=None)


@dataclass(frozen=True)
class QueueSize:
    """The items that fit into one batch, and into the queue in front of the device."""

    max_items: int
    max_queue_items: int

    @staticmethod
    def of(config: ModelConfig, bundle: Bundle) -> QueueSize:
        """Compute both as the batcher does, from the rows that an item takes."""
        rows = max(program.rows_at_once for program in bundle.manifest.programs)
        return QueueSize(max(1, config.max_rows // rows), max(1, config.max_queue_rows // rows))


def memory(setup: Setup) -> Iterator[Remark]:
    """Whether the guard, its bundles and the messages that it may hold fit into the container's memory."""
    limit = memory_bytes(setup.machine.root)
    opened = [(named.config, named.bundle) for named in setup.bundles if named.bundle is not None]
    queues = [(bundle.manifest.model.input, QueueSize.of(config, bundle)) for config, bundle in opened]
    try:
        limits = Limits.of(setup.given.config, queues, memory_bytes=limit)
    except GuardError as error:
        yield Remark("memory", "wrong", str(error))
        return
    if limits.warning is not None:
        yield Remark("memory", "warn", limits.warning)
        return
    messages = f"max_bytes_in_flight = {limits.in_flight_bytes}"
    if limit is None:
        yield Remark("memory", "ok", f"no limit; {messages}")
        return
    programs = sum(size_of_programs(bundle) for bundle in {bundle.digest: bundle for _, bundle in opened}.values())
    wanted = (
        GUARD_BYTES
        + COPIES_OF_BUNDLE * programs
        + limits.in_flight_bytes
        + (COPIES_OF_MESSAGE - 1) * limits.message_bytes
    )
    said = (
        f"limit {mebibytes(limit)}; the guard may take {mebibytes(wanted)} beside what its programs compute: "
        f"{mebibytes(GUARD_BYTES)} itself, {mebibytes(COPIES_OF_BUNDLE * programs)} bundles, "
        f"{mebibytes(limits.in_flight_bytes)} messages"
    )
    if wanted > limit:
        yield Remark("memory", "wrong", f"{said}; raise limits.memory, or lower {messages}")
    else:
        yield Remark("memory", "ok", said)


def size_of_programs(bundle: Bundle) -> int:
    """The bytes of a bundle's graphs and weights."""
    names = [name for name in bundle.files if name.endswith(".onnx") or name == WEIGHTS]
    return sum((bundle.path / name).stat().st_size for name in names)


def mebibytes(size_bytes: int) -> str:
    return f"{size_bytes / 2**20:.0f} MiB"


def cpu_runtime() -> str | None:
    """The installed ONNX Runtime with its version; None where there is none, or two."""
    found = []
    for name in ("onnxruntime", "onnxruntime-gpu"):
        with suppress(PackageNotFoundError):
            found.append(f"{name} {version(name)}")
    return found[0] if len(found) == 1 else None


def device(setup: Setup) -> Iterator[Remark]:
    """Whether this ONNX Runtime has the device that is asked for; nothing is loaded onto it."""
    asked = setup.given.config.device
    if asked == "cpu" and (found := cpu_runtime()) is not None:  # without importing it, in the guard's own memory
        yield Remark("device", "ok", f"cpu, {found}")
        return
    try:
        ort = onnxruntime()
    except GuardError as error:
        yield Remark("device", "wrong", str(error))
        return
    if PROVIDERS[asked] not in ort.get_available_providers():
        said = f"device = {asked!r}, and ONNX Runtime {ort.__version__} has no CUDA; install inference-guard[gpu]"
        yield Remark("device", "wrong", f'{said} instead of [cpu], or set device = "cpu"')
        return
    yield Remark("device", "ok", f"{asked}, ONNX Runtime {ort.__version__}")
