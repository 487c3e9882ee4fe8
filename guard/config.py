"""The settings of `guard serve`: `guard.toml`, `GUARD_*` and the command line become one frozen value.

Rule 1: an unknown setting is an error; nothing is dropped in silence. (Kubernetes' links to Services are told by name
        and value, and are none: `service_links`.)
Rule 2: the command line beats the environment, the environment beats the file, the file beats the default. What a
        model's own table says beats all of them.
"""

from __future__ import annotations

import difflib
import re
import tomllib
import typing
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any, Literal, get_args, get_origin

from guard.errors import ConfigError
from guard.model_config import ModelConfig
from guard.policy import Forward, Mode, OnFailure, QueryMemoryUse, Rows, Shadow
from guard.service_links import is_service_link
from guard.setting_ranges import RANGES

PrincipalFrom = Literal["none", "tls", "bearer", "xfcc"]

PREFIX = "GUARD_"
MAX_SHOWN_CHARACTERS = 200  # of a value in an error
MODELS = "models"
PLAIN_KEY = re.compile(r"[A-Za-z0-9_.:/@-]{1,200}")
# The settings that the table of a model may have.
OF_A_MODEL = tuple(field.name for field in fields(ModelConfig) if field.name not in ("key", "place"))
GONE = {  # settings of earlier versions, and what to do instead
    "timeout_s": "a call without a deadline is forwarded without one; inspect_timeout_s bounds the guard's own part, "
    "and grace_s what is under way at the end of a drain",
}


StreamReplies = Literal["auto", "wrapped", "bare"]


@dataclass(frozen=True)
class ServeConfig:
    """The settings of `guard serve`; each is a key of guard.toml, a GUARD_ variable in capitals, and many are flags."""

    bundle: str = ""  # directory of the bundle
    model_name: str = ""  # NAME or NAME:VERSION that clients ask for; "": the one that the bundle was made for
    upstream: str = ""  # the model server that is guarded: HOST:PORT, or a gRPC target such as dns:///NAME:PORT
    upstream_tls: bool = False  # speak TLS with it
    upstream_ca: str | None = None  # PEM file of the certificates that its own must lead to; None: the system's
    upstream_certificate: str | None = None  # PEM file of the guard's own certificate for it; None: it shows none
    upstream_key: str | None = None  # PEM file of that certificate's key
    upstream_authority: str | None = None  # name for :authority and its certificate; None: the target's
    listen: str = "0.0.0.0:8081"  # clients; Open Inference Protocol over gRPC, health, reflection
    rest_listen: str = ""  # clients; Open Inference Protocol over HTTP; empty: no such door
    rest_upstream: str = ""  # the same model server over HTTP: http://HOST:PORT or https://HOST:PORT; "": over gRPC
    admin_listen: str = "127.0.0.1:8083"  # guard.v1: loopback, unix:PATH, or with admin_tokens
    admin_tokens: str | None = None  # file of the tokens that guard.v1 wants; None: whoever can connect may ask
    metrics_listen: str = "0.0.0.0:8082"  # Prometheus
    authz_listen: str = ""  # Envoy's checks (ext_authz), by those that forward themselves; "": none
    tls_certificate: str | None = None  # PEM file: clients are spoken to by TLS; metrics and probes never are
    tls_key: str | None = None  # PEM file of its key
    tls_client_ca: str | None = None  # PEM file: clients must show a certificate that leads to one of these
    principal_from: PrincipalFrom = "none"  # what tells who calls; with all but none, nobody calls unnamed
    client_tokens: str | None = None  # file of the tokens that principal_from = "bearer" knows
    forward_token: bool = False  # pass the token on to the model server
    trusted_hops: tuple[str, ...] = ()  # proxies whose x-forwarded-client-cert counts: networks, names, "unix"
    trusted_keys: tuple[str, ...] = ()  # PEM files of public keys; a bundle must be signed by one of them
    require_signature: bool | None = None  # None: where there are trusted_keys
    mode: Mode = "enforce"  # shadow and off change nothing for any client, flag rejects nothing
    shadow: Shadow = "inline"  # whether callers wait for an inspection in mode shadow, or it comes afterwards
    on_failure: OnFailure = "closed"  # whether a request that cannot be checked passes
    breaker_failures: int | None = 5  # inspections that fail in a row before the self-check decides; None: no breaker
    breaker_share: float = 0.5  # the same of the last hundred inspections
    breaker_readiness: bool = True  # whether the guard is not ready while an engine is broken
    sample: float = 1.0  # share of requests that is inspected; the others pass, marked as unchecked
    sample_key: str | None = None  # secret by which these are chosen; None: a new one at each start and reload
    reject_rate: float | None = None  # share of clean items that may be rejected; None: the bundle's
    flag_rate: float | None = None  # the same for flagged ones, rejected ones included; None: the bundle's
    rows: Rows = "any"  # whether one rejected item rejects its request, or the request is judged as a whole
    forward: Forward = "after"  # the verdict, before it, as a closed model's answer counts in it, or at once
    repair: str | None = None  # denoiser through which flagged items are cleaned
    tell_flags: bool = False  # tell callers about FLAG and REPAIR; an attacker can search by it
    query_memory: QueryMemoryUse = "off"  # watch tells of query attacks, reject refuses them
    query_streams: bool = True  # frames of cameras and video are expected: near-copies alone are no attack
    stream_replies: StreamReplies = "auto"  # shape of the replies of ModelStreamInfer: Triton's, MLServer's, or by name
    allow_methods: tuple[str, ...] = ()  # further RPCs to pass uninspected, e.g. "ModelConfig", "@statistics"
    allow_models: tuple[str, ...] = ()  # further model names to pass uninspected
    device: Literal["cpu", "cuda"] = "cpu"  # of the programs; cuda never falls back in silence
    device_id: int = 0  # which CUDA device
    device_memory_bytes: int | None = None  # CUDA: most that the arenas of one session may take; None: no limit
    device_arena: Literal["as_requested", "power_of_two"] = "as_requested"  # CUDA: by how much an arena grows
    threads: int | None = None  # of all programs together; None: the CPUs that this process may use
    max_rows: int = 64  # on the device at once, variant rows counted
    max_queue_rows: int = 1024  # waiting; beyond that a request is shed
    inspect_timeout_s: float = 5.0  # for the guard's part of a request; what takes longer has failed
    upstream_timeout_s: float = 5.0  # for readiness and metadata calls of the guard's own
    read_timeout_s: float = 10.0  # for a call's message to arrive whole
    max_message_bytes: int | None = None  # of a request, unpacked; None: the largest that the queue holds
    max_bytes_in_flight: int | None = None  # of messages being read or held; None: a quarter of the memory limit
    max_connections: int = 1024  # open at once on a listener
    max_calls_per_connection: int = 1024  # at once; gRPC's core refuses further ones
    max_connection_age_s: float | None = 600.0  # then a client is sent to connect again; None: never
    max_connection_age_grace_s: float | None = None  # for calls on a connection that is too old; None: any time
    keepalive_s: float = 60.0  # of silence, before a client is asked whether it is there
    min_ping_interval_s: float = 5.0  # between a client's own pings; it is cut off if it asks more often
    upstream_keepalive_s: float | None = 300.0  # the same asked of the upstream during calls; None: never
    max_disagreement: float | None = None  # share of items on which bundle and upstream may differ; None: any
    drift_alarm_probability: float | None = 0.01  # of a false one, over a bundle's whole run; None: drift unwatched
    audit_dir: str | None = None  # directory of the audit log, and of the sample; None: neither is kept
    audit_inputs: bool = False  # with the worst item of a request and its evidence in each line
    audit_max_bytes: int = 1 << 28  # of the log, and of each bundle's sample; the oldest go
    audit_max_age_s: float = 30 * 86400.0  # likewise
    events_sink: str | None = None  # URL that is sent each line of the audit as a CloudEvent; None: nobody is
    events_namespace: str = ""  # that these events name, as KServe's logger does
    sample_share: float = 0.0  # of all items, kept for guard calibrate; drawn before the verdict
    drain_s: float = 5.0  # not ready, still serving, before the listener closes
    grace_s: float = 30.0  # for calls under way once the listener closes
    log_level: Literal["debug", "info", "warning", "error"] = "info"  # of the JSON lines on stderr
    watch_files: bool = True  # settings and bundles are read again when their files change
    models: tuple[ModelConfig, ...] = ()  # tables of guard.toml, where it guards several: [models.NAME], each a bundle

    def model_configs(self) -> tuple[ModelConfig, ...]:
        """The settings of each guarded model: the tables', or those of `bundle`; in mode off there may be none."""
        if not self.models and not self.bundle and self.mode == "off":
            return ()
        return self.models or (ModelConfig(**{name: getattr(self, name) for name in OF_A_MODEL}, key=self.model_name),)


def service_links(environment: Mapping[str, str]) -> tuple[str, ...]:
    """The names of variables that begin like settings and are Kubernetes' links to Services: they are left alone."""
    return tuple(sorted(name for name, value in environment.items() if is_service_link(name, value)))


@dataclass(frozen=True)
class SettingsSource:
    """The source of all settings: a file, which may change, and the environment and the flags of the start."""

    file: Path | None
    environment: Mapping[str, str]
    flags: Mapping[str, Any]

    def load(self) -> ServeConfig:
        """Read the settings, as they are now. Raises ConfigError as `load_config`."""
        return load_config(self.file, self.environment, self.flags)


def load_config(file: Path | None, environment: Mapping[str, str], flags: Mapping[str, Any]) -> ServeConfig:
    """Merge the file, the environment and the command line; `flags` whose value is None were not given.

    Links to Services in the environment are passed over; `service_links` names them.

    Raises:
        ConfigError: names file or variable, key, what was found, what was expected, and the nearest known key.
    """
    hints = typing.get_type_hints(ServeConfig)
    values: dict[str, Any] = {}
    places: dict[str, str] = {}  # of each value: the file, variable or flag that gave it
    tables: tuple[str, Any] | None = None
    for origin, where, key, value in given(file, environment, flags):
        if key == MODELS:
            tables = where, value
            continue
        known(key, hints, origin=origin)
        values[key] = convert(value, hints[key], where=where)
        places[key] = where
    config = ServeConfig(**values)
    check(config, places)
    if tables is None:
        return config
    if config.model_name and not places["model_name"].startswith(
        "--"
    ):  # as a flag it is KServe's, which always gives it
        raise ConfigError(
            f"{places['model_name']} = {shown(config.model_name)}, and {tables[0]} has tables, which name the models; "
            "leave model_name out"
        )
    if config.bundle:
        raise ConfigError(
            f"{places['bundle']} = {shown(config.bundle)}, and {tables[0]} has tables, which name a bundle each; "
            "give either, not both"
        )
    return replace(config, models=tuple(read_tables(*tables, config)))


def read_tables(where: str, tables: Any, defaults: ServeConfig) -> Iterator[ModelConfig]:
    """Yield the settings of each table below `models`; those it leaves out are the top-level ones. Raises ConfigError.

    Example: `[models.digits]` and `[models."digits:2"]`, each with `bundle = "DIRECTORY"`.
    """
    if not isinstance(tables, dict) or not tables:
        raise ConfigError(f'{where} = {shown(tables)}; wanted tables in guard.toml, [models.NAME] with bundle = "..."')
    hints = typing.get_type_hints(ModelConfig)
    for key, table in tables.items():
        place = place_of(where, key)
        if not isinstance(table, dict):
            raise ConfigError(f'{place} = {shown(table)}; wanted a table, [models.NAME] with bundle = "..."')
        name, colon, version = key.partition(":")
        if not name or (colon and not version) or ":" in version:
            raise ConfigError(f"{place}: wanted the name of a model, or NAME:VERSION")
        values = {setting: getattr(defaults, setting) for setting in OF_A_MODEL}
        for setting, value in table.items():
            known_in_table(setting, value, key=key, place=place)
            values[setting] = convert(value, hints[setting], where=f"{place}.{setting}")
        if not values["bundle"]:
            raise ConfigError(f'{place} names no bundle; wanted bundle = "DIRECTORY"')
        model = ModelConfig(**values, key=key, place=place)
        check(model, {setting: f"{place}.{setting}" for setting in table})
        yield model


def place_of(where: str, key: str) -> str:
    """The place of a table, as TOML writes it where that fits a line."""
    if key.isascii() and key.isidentifier():
        return f"{where}.{key}"
    return f'{where}."{key}"' if PLAIN_KEY.fullmatch(key) else f"{where}.{shown(key)}"


def known_in_table(setting: str, value: Any, *, key: str, place: str) -> None:
    """Raise ConfigError for what no table of a model may have."""
    if setting in OF_A_MODEL:
        return
    if setting in {field.name for field in fields(ServeConfig)}:
        hint = "it is one for the whole guard, and stands above all tables"
    elif isinstance(value, dict):
        hint = f'a name with a dot or a colon stands in quotes: [models."{shown(f"{key}.{setting}")[1:-1]}"]'
    elif near := difflib.get_close_matches(setting, OF_A_MODEL, n=1):
        hint = f"did you mean {near[0]!r}?"
    else:
        hint = f"settings of a model: {', '.join(OF_A_MODEL)}"
    raise ConfigError(f"{place}: unknown setting {setting!r}; {hint}")


def given(
    file: Path | None, environment: Mapping[str, str], flags: Mapping[str, Any]
) -> Iterator[tuple[str, str, str, Any]]:
    """Yield every setting that was given, the farthest source first: (origin, place in it, key, value)."""
    if file is not None:
        for key, value in read_toml(file).items():
            yield str(file), f"{file}: {key}", key, value
    for variable, text in sorted(environment.items()):
        if variable.startswith(PREFIX) and not is_service_link(variable, text):
            yield f"the environment variable {variable}", variable, variable.removeprefix(PREFIX).lower(), text
    for key, value in flags.items():
        if value is not None:
            flag = f"--{key.replace('_', '-')}"
            yield f"the flag {flag}", flag, key, value


def read_toml(file: Path) -> dict[str, Any]:
    try:
        return tomllib.loads(file.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(f"{file} cannot be read: {error.strerror}") from error
    except (ValueError, RecursionError) as error:  # tomllib raises them bare for huge numbers and for deep nesting
        raise ConfigError(f"{file} is not valid TOML: {error}") from error


def known(key: str, hints: Mapping[str, Any], *, origin: str) -> None:
    if key in GONE:
        raise ConfigError(f"{origin}: the setting {key!r} is gone: {GONE[key]}; did you mean 'inspect_timeout_s'?")
    if key not in hints:
        near = difflib.get_close_matches(key, hints, n=1)
        hint = (
            f"did you mean {near[0]!r}?"
            if near
            else f"known settings: {', '.join(f.name for f in fields(ServeConfig))}"
        )
        raise ConfigError(f"{origin}: unknown setting {key!r}; {hint}")


def convert(value: Any, hint: Any, *, where: str) -> Any:
    """Convert `value` to the type `hint`; text (an environment variable) is parsed. Raises ConfigError."""
    found = f"{where} = {shown(value)}"
    options = [a for a in get_args(hint) if a is not type(None)] if type(None) in get_args(hint) else [hint]
    if type(None) in get_args(hint) and value in ("", "none"):
        return None
    kind = options[0]
    if get_origin(kind) is Literal:
        if value in get_args(kind):
            return value
        raise ConfigError(f"{found}; wanted one of {', '.join(get_args(kind))}")
    if get_origin(kind) is tuple:
        parts = [p.strip() for p in value.split(",") if p.strip()] if isinstance(value, str) else value
        if isinstance(parts, (list, tuple)) and all(isinstance(p, str) for p in parts):
            return tuple(parts)
        raise ConfigError(f"{found}; wanted a list of names")
    return convert_scalar(value, kind, found=found)


def convert_scalar(value: Any, kind: type, *, found: str) -> Any:
    if kind is bool:
        if isinstance(value, bool):
            return value
        text = value.lower() if isinstance(value, str) else shown(value)
        if text in ("true", "1", "yes", "false", "0", "no"):
            return text in ("true", "1", "yes")
        raise ConfigError(f"{found}; wanted true or false")
    if kind is str and not isinstance(value, str):
        raise ConfigError(f"{found}; wanted text")
    if isinstance(value, bool):
        raise ConfigError(f"{found}; wanted a number")
    try:
        if kind is int and isinstance(value, float) and not value.is_integer():
            raise ValueError("not whole")
        return kind(value)
    except (TypeError, ValueError, OverflowError) as error:
        wanted = {int: "a whole number", float: "a number"}.get(kind, kind.__name__)
        raise ConfigError(f"{found}; wanted {wanted}") from error


def shown(value: Any) -> str:
    """Write a value as it is shown in an error: cut short, and a number that Python cannot write described."""
    try:
        text = repr(value)
    except (ValueError, RecursionError):  # thousands of digits or of brackets
        return f"a value of type {type(value).__name__} too large to show"
    return text if len(text) <= MAX_SHOWN_CHARACTERS else f"{text[:MAX_SHOWN_CHARACTERS]}..."


def check(config: ServeConfig | ModelConfig, places: Mapping[str, str]) -> None:
    """Check the range of every setting that there is; `places` says where each was given. Raises ConfigError."""
    for name, allowed in RANGES.items():
        value = getattr(config, name, None)
        if value is not None and not allowed.holds(value):
            raise ConfigError(f"{places.get(name, name)} = {shown(value)}; wanted {allowed.words}")
