"""What holds for every test: no network but loopback, no skip that CI has not agreed to, the same examples."""

from __future__ import annotations

import gc
import ipaddress
import os
import shutil
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, settings

from tests.once import of_all_processes
from tests.order import group, rank

# Before torch is imported: small networks are slower on more threads, and much slower on a busy machine.
os.environ.setdefault("OMP_NUM_THREADS", "1")

# Of every property test: the same examples on every machine, and no clock, since machines are loaded.
settings.register_profile(
    "guard",
    derandomize=True,
    database=None,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
)
settings.load_profile("guard")

# torch makes millions of small objects in no cycle, through which Python would look again and again
COLLECTED_OBJECTS = (50_000, 50, 50)
SHARED_GUARD = "tiny_job"  # the fixture that trains it: what asks for it is slow
NO_GPU = "no GPU"
NO_ENVOY = "no Envoy; build it, 107 MB, once: python -m tests.side envoy"
NO_PROMETHEUS = "no Prometheus; build it, 95 MB, once: python -m tests.side prometheus"
NO_CHECKOV = "no checkov; build it, 291 MB, once: python -m tests.side checkov"
NO_RAY = "no Ray; build it, 250 MB, once: python -m tests.side ray"
NO_REGISTRY = "no registry of images; build it, 46 MB, once: python -m tests.side registry oras"
NO_TRACKING = "no MLflow; build it, 970 MB, once: python -m tests.side mlflow mlflow-client"
CI = os.environ.get("CI", "")  # true, or long: with every large side environment built
JUDGED = ("true", "long")
LARGE = (NO_ENVOY, NO_PROMETHEUS, NO_RAY, NO_CHECKOV, NO_REGISTRY, NO_TRACKING)
ACCEPTED = (NO_GPU,) if CI == "long" else (NO_GPU, *LARGE)  # the reasons for a skip that CI accepts
skipped: pytest.StashKey[list[str]] = pytest.StashKey()


@pytest.fixture(scope="session")
def root() -> Path:
    """The repository's top folder."""
    return Path(__file__).resolve().parent.parent


@pytest.fixture(scope="session")
def side() -> Callable[[str], Path]:
    """`side("triton")` is the folder of that side environment's programs; it fails, naming the cure, if it is stale."""
    from tests.side import ready

    return ready


@pytest.fixture(scope="session")
def no_envoy() -> str:
    """The reason for which tests of a real Envoy are skipped where it is not built."""
    return NO_ENVOY


@pytest.fixture(scope="session")
def no_prometheus() -> str:
    """The reason for which tests of a real Prometheus are skipped where it is not built."""
    return NO_PROMETHEUS


@pytest.fixture(scope="session")
def no_ray() -> str:
    """The reason for which tests of a real Ray cluster are skipped where Ray is not built."""
    return NO_RAY


@pytest.fixture(scope="session")
def no_checkov() -> str:
    """The reason for which the manifests are not held against checkov's policies where it is not built."""
    return NO_CHECKOV


@pytest.fixture(scope="session")
def no_registry() -> str:
    """The reason for which tests of a real registry of images are skipped where it is not built."""
    return NO_REGISTRY


@pytest.fixture(scope="session")
def no_tracking() -> str:
    """The reason for which tests of a real MLflow are skipped where it is not built."""
    return NO_TRACKING


@pytest.fixture(scope="session", autouse=True)
def loopback_only() -> Iterator[None]:
    """Python sockets of the tests reach this machine only, and pip inside a test looks at no index."""

    def guarded(real: Callable[..., Any]) -> Callable[..., Any]:
        def connect(self: socket.socket, address: Any) -> Any:
            if self.family in (socket.AF_INET, socket.AF_INET6) and not is_loopback(address[0]):
                raise PermissionError(f"tests talk to loopback only, not to {address}")
            return real(self, address)

        return connect

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(socket.socket, "connect", guarded(socket.socket.connect))
        patch.setattr(socket.socket, "connect_ex", guarded(socket.socket.connect_ex))
        patch.setenv("PIP_NO_INDEX", "1")
        patch.setenv("no_proxy", "localhost,127.0.0.1,::1")  # gRPC would ask a proxy for loopback addresses too
        yield


@pytest.fixture(scope="session", autouse=True)
def exports_once(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """torch's exporter takes two thirds of a small training: it writes the same module once for all processes."""
    if "torch" not in sys.modules:
        yield
        return
    from tests.exports import remembered

    with remembered(of_all_processes(tmp_path_factory) / "exports"):
        yield


def is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host.split("%")[0]).is_loopback
    except ValueError:
        return host == "localhost"


def pytest_configure(config: pytest.Config) -> None:
    config.stash[skipped] = []
    config.pluginmanager.register(SkipRecord(config.stash[skipped]), "skip-record")


@pytest.hookimpl(tryfirst=True)  # before `-m` reads the marks
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    items.sort(key=rank)
    for item in items:
        if SHARED_GUARD in getattr(item, "fixturenames", ()):
            item.add_marker(pytest.mark.slow)
    marked = [item for item in items if item.get_closest_marker("gpu")]
    if marked and not gpu_is_here():
        for item in marked:
            item.add_marker(pytest.mark.skip(reason=NO_GPU))


def pytest_collection_finish() -> None:
    """What is imported by now stays, and the garbage collector need not look at it again: a tenth of the time."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(*COLLECTED_OBJECTS)


def gpu_is_here() -> bool:
    smi = shutil.which("nvidia-smi")
    return smi is not None and subprocess.run([smi, "-L"], capture_output=True, check=False).returncode == 0


class SkipRecord:
    """Notes where a test or a whole file was skipped for a reason that is not accepted."""

    def __init__(self, places: list[str]) -> None:
        self.places = places

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        self.note(report)

    def pytest_collectreport(self, report: pytest.CollectReport) -> None:
        self.note(report)

    def note(self, report: pytest.TestReport | pytest.CollectReport) -> None:
        if report.skipped and not hasattr(report, "wasxfail"):
            reason = report.longrepr[2] if isinstance(report.longrepr, tuple) else str(report.longrepr)
            if reason.removeprefix("Skipped: ") not in ACCEPTED:
                self.places.append(f"{report.nodeid}: {reason}")


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_auto_num_workers() -> int:
    """One process more than cores: many tests wait for servers, and a fifth of the cores' time was idle."""
    return len(os.sched_getaffinity(0)) + 1 if hasattr(os, "sched_getaffinity") else (os.cpu_count() or 1) + 1


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """Files run in processes as `--dist loadfile` has it, but for those that belong together."""
    if config.getoption("dist") != "loadfile":
        return None
    from xdist.scheduler import LoadFileScheduling

    class LoadGroupedFiles(LoadFileScheduling):
        def _split_scope(self, nodeid: str) -> str:
            return group(nodeid)

    return LoadGroupedFiles(config, log)


@pytest.hookimpl(optionalhook=True)
def pytest_testnodedown(node: Any) -> None:
    """A process of pytest-xdist has ended: what it skipped while it collected, the controller has not seen."""
    places: list[str] = node.config.stash[skipped]
    places += [place for place in getattr(node, "workeroutput", {}).get("skipped", []) if place not in places]


def pytest_sessionfinish(session: pytest.Session) -> None:
    if hasattr(session.config, "workeroutput"):
        session.config.workeroutput["skipped"] = session.config.stash[skipped]
        return
    if CI in JUDGED and session.config.stash[skipped] and session.exitstatus == pytest.ExitCode.OK:
        session.exitstatus = pytest.ExitCode.TESTS_FAILED


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    if CI in JUDGED and config.stash[skipped]:
        terminalreporter.section(f"skips that CI does not accept (only {' and '.join(map(repr, ACCEPTED))} are)")
        for place in config.stash[skipped]:
            terminalreporter.line(place)
