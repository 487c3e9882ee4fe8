"""Checks of settings: what is unknown, missing, contradictory or without effect, and what the mode lets through."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from importlib.util import find_spec

from guard.config import ServeConfig, service_links
from guard.errors import ConfigError
from guard.serve.check_settings import check_complete
from guard.serve.doctor.remark import Remark
from guard.serve.doctor.setup import Setup
from guard.serve.own_ports import clashes
from guard.serve.query_watch import unseen_requests

Uses = Callable[[ServeConfig], bool]


def has_mode(*modes: str) -> Uses:
    return lambda config: any(model.mode in modes for model in config.model_configs())


def is_set(name: str) -> Uses:
    return lambda config: bool(getattr(config, name))


def is_principal(source: str) -> Uses:
    return lambda config: config.principal_from == source


def on_cuda(config: ServeConfig) -> bool:
    return config.device == "cuda"


def watches_queries(config: ServeConfig) -> bool:
    return any(model.query_memory != "off" for model in config.model_configs())


def samples(config: ServeConfig) -> bool:
    return any(model.sample < 1 for model in config.model_configs())


def compares(config: ServeConfig) -> bool:
    return not config.authz_listen


# Settings that do nothing unless something else is set: when each counts, and how to make it count.
USED_IF: dict[str, tuple[Uses, str]] = {
    "shadow": (has_mode("shadow"), 'mode = "shadow"'),
    "sample_key": (samples, "sample below 1"),
    "query_streams": (watches_queries, 'query_memory = "watch" or "reject"'),
    "client_tokens": (is_principal("bearer"), 'principal_from = "bearer"'),
    "forward_token": (is_principal("bearer"), 'principal_from = "bearer"'),
    "trusted_hops": (is_principal("xfcc"), 'principal_from = "xfcc"'),
    "require_signature": (is_set("trusted_keys"), "trusted_keys"),
    "device_id": (on_cuda, 'device = "cuda"'),
    "device_memory_bytes": (on_cuda, 'device = "cuda"'),
    "device_arena": (on_cuda, 'device = "cuda"'),
    "audit_max_bytes": (is_set("audit_dir"), "audit_dir"),
    "audit_max_age_s": (is_set("audit_dir"), "audit_dir"),
    "events_namespace": (is_set("events_sink"), "events_sink"),
    "breaker_share": (is_set("breaker_failures"), "breaker_failures"),
    "breaker_readiness": (is_set("breaker_failures"), "breaker_failures"),
    "max_connection_age_grace_s": (is_set("max_connection_age_s"), "max_connection_age_s"),
    "max_disagreement": (compares, "no authz_listen: Envoy forwards by itself, and no answer is compared"),
}


# Settings that take an extra: a module of it, and its name.
EXTRAS = {
    "rest_listen": ("uvicorn", "rest"),
    "authz_listen": ("envoy", "envoy"),
    "trusted_keys": ("cryptography", "sign"),
}


def is_installed(setting: str) -> bool:
    """Whether the packages are there that a setting needs."""
    return find_spec(EXTRAS[setting][0]) is not None


def settings(setup: Setup) -> Iterator[Remark]:
    """What is wrong with the settings by themselves, a line each, and what has no effect."""
    given = setup.given
    wrong = [*given.faults]
    try:
        check_complete(given.config)
    except ConfigError as error:
        told = str(error) in clashes(given.config)  # by the check of ports
        if not given.faults and not told:  # otherwise one that was left out may be what is missing
            wrong.append(str(error))
    wrong += [
        f"{name} = {value!r} needs the package {module}; install inference-guard[{extra}], or leave {name} out"
        for name, (module, extra) in EXTRAS.items()
        if (value := getattr(given.config, name)) and not is_installed(name)
    ]
    origin = f" ({setup.origin})" if setup.origin else ""
    yield from (Remark("settings", "wrong", fault + origin) for fault in wrong)
    idle = [
        f"{given.places[name]} has no effect; it counts with {words}, or leave it out"
        for name, (uses, words) in USED_IF.items()
        if name in given.places and not uses(given.config)
    ]
    if links := service_links(os.environ):
        idle.append(
            f"{', '.join(links)} in the environment are Kubernetes' links to a Service and are ignored; "
            "enableServiceLinks: false in the pod's template leaves them out"
        )
    yield from (Remark("settings", "warn", fault) for fault in idle)
    if not wrong and not idle:
        yield Remark("settings", "ok", f"{len(given.places)} given{origin}, all known and in their ranges")


def mode(setup: Setup) -> Iterator[Remark]:
    """What becomes of a request that is judged an attack, and of one that cannot be inspected."""
    config = setup.given.config
    models = config.model_configs()
    if not models:
        if config.mode == "off":
            yield Remark("mode", "warn", OFF)
        return
    for model in models:
        label = f"{model.key}: " if model.key else ""
        if model.mode == "off":
            yield Remark("mode", "warn", label + OFF)
            continue
        words = {
            "enforce": "enforce: what is judged an attack is refused",
            "flag": "flag: nothing judged an attack is refused; what cannot be inspected by its form is",
            "shadow": "shadow: all passes; verdicts are counted and logged",
        }[model.mode]
        if model.mode != "shadow":
            opened = model.on_failure == "open"
            words += f"; what the guard fails to check {'passes, marked' if opened else 'is refused'}"
        if model.sample < 1:
            words += f"; {1 - model.sample:.4g} of all requests pass uninspected (sample = {model.sample:g})"
        if model.query_memory != "off" and config.principal_from == "none":
            words += '; principal_from = "none": the query memory judges all callers together'
        yield Remark("mode", "ok", label + words)
        if unseen := unseen_requests(model):
            yield Remark("mode", "warn", label + unseen)


OFF = 'off: nothing is inspected; set mode = "shadow" to see what would be refused, then "enforce"'
