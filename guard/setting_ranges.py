"""The ranges of settings, each said once: `guard.config` checks by them, and the JSON schema repeats them.

Rule 1: what the schema of a range refuses, its check refuses too; a schema may know less (an address is more than a
        pattern), never other things.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from guard.target import WANTED, is_authority, is_http_url, is_url, parse_target, socket_path, split_address

BOUNDS: dict[str, Callable[[Any, Any], bool]] = {  # JSON schema's keywords
    "exclusiveMinimum": operator.gt,
    "minimum": operator.ge,
    "exclusiveMaximum": operator.lt,
    "maximum": operator.le,
}


@dataclass(frozen=True)
class SettingRange:
    """What a setting may be: whether a value is, how an error says it, and how JSON schema does."""

    holds: Callable[[Any], bool]
    words: str
    schema: dict[str, Any] = field(default_factory=dict)


def number(words: str, **bounds: float) -> SettingRange:
    """A range of finite numbers; NaN is in none. Example: `number("zero or more", minimum=0)`."""

    def holds(value: float) -> bool:
        return math.isfinite(value) and all(BOUNDS[keyword](value, bound) for keyword, bound in bounds.items())

    return SettingRange(holds, words, dict(bounds))


def text(words: str, holds: Callable[[str], bool], pattern: str = "") -> SettingRange:
    """A range of texts; `pattern` lets all of them pass, and as few others as it can."""
    return SettingRange(holds, words, {"pattern": pattern} if pattern else {})


def is_model_key(value: str) -> bool:
    """Whether this names a model, with a version or without; empty, it names none."""
    name, colon, version = value.partition(":")
    return not value or bool(name and (version or not colon) and ":" not in version)


def is_listener(value: str) -> bool:
    return split_address(value) is not None


def is_optional_listener(value: str) -> bool:
    """Whether this is an address to listen on, or empty, for a door that is there only where it is asked for."""
    return not value or is_listener(value)


def is_admin_listener(value: str) -> bool:
    return is_listener(value) or socket_path(value) is not None


MORE_THAN_ZERO = (  # settings whose range begins there
    *("max_rows", "max_queue_rows", "max_message_bytes", "max_bytes_in_flight"),
    *("max_connections", "max_calls_per_connection"),
    *("max_connection_age_s", "max_connection_age_grace_s", "keepalive_s", "upstream_keepalive_s"),
    *("min_ping_interval_s",),
    *("audit_max_bytes", "audit_max_age_s"),
    *("breaker_failures", "inspect_timeout_s", "upstream_timeout_s", "read_timeout_s"),
    *("threads", "device_memory_bytes"),
)

RANGES: dict[str, SettingRange] = {
    **dict.fromkeys(MORE_THAN_ZERO, number("more than zero, and finite", exclusiveMinimum=0)),
    **dict.fromkeys(("device_id", "drain_s", "grace_s"), number("zero or more, and finite", minimum=0)),
    "drift_alarm_probability": number("a probability between 0 and 1", exclusiveMinimum=0, exclusiveMaximum=1),
    "sample_share": number("a share from 0 to 1", minimum=0, maximum=1),
    "max_disagreement": number("a share from 0 to below 1", minimum=0, exclusiveMaximum=1),
    **dict.fromkeys(("sample", "breaker_share"), number("a share above 0, at most 1", exclusiveMinimum=0, maximum=1)),
    **dict.fromkeys(("listen", "metrics_listen"), text("HOST:PORT", is_listener, "^$|:[^:]+$")),
    **dict.fromkeys(("rest_listen", "authz_listen"), text("HOST:PORT", is_optional_listener, "^$|:[^:]+$")),
    "model_name": text("NAME or NAME:VERSION", is_model_key, "^$|^[^:]+(:[^:]+)?$"),
    "admin_listen": text("HOST:PORT or unix:PATH", is_admin_listener, "^$|:[^:]+$"),
    "upstream": text(WANTED, lambda value: not value or parse_target(value) is not None),
    "events_sink": text("http://HOST/PATH or https://HOST/PATH, with or without a port", is_http_url),
    "rest_upstream": text(
        "http://HOST:PORT or https://HOST:PORT", lambda value: not value or is_url(value), "^$|^https?://"
    ),
    "upstream_authority": text("HOST or HOST:PORT", is_authority),
}
