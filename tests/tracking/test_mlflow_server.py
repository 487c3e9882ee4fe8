"""A real tracking server: its run is the bundle's, the bundle comes back and serves as before; one that fails."""

from __future__ import annotations

import json
import socket
import threading
from collections.abc import Iterator
from pathlib import Path

import grpc
import pytest

from guard.bundle import Bundle, write_bundle
from guard.serve.grpc.wire.inference_pb2 import ModelInferResponse
from guard.tracking import bundle_run
from tests.offline import tiny
from tests.serve import tiny_bundle
from tests.serve.guarded import config_for, infer_request
from tests.serve.processes import guard_process, model_process
from tests.test_tracking import REPORT
from tests.tracking.tracking_server import asked, guard, missing, tracking_server

pytestmark = [pytest.mark.slow, pytest.mark.large]
RECIPE = Path(__file__).parent / "brief.toml"
INFER = "/inference.GRPCInferenceService/ModelInfer"
RUNS = """
(experiment,) = [one for one in client.search_experiments() if one.name == sys.argv[1]]
found = [
    {"id": run.info.run_id, "status": run.info.status, "metrics": run.data.metrics, "params": run.data.params,
     "tags": run.data.tags}
    for run in client.search_runs([experiment.experiment_id])
]
"""


@pytest.fixture(scope="module", autouse=True)
def server_is_built(no_tracking: str) -> None:
    if missing() is not None:
        pytest.skip(no_tracking)


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    folder = tmp_path_factory.mktemp("bundle")
    made = tiny_bundle.make(folder / "made")
    files = {name: (made.path / name).read_bytes() for name in made.files}
    return write_bundle(folder / "bundle", made.manifest, {**files, "report.json": json.dumps(REPORT).encode()})


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory, server_is_built: None) -> Iterator[str]:
    with tracking_server(tmp_path_factory.mktemp("server")) as uri:
        yield uri


def served(bundle: Path, upstream: str) -> list[tuple[str, bytes]]:
    """What clients of a guard with this bundle get for some inputs: status and answer."""
    found = []
    with guard_process(config_for(bundle, upstream)) as process:
        address = process.until_event("listening")["inference"]
        process.until_event("ready")
        with grpc.insecure_channel(address) as channel:
            infer = channel.unary_unary(INFER, lambda m: m.SerializeToString(), ModelInferResponse.FromString)
            for images in (tiny_bundle.ordinary(2), tiny_bundle.striped(1), tiny_bundle.bright(1)):
                try:
                    answer = infer(infer_request(images), timeout=60, wait_for_ready=True)
                    found.append(("OK", answer.SerializeToString()))
                except grpc.RpcError as error:
                    found.append((error.code().name, b""))
    return found


def test_the_run_is_the_bundles_and_the_bundle_comes_back(bundle: Bundle, server: str, tmp_path: Path) -> None:
    done = guard("track", bundle.path, "--mlflow", server)
    assert done.returncode == 0, done.stderr
    (run,) = asked(server, RUNS, "guard")
    wanted = bundle_run(bundle)
    assert done.stdout.split()[1].rstrip(",") == run["id"]
    assert run["status"] == "FINISHED"
    assert run["metrics"] == pytest.approx(wanted.figures)
    assert run["params"] == wanted.parameters
    assert wanted.tags.items() <= run["tags"].items()
    fetch = "found = client.download_artifacts(sys.argv[1], 'bundle', sys.argv[2])"
    back = Path(asked(server, fetch, run["id"], str(tmp_path)))
    assert Bundle.open(back).digest == bundle.digest
    with model_process(tmp_path) as model:
        upstream = model.until_event("listening")["inference"]
        assert served(back, upstream) == served(bundle.path, upstream)


def test_a_report_is_logged_to_an_experiment_of_the_users(bundle: Bundle, server: str, tmp_path: Path) -> None:
    for name, text in (("report.json", json.dumps({**REPORT, "guard": bundle.identity})), ("report.html", "<p>")):
        (tmp_path / name).write_text(text, encoding="utf-8")
    arguments = ("track", bundle.path, "--report", tmp_path, "--mlflow", server)
    done = guard(*arguments, MLFLOW_EXPERIMENT_NAME="mine")
    assert done.returncode == 0, done.stderr
    (run,) = asked(server, RUNS, "mine")
    assert run["tags"]["guard.run"] == "evaluation"
    assert run["tags"]["guard.bundle.digest"] == bundle.digest


def test_nobody_answers(bundle: Bundle) -> None:
    done = guard(
        "track", bundle.path, "--mlflow", "http://user:secret@127.0.0.1:9", MLFLOW_HTTP_REQUEST_MAX_RETRIES="0"
    )
    assert done.returncode == 10
    assert done.stderr.count("\n") == 1
    assert "took no run" in done.stderr
    assert "secret" not in done.stderr


def test_a_server_that_hangs_ends_by_the_clients_own_time(bundle: Bundle) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        silence: list[socket.socket] = []
        threading.Thread(target=lambda: silence.extend(silent.accept()[0] for _ in range(9)), daemon=True).start()
        uri = f"http://127.0.0.1:{silent.getsockname()[1]}"
        limits = {"MLFLOW_HTTP_REQUEST_MAX_RETRIES": "0", "MLFLOW_HTTP_REQUEST_TIMEOUT": "1"}
        done = guard("track", bundle.path, "--mlflow", uri, **limits)
    assert done.returncode == 10
    assert "took no run" in done.stderr


def test_a_server_that_fails_takes_no_training_away(server: str, tmp_path: Path) -> None:
    """The bundle of a training whose server is away is there, the exit code says so, and it is logged later."""
    tiny.write_model(tmp_path / "model.pt2")
    tiny.write_data(tmp_path / "data.npz")
    made = ("--model", tmp_path / "model.pt2", "--data", tmp_path / "data.npz", "--out", tmp_path / "bundle")
    small = ("--craft-items", 60, "--attack-items", 30, "--adaptive-items", 4, "--adaptive-steps", 3, "--minutes", 0.2)
    rates = ("--reject-rate", 0.05, "--flag-rate", 0.1, "--recipe", RECIPE, "--serves", "tiny")
    away = ("--mlflow", "http://user:secret@127.0.0.1:9")
    done = guard("train", *made, *small, *rates, *away, MLFLOW_HTTP_REQUEST_MAX_RETRIES="0")
    assert done.returncode == 0, done.stderr
    first, last = (line for line in done.stderr.splitlines() if "127.0.0.1:9" in line)
    assert "tried again at the end" in first
    assert f"try again: guard track {tmp_path / 'bundle'}" in last
    assert "secret" not in done.stderr + done.stdout
    bundle = Bundle.open(tmp_path / "bundle")
    logged = guard("track", bundle.path, "--mlflow", server, MLFLOW_EXPERIMENT_NAME="later")
    assert logged.returncode == 0, logged.stderr
    (run,) = asked(server, RUNS, "later")
    assert run["tags"]["guard.bundle.digest"] == bundle.digest
    assert run["params"]["source.data.file"].startswith("sha256:")
    assert run["metrics"]["accuracy"] > 0.5
