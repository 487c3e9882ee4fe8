"""Series of a guard for `promtool test rules`: what a healthy one exposes, and the ways in which a case changes that.

Series are written as promtool has them, a sample every half minute: `0+30x240` rises by 30 each time for two hours.
The healthy guard inspects 2 requests of 5 items a second.
"""

from __future__ import annotations

from typing import Any

from guard.serve.failure_table import WANTED_UNCHECKED
from guard.serve.metrics import UNCHECKED_REASONS

SAMPLES = 300  # two hours and a half
GUARD = '{namespace="n",job="g",instance="a"'
MODEL = f'{GUARD},model="m"'


def rising(step: float, start: float = 0.0, samples: int = SAMPLES) -> str:
    """A counter that rises by so much a half minute."""
    return f"{start:g}+{step:g}x{samples}"


def steady(value: float, samples: int = SAMPLES) -> str:
    """A gauge that stays."""
    return f"{value:g}x{samples}"


def later(first: str, second: str) -> str:
    """One series after the other."""
    return f"{first} {second}"


def jump(by: float, *, after: int = 60, of: float = 0.0) -> str:
    """A counter that stands, rises once after so many samples, and stands again."""
    return later(steady(of, after), steady(of + by, SAMPLES - after))


def items(action: str) -> str:
    return f'guard_items_total{MODEL},action="{action}"}}'


def requests(action: str) -> str:
    return f'guard_requests_total{MODEL},action="{action}"}}'


def inspection(bound: str) -> str:
    return f'guard_inspection_seconds_bucket{MODEL},le="{bound}"}}'


def of_guard(name: str, **labels: str) -> str:
    more = "".join(f',{key}="{value}"' for key, value in labels.items())
    return f"{name}{GUARD}{more}}}"


def of_model(name: str, **labels: str) -> str:
    return of_guard(name, model="m", **labels)


INSPECTED = of_model("guard_p_value_count")
HEALTHY: dict[str, str] = {
    of_guard("up"): steady(1),
    of_guard("guard_build_info", version="1"): steady(1),
    of_guard("process_start_time_seconds"): steady(1000),
    of_guard("guard_ready"): steady(1),
    of_guard("guard_upstream_ready"): steady(1),
    of_guard("guard_reload_successful"): steady(1),
    of_guard("guard_certificate_expiry_timestamp_seconds", setting="tls_certificate"): steady(90 * 86400),
    of_guard("guard_log_lines_lost_total"): steady(0),
    of_guard("guard_listener_reopened_total", listener="inference"): steady(0),
    of_guard("guard_audit_lost_total", of="log", reason="error"): steady(0),
    of_guard("guard_audit_lost_total", of="log", reason="closed"): steady(0),
    of_guard("guard_credential_reloads_total", setting="tls_certificate", outcome="refused"): steady(0),
    of_model("guard_breaker_open"): steady(0),
    of_model("guard_promised_rate", action="reject"): steady(0.01),
    of_model("guard_promised_rate", action="flag"): steady(0.05),
    of_model("guard_calibration_items"): steady(999),
    of_model("guard_inspection_budget_seconds"): steady(5),
    of_model("guard_drift_alarm"): steady(0),
    of_model("guard_upstream_disagreement_ratio"): steady(0.01),
    of_model("guard_bundle_disagreement_ratio"): steady(0),
    of_model("guard_upstream_compared_items_total"): rising(300),
    INSPECTED: rising(300),
    items("pass"): rising(285),
    items("flag"): rising(12),
    items("reject"): rising(3),
    items("would_reject"): steady(0),
    requests("pass"): rising(57),
    requests("reject"): rising(3),
    requests("failed"): steady(0),
    inspection("0.01"): rising(60),
    inspection("2.5"): rising(60),
    inspection("5.0"): rising(60),
    inspection("+Inf"): rising(60),
    of_model("guard_inspection_seconds_count"): rising(60),
    **{of_model("guard_shadow_requests_total", action=one): steady(0) for one in ("would_flag", "would_reject")},
    **{of_model("guard_query_attacks_total", scope=one): steady(0) for one in ("principal", "shared")},
    **{of_model("guard_detector_silent_items_total", detector=one): steady(0) for one in ("d", "e")},
    **{of_model("guard_unchecked_total", reason=one): steady(0) for one in (*UNCHECKED_REASONS, *WANTED_UNCHECKED)},
    **{of_guard("guard_refused_total", reason=one): steady(0) for one in ("unchecked", "breaker_open", "overloaded")},
    of_guard("guard_upstream_failures_total", code="UNAVAILABLE"): steady(0),
    of_guard("guard_upstream_failures_total", code="INVALID_ARGUMENT"): steady(0),
}
QUIET = {name: steady(0) for name, values in HEALTHY.items() if values.startswith("0+")}  # no traffic at all


def wave(minutes: tuple[int, int], share: float = 0.3) -> dict[str, str]:
    """Series of an attack wave from one minute to another: that share of the items is rejected, whatever was before."""
    begin, end = 2 * minutes[0], 2 * minutes[1]
    rejected = share * 300
    calm, after = 3 * begin, 3 * begin + rejected * (end - begin)
    return {
        items("reject"): f"{rising(3, 0, begin - 1)} {rising(rejected, calm, end - begin - 1)} {rising(3, after)}",
        items("pass"): f"{rising(285, 0, begin - 1)} {rising(288 - rejected, 285 * begin, end - begin - 1)} "
        f"{rising(285, 285 * begin + (288 - rejected) * (end - begin))}",
    }


def few(**counters: Any) -> dict[str, str]:
    """No traffic but ten requests of one item at minute 30; `counters` are those that rise by all ten."""
    return {**QUIET, INSPECTED: jump(10), items("pass"): jump(10), requests("pass"): jump(10), **counters}
