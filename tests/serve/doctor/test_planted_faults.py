"""Faults planted into a healthy set-up: each is found by its line of `guard doctor` alone, and none where all is well.

The model server is a real process, bundle and certificates are real files. 127.0.0.2 stands for the pod's own address.
"""

from __future__ import annotations

import os
import re
import shutil
import socket
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import grpc
import onnx
import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from onnx import numpy_helper

from guard.bundle import Bundle
from guard.config import SettingsSource
from guard.serve.doctor import settings_checks
from guard.serve.doctor.doctor import CHECKS, examine
from guard.serve.doctor.given_settings import GivenSettings
from guard.serve.doctor.machine import Machine
from guard.serve.doctor.remark import Remark
from guard.serve.doctor.setup import Setup
from guard.signing import sign
from tests.serve import tiny_bundle
from tests.serve.authority import Authority, Pair, authority_pem, server_credentials
from tests.serve.doctor.http_server import http_server
from tests.serve.guarded import free_port
from tests.serve.processes import model_file_process, model_process
from tests.test_signing import nobody, write_key

POD = "127.0.0.2"
Settings = Mapping[str, Any]


@dataclass
class Place:
    """A healthy set-up, and what a fault may be planted with."""

    folder: Path
    bundle: Path
    upstream: str
    other_model: Callable[[], str]  # the address of a server whose model has other weights, under the same name
    authority: Authority
    stack: ExitStack
    settings: dict[str, Any] = field(default_factory=dict)
    machine: Machine = field(default_factory=lambda: Machine(own=()))

    def remarks(self, *, left_out: tuple[str, ...] = ()) -> list[Remark]:
        """What the doctor finds with the settings written to a file."""
        loopback = dict.fromkeys(("listen", "admin_listen", "metrics_listen"), "127.0.0.1:0")
        healthy = {"bundle": str(self.bundle), "upstream": self.upstream, "threads": 1, **loopback}
        settings = {name: value for name, value in {**healthy, **self.settings}.items() if name not in left_out}
        file = self.folder / "guard.toml"
        file.write_text("\n".join(f"{name} = {toml(value)}" for name, value in settings.items()), "utf-8")
        given = GivenSettings.read(SettingsSource(file, {}, {}))
        return list(examine(Setup(given, self.machine, timeout_s=2.0)))

    def copy_of_bundle(self) -> Path:
        copy = self.folder / "copy"
        shutil.copytree(self.bundle, copy)
        return copy

    def certificate(self, pair: Pair) -> None:
        self.settings["tls_certificate"], self.settings["tls_key"] = pair.write(self.folder, "own")

    def container(self, files: Mapping[str, str], mount: str = "") -> None:
        """A root that says what a container's own would say of its limits and its mounts."""
        root = self.folder / "root"
        group = "31 23 0:28 / /sys/fs/cgroup rw,nosuid - cgroup2 cgroup2 rw\n"
        facts = {"proc/self/cgroup": "0::/\n", "proc/self/mountinfo": group + mount, "proc/net/tcp": "head\n"}
        for name, text in {**facts, **{f"sys/fs/cgroup/{name}": text for name, text in files.items()}}.items():
            (root / name).parent.mkdir(parents=True, exist_ok=True)
            (root / name).write_text(text, "utf-8")
        self.machine = Machine(root, own=())


def toml(value: Any) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, dict):
        return "{" + ", ".join(f'"{name}" = {toml(inner)}' for name, inner in value.items()) + "}"
    if isinstance(value, list):
        return "[" + ", ".join(map(toml, value)) + "]"
    return str(value) if isinstance(value, int | float) else f'"{value}"'


@pytest.fixture(scope="module")
def upstream(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with model_process(tmp_path_factory.mktemp("model"), listen=f"{POD}:0") as server:
        yield str(server.until_event("listening")["inference"])


@pytest.fixture(scope="module")
def other_model(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[[], str]]:
    file = tmp_path_factory.mktemp("other") / "tiny.onnx"
    with ExitStack() as stack:

        def start() -> str:
            model = onnx.ModelProto.FromString(tiny_bundle.classifier())
            for tensor in model.graph.initializer:
                if tensor.name == "matrix":
                    tensor.CopyFrom(numpy_helper.from_array(-numpy_helper.to_array(tensor), tensor.name))
            file.write_bytes(model.SerializeToString())
            server = stack.enter_context(model_file_process(file, name=tiny_bundle.MODEL_NAME))
            return str(server.until_event("listening")["inference"])

        yield start


@pytest.fixture
def place(tmp_path: Path, bundle: Path, upstream: str, other_model: Callable[[], str]) -> Iterator[Place]:
    with ExitStack() as stack:
        yield Place(tmp_path, bundle, upstream, other_model, Authority(), stack)


def test_nothing_is_found_on_a_healthy_set_up(place: Place) -> None:
    """All that may be set is set: certificates, tokens, keys, audit, sink, REST, limits."""
    sink = place.stack.enter_context(socket.create_server(("127.0.0.1", 0))).getsockname()[1]
    place.container({"cpu.max": "200000 100000\n", "memory.max": f"{1 << 30}\n"})
    place.certificate(place.authority.issue())
    place.settings |= signed(place) | {
        "tls_client_ca": place.authority.write(place.folder, "clients.pem"),
        "principal_from": "bearer",
        "client_tokens": written(place, "tokens", "camera-7 a-token-of-many-characters\n"),
        "admin_listen": f"unix:{place.folder}/admin.sock",
        "audit_dir": str(place.folder / "audit"),
        "events_sink": f"http://127.0.0.1:{sink}/events",
        "rest_listen": "127.0.0.1:0",
        "rest_upstream": f"http://{place.stack.enter_context(http_server())}",
        "mode": "shadow",
        "shadow": "queue",
    }
    remarks = place.remarks()
    assert [remark for remark in remarks if remark.result != "ok"] == []
    said = {remark.check for remark in remarks}
    assert {check.__name__ for check in CHECKS} - {"rest_upstream", "running"} <= said
    assert {"rest", "model", "answers"} <= said


def written(place: Place, name: str, text: str) -> str:
    (place.folder / name).write_text(text, "utf-8")
    return str(place.folder / name)


def signed(place: Place, *, by: str = "ours") -> dict[str, Any]:
    for name in ("ours", "strangers"):
        write_key(place.folder, name, ec.generate_private_key(ec.SECP256R1()))
    copy = place.copy_of_bundle()
    sign(Bundle.open(copy), place.folder / f"{by}.pem", ask=nobody)
    return {"bundle": str(copy), "trusted_keys": [str(place.folder / "ours.pub")]}


def unknown_setting(place: Place) -> None:
    place.settings["upstraem_ca"] = "ca.pem"


def value_out_of_range(place: Place) -> None:
    place.settings["max_rows"] = 0


def setting_without_effect(place: Place) -> None:
    place.settings["trusted_hops"] = ["127.0.0.6/32"]


def admin_for_strangers(place: Place) -> None:
    place.settings["admin_listen"] = "0.0.0.0:0"


def guard_that_is_off(place: Place) -> None:
    place.settings["mode"] = "off"


def queries_that_pass_unseen(place: Place) -> None:
    place.settings |= {"mode": "shadow", "shadow": "queue", "query_memory": "watch"}


def queries_that_are_not_sampled(place: Place) -> None:
    place.settings |= {"sample": 0.25, "query_memory": "watch"}


def altered_bundle(place: Place) -> None:
    copy = place.copy_of_bundle()
    content = bytearray((copy / "interpret.onnx").read_bytes())
    content[-1] ^= 1
    (copy / "interpret.onnx").write_bytes(content)
    place.settings["bundle"] = str(copy)


def absent_bundle(place: Place) -> None:
    place.settings["bundle"] = str(place.folder / "nowhere")


def repair_that_the_bundle_has_not(place: Place) -> None:
    place.settings["repair"] = "median"


def stranger_s_signature(place: Place) -> None:
    place.settings |= signed(place, by="strangers")


def unsigned_bundle(place: Place) -> None:
    write_key(place.folder, "ours", ec.generate_private_key(ec.SECP256R1()))
    place.settings["trusted_keys"] = [str(place.folder / "ours.pub")]


def rate_beyond_the_sample(place: Place) -> None:
    place.settings["reject_rate"] = 0.0001


def rate_on_few_items(place: Place) -> None:
    place.settings["reject_rate"] = 0.002


def absent_upstream(place: Place) -> None:
    place.settings["upstream"] = f"127.0.0.1:{free_port()}"


def upstream_of_http(place: Place) -> None:
    place.settings["upstream"] = place.stack.enter_context(http_server())


def upstream_of_its_own(place: Place) -> None:
    port = free_port()
    place.settings |= {"listen": f"127.0.0.1:{port}", "upstream": f"127.0.0.1:{port}"}


def server_of_tls(place: Place) -> str:
    server = grpc.server(ThreadPoolExecutor(1))
    port = server.add_secure_port("127.0.0.1:0", server_credentials(place.authority.issue()))
    server.start()
    place.stack.callback(lambda: server.stop(None).wait())
    return f"localhost:{port}"


def upstream_of_tls(place: Place) -> None:
    place.settings["upstream"] = server_of_tls(place)


def upstream_of_another_authority(place: Place) -> None:
    stranger = Authority().write(place.folder, "stranger.pem")
    place.settings |= {"upstream": server_of_tls(place), "upstream_tls": True, "upstream_ca": stranger}


def upstream_without_an_address(place: Place) -> None:
    place.settings["upstream"] = "dns:///no.such.host.invalid:9000"


def model_under_another_name(place: Place) -> None:
    place.settings["models"] = {"resnet": {"bundle": str(place.bundle)}}


def model_of_another_datatype(place: Place) -> None:
    place.settings["bundle"] = str(tiny_bundle.make(place.folder / "bytes", datatype="UINT8").path)


def model_of_another_version(place: Place) -> None:
    place.settings["upstream"] = place.upstream
    place.settings["models"] = {"tiny:7": {"bundle": str(place.bundle)}}


def model_with_other_weights(place: Place) -> None:
    place.settings["upstream"] = place.other_model()


def model_server_that_others_reach(place: Place) -> None:
    place.machine = Machine(own=(POD,))


def model_server_on_the_port_of_a_loopback_listener(place: Place) -> None:
    place.machine = Machine(own=(POD,))
    place.settings["admin_listen"] = f"127.0.0.1:{place.upstream.rpartition(':')[2]}"


def model_server_of_a_guard_that_is_off(place: Place) -> None:
    place.settings |= {"mode": "off", "bundle": ""}
    place.machine = Machine(own=(POD,))


def port_of_another_server(place: Place) -> None:
    taken = place.stack.enter_context(socket.create_server(("127.0.0.1", 0)))
    place.settings["metrics_listen"] = f"127.0.0.1:{taken.getsockname()[1]}"


def port_that_is_named_twice(place: Place) -> None:
    port = free_port()
    place.settings |= {"listen": f"0.0.0.0:{port}", "metrics_listen": f"127.0.0.1:{port}"}


def address_of_another_machine(place: Place) -> None:
    place.settings["listen"] = "192.0.2.77:8081"


def socket_for_everybody(place: Place) -> None:
    path = place.folder / "admin.sock"
    with socket.socket(socket.AF_UNIX) as left:
        left.bind(str(path))
    path.chmod(0o666)
    place.settings["admin_listen"] = f"unix:{path}"


def file_in_the_place_of_a_socket(place: Place) -> None:
    place.settings["admin_listen"] = f"unix:{written(place, 'admin.sock', '')}"


def certificate_that_is_over(place: Place) -> None:
    place.certificate(place.authority.issue(days=-1))


def certificate_that_is_still_to_come(place: Place) -> None:
    place.certificate(place.authority.issue(days=30, begins_days=2))


def certificate_that_is_over_soon(place: Place) -> None:
    place.certificate(place.authority.issue(days=3))


def authority_that_is_over(place: Place) -> None:
    place.certificate(place.authority.issue())
    (place.folder / "clients.pem").write_bytes(authority_pem(days=-1))
    place.settings["tls_client_ca"] = str(place.folder / "clients.pem")


def authority_that_is_over_beside_another(place: Place) -> None:
    authority_that_is_over(place)
    with (place.folder / "clients.pem").open("ab") as file:
        file.write(authority_pem(days=400))


def certificate_with_another_key(place: Place) -> None:
    one, other = place.authority.issue(), place.authority.issue()
    place.certificate(Pair(one.chain, other.key))


def certificate_without_names(place: Place) -> None:
    place.certificate(place.authority.issue(common_name="guard"))


def certificate_for_clients(place: Place) -> None:
    place.certificate(place.authority.issue(uses=(x509.ExtendedKeyUsageOID.CLIENT_AUTH,)))


def chain_of_strangers(place: Place) -> None:
    own = place.authority.issue()
    place.certificate(Pair(own.chain + Authority().pem, own.key))


def certificate_that_cannot_be_read(place: Place) -> None:
    place.certificate(place.authority.issue())
    Path(place.settings["tls_certificate"]).unlink()


def token_that_can_be_guessed(place: Place) -> None:
    place.settings |= {"principal_from": "bearer", "client_tokens": written(place, "tokens", "camera short\n")}


def tokens_in_the_clear(place: Place) -> None:
    tokens = written(place, "tokens", "camera a-token-of-many-characters\n")
    place.settings |= {"principal_from": "bearer", "client_tokens": tokens, "listen": "0.0.0.0:0"}


def clock_of_another_hour(place: Place) -> None:
    server = place.stack.enter_context(http_server(date="Sat, 01 Jan 2000 00:00:00 GMT"))
    place.settings |= {"rest_listen": "127.0.0.1:0", "rest_upstream": f"http://{server}"}


def file_from_the_future(place: Place) -> None:
    copy = place.copy_of_bundle()
    later = time.time() + 3600
    os.utime(copy / "manifest.json", (later, later))
    place.settings["bundle"] = str(copy)


def rest_of_another_model(place: Place) -> None:
    server = place.stack.enter_context(http_server(name="other"))
    place.settings |= {"rest_listen": "127.0.0.1:0", "rest_upstream": f"http://{server}"}


def threads_without_cpus(place: Place) -> None:
    place.container({"cpu.max": "100000 100000\n"})
    place.settings["threads"] = 4


def half_a_cpu(place: Place) -> None:
    place.container({"cpu.max": "50000 100000\n"})


def container_that_is_throttled(place: Place) -> None:
    place.container({"cpu.max": "100000 100000\n", "cpu.stat": "nr_periods 1000\nnr_throttled 700\n"})


def memory_for_messages_alone(place: Place) -> None:
    place.container({"memory.max": f"{256 << 20}\n"})
    place.settings["max_bytes_in_flight"] = 256 << 20


def message_without_room(place: Place) -> None:
    place.settings |= {"max_message_bytes": 1 << 20, "max_bytes_in_flight": 1 << 20}


def device_that_is_absent(place: Place) -> None:
    place.settings["device"] = "cuda"


def audit_without_a_folder(place: Place) -> None:
    place.settings["audit_dir"] = f"{written(place, 'file', '')}/audit"


def audit_that_may_fill_the_disk(place: Place) -> None:
    place.settings |= {"audit_dir": str(place.folder / "audit"), "audit_max_bytes": 1 << 60}


def inputs_that_others_may_list(place: Place) -> None:
    (place.folder / "audit").mkdir(mode=0o755)
    place.settings |= {"audit_dir": str(place.folder / "audit"), "audit_inputs": True}


def sink_that_is_away(place: Place) -> None:
    place.settings["events_sink"] = f"http://127.0.0.1:{free_port()}/"


def settings_by_sub_path(place: Place) -> None:
    place.container({}, mount=f"41 31 8:1 /x {place.folder}/guard.toml ro - ext4 /dev/sda1 ro\n")


# What is planted, the check that finds it, how grave it is, and the line.
FAULTS: tuple[tuple[Callable[[Place], None], str, str, str], ...] = (
    (unknown_setting, "settings", "wrong", "unknown setting 'upstraem_ca'; did you mean 'upstream_ca'"),
    (value_out_of_range, "settings", "wrong", "max_rows = 0; wanted more than zero"),
    (setting_without_effect, "settings", "warn", "trusted_hops has no effect.*principal_from"),
    (admin_for_strangers, "settings", "wrong", "admin_listen = '0.0.0.0:0' is not loopback"),
    (guard_that_is_off, "mode", "warn", "nothing is inspected"),
    (queries_that_pass_unseen, "mode", "warn", 'query_memory = "watch" has no effect'),
    (queries_that_are_not_sampled, "mode", "warn", "sees 0.25 of all requests"),
    (altered_bundle, "bundle", "wrong", "interpret.onnx was altered: SHA-256"),
    (absent_bundle, "bundle", "wrong", "no such directory"),
    (repair_that_the_bundle_has_not, "bundle", "wrong", "cannot repair by 'median'; it has: steps"),
    (stranger_s_signature, "signature", "wrong", "which is not trusted"),
    (unsigned_bundle, "signature", "wrong", "is not signed.*guard sign"),
    (rate_beyond_the_sample, "promise", "wrong", "reject_rate = 0.0001 cannot be promised.*it takes 9999"),
    (rate_on_few_items, "promise", "warn", "rests on 2 of 999 clean items.*0.024 to 0.56 %"),
    (absent_upstream, "upstream", "wrong", r"cannot be reached; nothing listens on 127.0.0.1:\d+: start it"),
    (upstream_of_http, "upstream", "wrong", "speaks HTTP/1: name the server's port of gRPC"),
    (upstream_of_tls, "upstream", "wrong", "speaks TLS: set upstream_tls = true"),
    (upstream_without_an_address, "upstream", "wrong", "the name no.such.host.invalid leads to no address"),
    (upstream_of_its_own, "upstream", "wrong", "is the guard's own listen"),
    (upstream_of_another_authority, "upstream", "wrong", "TLS failed.*upstream_ca"),
    (model_under_another_name, "model", "wrong", "'resnet'"),
    (model_of_another_datatype, "model", "wrong", "takes FP32; the bundle expects UINT8"),
    (model_of_another_version, "model", "wrong", "version"),
    (model_with_other_weights, "answers", "wrong", "another class than the bundle for [5-8] of 8 .*another model"),
    (model_server_that_others_reach, "bypass", "wrong", rf"answers on {POD}:\d+ \(gRPC\), past the guard"),
    (model_server_on_the_port_of_a_loopback_listener, "bypass", "wrong", rf"answers on {POD}:\d+ \(gRPC\), past the"),
    (model_server_of_a_guard_that_is_off, "bypass", "wrong", rf"the model server answers on {POD}:\d+ \(gRPC\)"),
    (port_of_another_server, "ports", "wrong", rf"metrics_listen: .*process {os.getpid()} .* has it"),
    (port_that_is_named_twice, "ports", "wrong", "metrics_listen and listen are both on port"),
    (address_of_another_machine, "ports", "wrong", "listen: cannot listen on 192.0.2.77:8081: Cannot assign"),
    (socket_for_everybody, "admin", "wrong", "has mode 0666.*chmod 0600"),
    (file_in_the_place_of_a_socket, "ports", "wrong", "there is a file that is no socket"),
    (certificate_that_is_over, "certificates", "wrong", "for localhost ended .*replace"),
    (certificate_that_is_still_to_come, "certificates", "wrong", "begins .* the clock says .* is one of them wrong"),
    (certificate_that_is_over_soon, "certificates", "warn", r"in (2\.9|3\.0) days; replace"),
    (authority_that_is_over, "certificates", "wrong", "authority of -1 days ended .*replace"),
    (authority_that_is_over_beside_another, "certificates", "warn", "authority of -1 days ended .*beside others"),
    (certificate_with_another_key, "certificates", "wrong", "does not belong to"),
    (certificate_without_names, "certificates", "wrong", "has no subjectAltName"),
    (certificate_for_clients, "certificates", "wrong", "is not for a server"),
    (chain_of_strangers, "certificates", "wrong", "does not lead to its last"),
    (certificate_that_cannot_be_read, "certificates", "wrong", "cannot be read: No such file"),
    (token_that_can_be_guessed, "tokens", "wrong", "can be guessed"),
    (tokens_in_the_clear, "tokens", "warn", "in the clear"),
    (clock_of_another_hour, "clock", "wrong", "ahead of the model server's, 2000-01-01 00:00 UTC"),
    (file_from_the_future, "clock", "wrong", "manifest.json was written"),
    (rest_of_another_model, "rest", "wrong", "says that model 'tiny' is not ready.*HTTP port"),
    (threads_without_cpus, "cpu", "wrong", "threads = 4, .*set threads = 1"),
    (half_a_cpu, "cpu", "warn", "a quota of 0.5"),
    (container_that_is_throttled, "cpu", "warn", "in 70% of its periods"),
    (memory_for_messages_alone, "memory", "wrong", "limit 256 MiB; the guard may take .*lower max_bytes_in_flight"),
    (message_without_room, "memory", "wrong", "has no room for two messages"),
    (device_that_is_absent, "device", "wrong", r"has no CUDA; install inference-guard\[gpu\]"),
    (audit_without_a_folder, "audit", "wrong", "cannot be written to: Not a directory"),
    (audit_that_may_fill_the_disk, "audit", "warn", "lower audit_max_bytes"),
    (inputs_that_others_may_list, "audit", "warn", "chmod 0700"),
    (sink_that_is_away, "events", "wrong", "Connection refused"),
    (settings_by_sub_path, "reload", "warn", "guard.toml.*subPath"),
)


@pytest.mark.parametrize(("plant", "check", "result", "line"), FAULTS, ids=[fault[0].__name__ for fault in FAULTS])
def test_a_planted_fault_is_found_by_its_line_alone(
    place: Place, plant: Callable[[Place], None], check: str, result: str, line: str
) -> None:
    plant(place)
    left_out = ("bundle",) if "models" in place.settings else ()
    found = [remark for remark in place.remarks(left_out=left_out) if remark.result != "ok"]
    if plant is model_server_of_a_guard_that_is_off:
        found = [remark for remark in found if remark.check != "mode"]  # a fault of its own
    assert [(remark.check, remark.result) for remark in found] == [(check, result)], found
    assert re.search(line, found[0].line), found[0].line
    assert "\n" not in found[0].line


def test_every_check_finds_a_planted_fault() -> None:
    planted = {check for _, check, _, _ in FAULTS}
    known = {"rest_upstream": "rest"}
    assert {known.get(check.__name__, check.__name__) for check in CHECKS} - planted == {"running"}


def test_several_faults_have_a_line_each(place: Place) -> None:
    """The first does not hide the others, nor what comes after the settings."""
    unknown_setting(place)
    value_out_of_range(place)
    absent_upstream(place)
    wrong = [remark.check for remark in place.remarks() if remark.result == "wrong"]
    assert wrong == ["settings", "settings", "upstream"]


def test_a_second_door_of_the_model_server_is_found(place: Place) -> None:
    """Its gRPC listens on loopback as it should, and its HTTP for everybody."""
    address = place.stack.enter_context(http_server(POD))
    place.machine = Machine(own=(POD,))
    found = [remark for remark in place.remarks() if remark.check == "bypass"]
    assert f"{address} (HTTP)" in found[0].said


def test_what_cannot_be_tried_is_said(place: Place) -> None:
    place.settings["upstream"] = "192.0.2.78:9000"
    place.machine = Machine(own=("127.0.0.3",))
    results = {remark.check: remark.result for remark in place.remarks()}
    assert results["bypass"] == "unknown"
    assert results["upstream"] == "wrong"


def test_a_package_that_is_absent_is_named(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(settings_checks, "find_spec", lambda _: None)
    place.settings |= signed(place)
    found = [remark for remark in place.remarks() if remark.result != "ok"]
    assert [remark.check for remark in found] == ["settings"]
    assert "needs the package cryptography; install inference-guard[sign]" in found[0].said


def test_requests_that_are_judged_as_a_whole(place: Place) -> None:
    place.settings["rows"] = "request"
    (found,) = [remark for remark in place.remarks() if remark.check == "promise"]
    assert "reject_rate = 0.01: 0.48 to 1.7 % of requests, of up to 10 items" in found.said
