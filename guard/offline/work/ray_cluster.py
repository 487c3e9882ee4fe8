"""A Ray cluster as executor: each task on whichever worker is free, its result back through the object store.

Rule 1: what was lost with a worker is computed again elsewhere; what a task raised is raised here, and ends the others.
Rule 2: everything that can be known to be wrong is found when the cluster is reached, before any long work.

How it works. What the tasks of a call share is written as bytes and put into the object store once; a worker fetches it
once for all its tasks. A task is submitted with its own part; twice as many are waiting as are computed, so that no
worker runs dry and a cluster that grows with its load sees that there is some, and parts that have no turn yet take no
memory. A result is handed over as soon as it is there, whichever it is.
"""

from __future__ import annotations

import hashlib
import itertools
import socket
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from typing import Any, TypeVar

from guard.errors import ConfigError, GuardError, NotReadyError, first_line
from guard.offline.work.parallel import Threads
from guard.offline.work.ray_task import Board, TaskSettings, check_versions, computed, versions
from guard.offline.work.shipping import from_bytes, to_bytes
from guard.offline.work.tasks import Executor, TaskCallbacks, Tasks

CONNECT_S, CHECK_S = 5.0, 300.0  # for a connection to the address, and until every node has said its versions
POLL_S = 0.5  # between two looks at what running tasks report
MAX_TRIES = 11  # of a task whose worker was lost: workers on spot instances are lost often, but not by one task
WAITING_FACTOR = 2  # tasks that are submitted, over those that are computed at once

T = TypeVar("T")


@contextmanager
def computing_on(address: str | None) -> Iterator[Executor | None]:
    """Connect to the Ray cluster at an address for this context; without one, nothing is opened and None returned.

    Raises:
        ConfigError: Ray is missing, the address is none, or the cluster has other versions.
        NotReadyError: the cluster cannot be reached, or no worker answers.
    """
    if address is None:
        yield None
        return
    cluster = RayCluster.connect(address)
    try:
        yield cluster
    finally:
        cluster.close()


class RayCluster:
    """Executor on the workers of a Ray cluster."""

    def __init__(self, ray: Any) -> None:
        self.ray = ray
        self.task = ray.remote(computed)
        self.board = ray.remote(Board).options(num_cpus=0, max_restarts=-1).remote()
        self.runs = itertools.count()
        self.sent: dict[str, Any] = {}  # reference of a shared value that lies in the object store, by its digest

    @staticmethod
    def connect(address: str) -> RayCluster:
        """Connect and check that every node computes as this process does. Raises as `computing_on` does."""
        ray = installed()
        check_address(address)
        try:
            ray.init(address=address, log_to_driver=False, logging_level="ERROR")
        except Exception as error:
            raise refused(address, error) from error
        cluster = RayCluster(ray)
        try:
            cluster.check()
        except BaseException:
            cluster.close()
            raise
        return cluster

    def __reduce__(self) -> Any:
        """Return what takes its place in a worker: one thread there, since a task asks for no further workers."""
        return Threads, (1,)

    def close(self) -> None:
        """Leave the cluster; tasks that are still running there end."""
        self.ray.shutdown()

    @property
    def nodes(self) -> list[Mapping[str, Any]]:
        """Nodes that are there and have a CPU, as Ray describes them."""
        return [node for node in self.ray.nodes() if node["Alive"] and node["Resources"].get("CPU", 0) >= 1]

    @property
    def workers(self) -> int:
        return max(1, int(sum(node["Resources"]["CPU"] for node in self.nodes)))

    @property
    def processes(self) -> int:
        return self.workers

    @property
    def max_threads(self) -> int:
        return max((int(node["Resources"]["CPU"]) for node in self.nodes), default=1)

    @property
    def elsewhere(self) -> bool:
        return True

    def device(self, *, accelerated: bool) -> str:
        return "cuda" if accelerated and any(node["Resources"].get("GPU", 0) >= 1 for node in self.nodes) else "cpu"

    def check(self) -> None:
        """Ask every node for its versions. Raises ConfigError where they differ, NotReadyError where none answers."""
        from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

        if not self.nodes:
            raise NotReadyError("the Ray cluster has no node with a CPU; start a worker there and try again")
        ask = self.ray.remote(check_versions)
        asked = {
            ask.options(
                num_cpus=0, scheduling_strategy=NodeAffinitySchedulingStrategy(node["NodeID"], soft=False)
            ).remote(dict(versions())): str(node["NodeManagerHostname"])
            for node in self.nodes
        }
        answered, silent = self.ray.wait(list(asked), num_returns=len(asked), timeout=CHECK_S)
        for reference in answered:
            try:
                self.ray.get(reference)
            except self.ray.exceptions.RayError as error:
                raise failed(
                    error, f"node {asked[reference]} of the Ray cluster cannot run the guard's code"
                ) from error
        if silent:
            raise NotReadyError(
                f"node {asked[silent[0]]} of the Ray cluster did not answer within {CHECK_S:.0f} s; see `ray status`"
            )

    def run(self, tasks: Tasks[T], listener: TaskCallbacks[T] | None = None) -> list[T]:
        """Return the results in the order of the parts; each is kept by this process as soon as it is there."""
        hearing: TaskCallbacks[T] = listener or TaskCallbacks()
        results: dict[int, T] = {}
        with self.submitted(tasks) as running:
            while running:
                for number in running.finished():
                    results[number] = running.result(number)
                    hearing.kept(number, results[number])
                    hearing.done(number)
                running.tell(hearing)
            running.tell(hearing)
        return [results[number] for number in range(len(tasks.parts))]

    @contextmanager
    def submitted(self, tasks: Tasks[Any]) -> Iterator[RunningTasks]:
        """Submit tasks; what is still running when the context is left is cancelled."""
        running = RunningTasks(self, tasks)
        try:
            yield running
        finally:
            running.cancel()

    def send(self, value: object) -> tuple[str, Any]:
        """Put a value into the object store unless it is there; return its digest and a reference.

        Raises ConfigError where it cannot be sent.
        """
        content = to_bytes(value)
        digest = hashlib.sha256(content).hexdigest()
        if digest not in self.sent:
            self.sent = {digest: self.ray.put(content)}  # an earlier one is freed once its tasks are done
        return digest, self.sent[digest]


class RunningTasks:
    """Tasks of one call that are submitted, and those that wait for that."""

    def __init__(self, cluster: RayCluster, tasks: Tasks[Any]) -> None:
        self.cluster, self.ray = cluster, cluster.ray
        self.parts = tasks.parts
        self.digest, self.shared = cluster.send((tasks.work, tasks.shared))
        self.threads = min(tasks.threads, cluster.max_threads)
        on_gpu = cluster.device(accelerated=tasks.accelerated) == "cuda"
        self.task = cluster.task.options(
            num_cpus=self.threads, num_gpus=1 if on_gpu else 0, max_retries=MAX_TRIES - 1, retry_exceptions=False
        )
        self.run = next(cluster.runs)
        self.waiting = iter(range(len(tasks.parts)))
        self.numbers: dict[Any, int] = {}  # of a submitted task, by its reference
        self.references: dict[int, Any] = {}
        self.steps, self.text = 0, ""
        self.submit()

    def __bool__(self) -> bool:
        return bool(self.numbers)

    def submit(self) -> None:
        """Submit as many tasks as the cluster can soon compute."""
        wanted = WAITING_FACTOR * max(1, self.cluster.workers // self.threads)
        for number in itertools.islice(self.waiting, max(0, wanted - len(self.numbers))):
            settings = TaskSettings(self.digest, self.threads, versions(), self.run, number)
            reference = self.task.remote([self.shared], to_bytes(self.parts[number]), settings, self.cluster.board)
            self.numbers[reference], self.references[number] = number, reference

    def finished(self) -> list[int]:
        """Wait a moment, and return the numbers of the tasks that ended since."""
        references = list(self.numbers)
        ready, _ = self.ray.wait(references, num_returns=1, timeout=POLL_S)
        if ready:  # and all others that are there by now
            ready, _ = self.ray.wait(references, num_returns=len(references), timeout=0)
        found = [self.numbers.pop(reference) for reference in ready]
        self.submit()
        return found

    def result(self, number: int) -> Any:
        """Return a task's result, or raise what it raised. Raises NotReadyError where its worker was lost each time."""
        reference = self.references.pop(number)
        try:
            return from_bytes(self.ray.get(reference))
        except self.ray.exceptions.RayError as error:
            raise failed(error, f"a task was lost {MAX_TRIES} times with its worker") from error

    def tell(self, listener: TaskCallbacks[Any]) -> None:
        """Tell what the running tasks have reported since the last time."""
        with suppress(self.ray.exceptions.RayError):  # the board's node may be lost, too: its reports are no result
            steps, text = self.ray.get(self.cluster.board.read.remote(self.run), timeout=POLL_S)
            if steps != self.steps:
                listener.counted(steps - self.steps)
            if text and text != self.text:
                listener.noted(text)
            self.steps, self.text = steps, text

    def cancel(self) -> None:
        """Cancel what is still running."""
        for reference in self.numbers:
            with suppress(Exception):  # the cluster may be gone, which is what ended the tasks
                self.ray.cancel(reference, force=False)


def failed(error: Exception, lost: str) -> BaseException:
    """Return what a task raised; where Ray itself failed, an error that says what was lost."""
    cause = getattr(error, "cause", None)
    if isinstance(cause, Exception):
        return cause
    return NotReadyError(f"{lost} ({type(error).__name__}: {first_line(error)}); see `ray status` and the worker's log")


def installed() -> Any:
    """Import Ray. Raises ConfigError where it is not installed."""
    try:
        import ray
    except ImportError as error:
        raise ConfigError(
            f"--ray takes Ray ({error}); install inference-guard[ray], here and on every worker"
        ) from error
    return ray


def check_address(address: str) -> None:
    """Check that something listens at an address. Raises ConfigError for what is none, NotReadyError."""
    if address == "auto":
        return
    host, _, port = address.removeprefix("ray://").rpartition(":")
    if not host or not port.isdigit():
        raise ConfigError(
            f"--ray {address!r} is no address; wanted HOST:PORT of a cluster's head (6379), from one of its nodes, "
            "ray://HOST:PORT (10001) from elsewhere, or auto for the cluster that runs on this machine"
        )
    try:
        socket.create_connection((host.strip("[]"), int(port)), CONNECT_S).close()
    except (OSError, OverflowError) as error:
        raise NotReadyError(
            f"no Ray cluster can be reached at {address}: {first_line(error)}; start one (ray start --head), or name "
            "the address of its head"
        ) from error


def refused(address: str, error: Exception) -> GuardError:
    """Return the error for a cluster that did not let this process in."""
    text = " ".join(str(error).split())
    if "ersion mismatch" in text:
        return ConfigError(f"the Ray cluster at {address} has other versions: {text}; install the same ones here")
    return NotReadyError(f"the Ray cluster at {address} cannot be joined: {text or type(error).__name__}")
