"""KServe's arguments: all of its own parser's are known, and become the settings that they stand for."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from guard import cli
from guard.config import load_config
from guard.errors import ConfigError
from guard.kserve_arguments import BARE, KNOWN, kserve_settings, rewritten
from guard.serve.identities import listener_identity

INJECTED = ["--model_name", "digits", "--predictor_host", "digits-predictor.models", "--http_port", "8080"]
PARSER = """
import json, sys
sys.argv[1:] = []
from kserve.model_server import parser
print(json.dumps([[one.dest, one.option_strings, one.nargs, one.const is True] for one in parser._actions]))
"""


def given(*arguments: str) -> list[str]:
    """What `guard serve` gets of these, by its hidden option."""
    words = rewritten(["serve", *arguments])
    assert words[1::2] == ["--kserve"] * (len(words) // 2)
    return words[2::2]


def test_every_argument_of_kserves_own_parser_is_known(side: Callable[[str], Path]) -> None:
    done = subprocess.run(
        [side("kserve") / "python", "-c", PARSER], capture_output=True, check=True, text=True, timeout=120
    )
    actions = json.loads(done.stdout.splitlines()[-1])
    assert {name for name, _, _, _ in actions} == KNOWN
    assert {name for name, _, _, is_bare in actions if is_bare} == BARE
    for name, spellings, _, is_bare in actions:
        for spelling in spellings:
            value = "true" if is_bare else "1"
            assert given(spelling, *([] if is_bare else ["1"])) == [f"{name}={value}"]


def test_what_kserve_gives_unasked_becomes_settings() -> None:
    found = kserve_settings(given(*INJECTED), {})
    assert found.flags == {
        "model_name": "digits",
        "rest_listen": "0.0.0.0:8080",
        "upstream": "digits-predictor.models:80",
        "upstream_tls": False,
    }
    assert found.assumed == {
        "predictor_host": "digits-predictor.models:80, the port of KServe's Services",
        "predictor_protocol": "grpc-v2",
    }
    assert found.without_effect == {}
    config = load_config(None, {}, {**found.flags, "bundle": "/b"})
    (model,) = config.model_configs()
    assert (model.name, model.version, config.rest_upstream) == ("digits", "", "")


@pytest.mark.parametrize(
    ("arguments", "settings"),
    [
        (["--predictor_host=localhost:9000"], {"upstream": "localhost:9000", "upstream_tls": False}),
        (["--predictor-host", "h", "--predictor-use-ssl", "true"], {"upstream": "h:443", "upstream_tls": True}),
        (
            ["--predictor_host", "h:8080", "--predictor_protocol", "v2"],
            {"rest_upstream": "http://h:8080", "rest_listen": "0.0.0.0:8080"},
        ),
        (
            ["--predictor_host", "h", "--protocol", "v2", "--predictor_use_ssl", "yes", "--http_port=1"],
            {"rest_upstream": "https://h:443", "rest_listen": "0.0.0.0:1"},
        ),
        (["--grpc_port", "9001"], {"listen": "0.0.0.0:9001"}),
        (["--enable_grpc", "false"], {"listen": "127.0.0.1:8081"}),
        (["--grpc_port=1", "--grpc_port=2"], {"listen": "0.0.0.0:2"}),
        (["--grpc_max_receive_message_length", "1000"], {"max_message_bytes": 1000}),
        (["--grpc_max_receive_message_length", "-1"], {}),
        (["--ssl_certfile", "c", "--ssl_keyfile", "k"], {"tls_certificate": "c", "tls_key": "k"}),
        (["--enable_predictor_health_check", "--model_name=m:2"], {"model_name": "m:2"}),
        (["--predictor_use_ssl", "true"], {"upstream_tls": True}),
    ],
)
def test_each_argument_is_honoured(arguments: list[str], settings: dict[str, Any]) -> None:
    found = kserve_settings(given(*arguments), {})
    assert found.flags == settings
    load_config(None, {}, found.flags)


def test_what_has_no_effect_is_told_with_its_reason() -> None:
    found = kserve_settings(given("--workers", "2", "--enable_latency_logging=true", "--event-loop", "auto"), {})
    assert set(found.without_effect) == {"workers", "enable_latency_logging", "event_loop"}
    assert all(found.without_effect.values())


def test_variables_of_its_certificates_count_as_in_kserve() -> None:
    environment = {"KSERVE_TLS_CERT_FILE": "c", "KSERVE_TLS_KEY_FILE": "k"}
    assert kserve_settings(["http_port=8443"], environment).flags["tls_certificate"] == "c"
    assert kserve_settings([], environment).flags == {}  # where KServe did not start it


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--predictor_host", "h", "--predictor_protocol", "v1"], "--predictor_protocol = 'v1'"),
        (["--http_port", "http"], "--http_port = 'http'; wanted a whole number"),
        (["--http_port", "70000"], "--http_port = 70000; wanted a port"),
        (["--predictor_host", "http://h:1/x"], "--predictor_host = 'http://h:1/x'"),
        (["--enable_grpc", "perhaps"], "--enable_grpc = 'perhaps'"),
        (["--http_port="], "--http_port = ''"),
        (["--predictor_use_ssl", "perhaps"], "--predictor_use_ssl = 'perhaps'"),
    ],
)
def test_what_cannot_be_honoured_is_an_error_that_names_it(arguments: list[str], words: str) -> None:
    with pytest.raises(ConfigError) as caught:
        kserve_settings(given(*arguments), {})
    assert words in str(caught.value)


@pytest.mark.parametrize("name", sorted(KNOWN - BARE))
@pytest.mark.parametrize("following", ["--mode=shadow", "--workers=1", "--", None])
def test_an_argument_without_its_value_takes_no_flag_for_it(name: str, following: str | None) -> None:
    for spelling in (f"--{name}", f"--{name.replace('_', '-')}"):
        with pytest.raises(ConfigError, match=f"{spelling} has no value, {following or 'nothing'} follows"):
            rewritten(["serve", spelling, *([following] if following else [])])


@pytest.mark.parametrize("name", sorted(BARE))
def test_an_argument_that_takes_no_value_leaves_the_flag_behind_it(name: str) -> None:
    assert rewritten(["serve", f"--{name}", "--mode=shadow"]) == ["serve", "--kserve", f"{name}=true", "--mode=shadow"]


def test_a_missing_value_is_one_line_and_not_a_guard_that_enforces(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.run(["serve", "--enable_latency_logging", "--mode=shadow", "--bundle", "/nowhere"]) == 2
    assert capsys.readouterr().err == (
        "guard: --enable_latency_logging has no value, --mode=shadow follows; wanted --enable_latency_logging=VALUE\n"
    )


@pytest.mark.parametrize(("given_one", "missing"), [("ssl_certfile", "tls_key"), ("ssl_keyfile", "tls_certificate")])
def test_half_of_a_certificate_is_an_error_and_not_plaintext(given_one: str, missing: str) -> None:
    with pytest.raises(ConfigError, match=missing):
        listener_identity(load_config(None, {}, kserve_settings(given(f"--{given_one}", "file"), {}).flags))


def test_other_words_stay_as_they_are() -> None:
    assert rewritten(["serve", "--bundle", "b", "--http-port=1", "--mode", "off"]) == [
        *("serve", "--bundle", "b", "--kserve", "http_port=1", "--mode", "off")
    ]
    assert rewritten(["score", "--workers", "2"]) == ["score", "--workers", "2"]
    assert rewritten(["serve", "--modle", "off"]) == ["serve", "--modle", "off"]
    assert rewritten([]) == []


def test_the_guards_own_flags_beat_kserves(capsys: pytest.CaptureFixture[str]) -> None:
    own = ["--upstream", "nothing", "--bundle", "/nowhere"]
    assert cli.run(["serve", *INJECTED, *own]) == 2
    assert "--upstream = 'nothing'" in capsys.readouterr().err


def test_a_name_beside_tables_is_an_error_unless_kserve_gave_it(tmp_path: Path) -> None:
    file = tmp_path / "guard.toml"
    file.write_text('[models.a]\nbundle = "/a"\n', "utf-8")
    assert load_config(file, {}, {"model_name": "digits"}).model_configs()[0].name == "a"
    with pytest.raises(ConfigError, match="leave model_name out"):
        load_config(file, {"GUARD_MODEL_NAME": "digits"}, {})
