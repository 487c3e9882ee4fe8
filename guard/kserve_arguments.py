"""KServe's arguments for a transformer, which its controller adds to the container's own, as settings of the guard.

Unasked it gives `--model_name NAME --predictor_host HOST.NAMESPACE --http_port 8080`; users add the others of KServe's
model server. Example: `--predictor_host digits-predictor.models` becomes `upstream = "digits-predictor.models:80"`.

Rule 1: each of KServe's arguments is known. What cannot be honoured is told with its reason, and what would change the
        protocol is an error: nothing is dropped in silence.
Rule 2: the guard's own flags beat them; they beat the environment and the file, as flags do.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from guard.errors import ConfigError
from guard.target import split_address

COMMANDS = ("serve", "doctor")  # which take them
OPTION = "--kserve"  # the hidden flag of these that they become: --kserve NAME=VALUE
BARE = frozenset({"enable_predictor_health_check"})  # take no value
HONOURED = frozenset(
    {
        *("model_name", "predictor_host", "predictor_protocol", "protocol", "predictor_use_ssl"),
        *("http_port", "grpc_port", "enable_grpc", "grpc_max_receive_message_length"),
        *("ssl_certfile", "ssl_keyfile", "enable_predictor_health_check"),
    }
)
WITHOUT_EFFECT = {  # and why
    "workers": "a guard is one process; threads bounds its programs, replicas add to it",
    "max_threads": "threads bounds all programs together",
    "max_asyncio_workers": "threads bounds all programs together",
    "grpc_max_send_message_length": "replies of the model server pass whatever their size",
    "predictor_request_timeout_seconds": "a call has its client's deadline; inspect_timeout_s bounds the guard's part",
    "predictor_request_retries": "the guard repeats no call",
    "enable_docs_url": "there is no page of documentation; gRPC has reflection",
    "enable_latency_logging": "guard_stage_seconds has the times",
    "configure_logging": "the log is JSON lines on standard error; log_level sets how many",
    "log_config_file": "the log is JSON lines on standard error; log_level sets how many",
    "access_log_format": "there is no access log; metrics and the audit log tell of requests",
    "event_loop": "it is uvloop",
    "timeout_keep_alive": "keepalive_s and max_connection_age_s bound connections",
}
KNOWN = HONOURED | WITHOUT_EFFECT.keys()
CERTIFICATE, KEY = (
    "KSERVE_TLS_CERT_FILE",
    "KSERVE_TLS_KEY_FILE",
)  # variables that stand for --ssl_certfile, --ssl_keyfile
HTTP_PORT, HTTPS_PORT = "80", "443"  # of KServe's Services
TRUE, FALSE = ("y", "yes", "t", "true", "on", "1"), ("n", "no", "f", "false", "off", "0")


@dataclass(frozen=True)
class KServeSettings:
    """The settings that KServe's arguments stand for, and what has to be said about them."""

    flags: dict[str, Any] = field(default_factory=dict)
    without_effect: dict[str, str] = field(default_factory=dict)  # argument -> why
    assumed: dict[str, str] = field(default_factory=dict)  # what no argument said


def rewritten(arguments: Sequence[str]) -> list[str]:
    """The arguments of a command line, with KServe's behind `guard serve` or `guard doctor` as the hidden option.

    Example: `serve --http_port 8080` becomes `serve --kserve http_port=8080`.

    Raises:
        ConfigError: one has no value: the flag that follows is none.
    """
    if not arguments or arguments[0] not in COMMANDS:
        return list(arguments)
    found, ahead = [arguments[0]], list(arguments[1:])
    while ahead:
        word = ahead.pop(0)
        name, equals, value = word.removeprefix("--").partition("=")
        name = name.replace("-", "_")
        if word == "--":
            return [*found, word, *ahead]
        if not word.startswith("--") or name not in KNOWN:
            found.append(word)
            continue
        if not equals and name in BARE:
            value = "true"
        elif not equals:
            if not ahead or ahead[0].startswith("--"):
                raise ConfigError(
                    f"{word} has no value, {ahead[0] if ahead else 'nothing'} follows; wanted {word}=VALUE"
                )
            value = ahead.pop(0)
        found += [OPTION, f"{name}={value}"]
    return found


def kserve_settings(given: Sequence[str], environment: Mapping[str, str]) -> KServeSettings:
    """The settings that arguments NAME=VALUE stand for; of two of a name the last counts, as in KServe.

    Raises:
        ConfigError: names the argument, what was found and what was wanted.
    """
    if not given:
        return KServeSettings()
    told = {name: value for name, _, value in (one.partition("=") for one in given)}
    flags: dict[str, Any] = {}
    assumed: dict[str, str] = {}
    if name := told.get("model_name"):
        flags["model_name"] = name
    if "http_port" in told:
        flags["rest_listen"] = f"0.0.0.0:{port(told, 'http_port')}"
    if "grpc_port" in told or "enable_grpc" in told:
        host = "0.0.0.0" if truth(told, "enable_grpc", default=True) else "127.0.0.1"
        flags["listen"] = f"{host}:{port(told, 'grpc_port') if 'grpc_port' in told else 8081}"
    certificate = told.get("ssl_certfile") or environment.get(CERTIFICATE)
    key = told.get("ssl_keyfile") or environment.get(KEY)
    flags |= {name: file for name, file in (("tls_certificate", certificate), ("tls_key", key)) if file}
    if "grpc_max_receive_message_length" in told:
        size = whole(told, "grpc_max_receive_message_length")
        flags |= {} if size < 0 else {"max_message_bytes": size}
    flags |= predictor(told, assumed)
    if "rest_upstream" in flags and "rest_listen" not in flags:
        flags["rest_listen"] = "0.0.0.0:8080"
        assumed["http_port"] = "8080"
    without_effect = {name: WITHOUT_EFFECT[name] for name in told if name in WITHOUT_EFFECT}
    return KServeSettings(flags, without_effect, assumed)


def predictor(told: Mapping[str, str], assumed: dict[str, str]) -> dict[str, Any]:
    """The settings of the model server; what no argument says is written to `assumed`. Raises ConfigError."""
    protocol = told.get("predictor_protocol", told.get("protocol", ""))
    if protocol not in ("", "grpc-v2", "v2"):
        raise ConfigError(
            f"--predictor_protocol = {protocol!r}; the guard speaks the Open Inference Protocol: wanted grpc-v2 or v2"
        )
    secure = truth(told, "predictor_use_ssl", default=False)
    host = told.get("predictor_host")
    if not host:  # another setting names it
        return {"upstream_tls": secure} if "predictor_use_ssl" in told else {}
    address = host
    if split_address(host) is None:
        address = f"{host}:{HTTPS_PORT if secure else HTTP_PORT}"
        assumed["predictor_host"] = f"{address}, the port of KServe's Services"
    if split_address(address) is None or "/" in address:
        raise ConfigError(f"--predictor_host = {host!r}; wanted HOST or HOST:PORT")
    if protocol == "v2":
        return {"rest_upstream": f"http{'s' if secure else ''}://{address}"}
    if not protocol:
        assumed["predictor_protocol"] = "grpc-v2"
    return {"upstream": address, "upstream_tls": secure}


def whole(told: Mapping[str, str], name: str) -> int:
    try:
        return int(told[name])
    except ValueError:
        raise ConfigError(f"--{name} = {told[name]!r}; wanted a whole number") from None


def port(told: Mapping[str, str], name: str) -> int:
    found = whole(told, name)
    if split_address(f"host:{found}") is None:
        raise ConfigError(f"--{name} = {found}; wanted a port from 0 to 65535")
    return found


def truth(told: Mapping[str, str], name: str, *, default: bool) -> bool:
    value = told.get(name)
    if value is None:
        return default
    if value.lower() not in TRUE + FALSE:
        raise ConfigError(f"--{name} = {value!r}; wanted true or false")
    return value.lower() in TRUE
