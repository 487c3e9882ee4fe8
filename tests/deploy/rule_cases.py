"""Cases for `promtool test rules`: what guards expose in a situation, and the alerts that fire then."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from guard.serve.failure_table import WANTED_UNCHECKED
from tests.deploy.guard_series import (
    HEALTHY,
    INSPECTED,
    QUIET,
    few,
    inspection,
    items,
    jump,
    later,
    of_guard,
    of_model,
    rising,
    steady,
    wave,
)


@dataclass(frozen=True)
class Case:
    """A situation: the series that are not as in a healthy guard, and which alerts fire at which minute."""

    name: str
    series: Mapping[str, str]
    fire: Mapping[int, tuple[str, ...]] = field(default_factory=dict)  # minute -> alerts; none where it is ()


MEMORY = '{namespace="n",pod="p",container="guard"'

CASES = (
    Case("a healthy guard", {}, {10: (), 120: ()}),
    Case("a guard without traffic", QUIET, {10: (), 120: ()}),
    # an attack wave
    Case("a wave", wave((60, 90)), {59: (), 63: ("GuardAttackWave",), 80: ("GuardAttackWave",), 100: ()}),
    Case(
        "a wave under shadow",
        {items("would_reject"): wave((60, 90))[items("reject")], items("reject"): steady(0)},
        {59: (), 65: ("GuardAttackWave",)},
    ),
    Case(
        "a wave in the shadow queue",
        {of_model("guard_shadow_requests_total", action="would_reject"): later(steady(0, 120), rising(90))},
        {59: (), 66: ("GuardAttackWave",)},
    ),
    Case("four times the promised rate is no wave", wave((60, 80), 0.04), {64: (), 75: ()}),
    Case(
        "ten crafted requests", few(**{items("reject"): jump(10), items("pass"): steady(0)}), {31: (), 33: (), 90: ()}
    ),
    Case(
        "a wave while the model server is away",
        {**wave((60, 90)), items("pass"): later(rising(285, 0, 120), steady(285 * 120))},
        {64: ("GuardAttackWave",)},
    ),
    # query attacks
    Case(
        "a search",
        {of_model("guard_query_attacks_total", scope="principal"): later(steady(0, 120), rising(5))},
        {59: (), 64: ("GuardQueryAttack",)},
    ),
    Case("ten near-copies", {of_model("guard_query_attacks_total", scope="principal"): jump(10)}, {31: (), 35: ()}),
    # what is not inspected
    Case(
        "one unchecked request",
        {of_model("guard_unchecked_total", reason="unchecked"): jump(1)},
        {29: (), 31: ("GuardUnchecked",), 40: ()},
    ),
    Case(
        "requests of a form that cannot be inspected, in shadow",
        {of_model("guard_unchecked_total", reason="uninspectable"): jump(1)},
        {29: (), 31: ("GuardUnchecked",), 40: ()},
    ),
    Case(
        "what the operator wants unchecked",
        {of_model("guard_unchecked_total", reason=one): rising(60) for one in WANTED_UNCHECKED},
        {60: ()},
    ),
    Case(
        "inspections fail, closed",
        {of_guard("guard_refused_total", reason="unchecked"): later(steady(0, 120), rising(6))},
        {59: (), 66: ("GuardCannotInspect",)},
    ),
    Case(
        "ten inspections fail, closed",
        few(**{of_guard("guard_refused_total", reason="unchecked"): jump(10)}),
        {31: (), 34: ()},
    ),
    Case(
        "one in a thousand fails",
        {of_guard("guard_refused_total", reason="unchecked"): rising(0.06)},
        {120: ()},
    ),
    Case(
        "breaker open, no traffic", {**QUIET, of_model("guard_breaker_open"): steady(1)}, {5: ("GuardCannotInspect",)}
    ),
    Case(
        "breaker open, on_failure open",
        {
            of_model("guard_breaker_open"): steady(1),
            of_model("guard_unchecked_total", reason="breaker_open"): rising(60),
        },
        {60: ("GuardUnchecked",)},
    ),
    Case(
        "overload",
        {of_guard("guard_refused_total", reason="overloaded"): later(steady(0, 120), rising(10))},
        {59: (), 66: ("GuardShedding",)},
    ),
    Case(
        "ten requests shed", few(**{of_guard("guard_refused_total", reason="overloaded"): jump(10)}), {31: (), 34: ()}
    ),
    # time
    Case(
        "slow inspections",
        {inspection("0.01"): steady(0), inspection("2.5"): rising(30)},
        {30: ("GuardInspectionBudget",)},
    ),
    Case(
        "slow inspections, a larger budget",
        {
            inspection("0.01"): steady(0),
            inspection("2.5"): rising(30),
            of_model("guard_inspection_budget_seconds"): steady(20),
        },
        {30: ()},
    ),
    Case(
        "ten slow inspections",
        few(
            **{
                inspection("5.0"): jump(10),
                inspection("+Inf"): jump(10),
                of_model("guard_inspection_seconds_count"): jump(10),
            }
        ),
        {31: (), 36: ()},
    ),
    # the model server
    Case(
        "not ready",
        {of_guard("guard_upstream_ready"): later(steady(1, 120), steady(0))},
        {61: (), 66: ("GuardUpstreamDown",)},
    ),
    Case(
        "it fails a fifth",
        {of_guard("guard_upstream_failures_total", code="UNAVAILABLE"): later(steady(0, 120), rising(12))},
        {59: (), 66: ("GuardUpstreamDown",)},
    ),
    Case(
        "it fails a fifth, over HTTP",
        {of_guard("guard_upstream_failures_total", code="HTTP_503"): later(steady(0, 120), rising(12))},
        {59: (), 66: ("GuardUpstreamDown",)},
    ),
    Case(
        "ten failures",
        few(**{of_guard("guard_upstream_failures_total", code="UNAVAILABLE"): jump(10)}),
        {31: (), 33: ()},
    ),
    Case(
        "clients' own faults",
        {of_guard("guard_upstream_failures_total", code="INVALID_ARGUMENT"): rising(30)},
        {60: ()},
    ),
    Case(
        "a stale bundle",
        {of_model("guard_upstream_disagreement_ratio"): later(steady(0.01, 120), steady(0.4))},
        {59: (), 63: ("GuardUpstreamDisagreement",)},
    ),
    Case(
        "a student that differs as in training",
        {
            of_model("guard_upstream_disagreement_ratio"): steady(0.11),
            of_model("guard_bundle_disagreement_ratio"): steady(0.1),
        },
        {60: ()},
    ),
    Case(
        "ten compared items, all different",
        few(
            **{
                of_model("guard_upstream_disagreement_ratio"): steady(1),
                of_model("guard_upstream_compared_items_total"): jump(10),
            }
        ),
        {31: (), 35: ()},
    ),
    # detectors
    Case(
        "a silent detector whose items are rejected",
        {
            **wave((60, 90)),
            of_model("guard_detector_silent_items_total", detector="d"): "0x119 0+90x59 5400x200",
        },
        {59: (), 63: ("GuardDetectorSilent",), 80: ("GuardDetectorSilent",), 105: (), 130: ()},
    ),
    Case(
        "ten items without a score",
        few(**{of_model("guard_detector_silent_items_total", detector="d"): jump(10)}),
        {31: (), 35: ()},
    ),
    # the process
    Case("down", {of_guard("up"): later(steady(1, 120), steady(0))}, {62: (), 67: ("GuardDown",)}),
    Case(
        "a target that never was a guard",
        {'up{namespace="n",job="other",instance="b"}': steady(0)},
        {67: ()},
    ),
    Case(
        "three starts",
        {of_guard("process_start_time_seconds"): "1000x100 2000x4 3000x4 4000x400"},
        {50: (), 56: ("GuardRestarting",), 90: ()},
    ),
    Case("one start", {of_guard("process_start_time_seconds"): "1000x100 2000x400"}, {52: (), 60: ()}),
    *(
        Case(
            f"restarts as kube-state-metrics has them, {kind}",
            {f"{kind}_status_restarts_total{MEMORY}}}": "0x100 1x10 2x10 4x400"},
            {50: (), 62: ("GuardRestarting",)},
        )
        for kind in ("kube_pod_container", "kube_pod_init_container")
    ),
    *(
        Case(
            f"memory, {kind}",
            {
                f"container_memory_working_set_bytes{MEMORY}}}": later(steady(5e8, 120), steady(9.8e8)),
                f'{kind}_resource_limits{MEMORY},resource="memory"}}': steady(1e9),
            },
            {60: (), 67: ("GuardMemory",)},
        )
        for kind in ("kube_pod_container", "kube_pod_init_container")
    ),
    # files
    Case(
        "listener reopened",
        {of_guard("guard_listener_reopened_total", listener="inference"): jump(1)},
        {29: (), 31: ("GuardListenerReopened",), 50: ()},
    ),
    Case(
        "reload failed",
        {of_guard("guard_reload_successful"): later(steady(1, 60), steady(0))},
        {29: (), 34: ("GuardReloadFailed",)},
    ),
    Case(
        "credentials refused",
        {of_guard("guard_credential_reloads_total", setting="tls_certificate", outcome="refused"): jump(1)},
        {29: (), 35: ("GuardReloadFailed",)},
    ),
    Case(
        "a certificate that ends in six days",
        {of_guard("guard_certificate_expiry_timestamp_seconds", setting="tls_certificate"): steady(6 * 86400)},
        {5: ("GuardCertificateExpiry",)},
    ),
    Case(
        "audit lines lost",
        {of_guard("guard_audit_lost_total", of="log", reason="error"): jump(3)},
        {29: (), 31: ("GuardAuditDropping",), 40: ()},
    ),
    Case("log lines lost", {of_guard("guard_log_lines_lost_total"): jump(3)}, {29: (), 31: ("GuardAuditDropping",)}),
    Case(
        "audit lines lost as the guard ended",
        {of_guard("guard_audit_lost_total", of="log", reason="closed"): jump(3)},
        {31: ()},
    ),
    # traffic
    Case(
        "false alarms trebled",
        {items("flag"): rising(36), items("reject"): rising(9), items("pass"): rising(255)},
        {100: ("GuardFalseAlarmDrift",)},
    ),
    Case(
        "nearly twice as many, on few calibration items: that is what the promise allows",
        {items("reject"): rising(5.7), of_model("guard_calibration_items"): steady(999)},
        {130: ()},
    ),
    Case(
        "nearly twice as many, on many: that is not",
        {items("reject"): rising(5.7), INSPECTED: rising(300), of_model("guard_calibration_items"): steady(99999)},
        {130: ("GuardFalseAlarmDrift",)},
    ),
    Case("false alarms after a wave are the wave's", wave((60, 75)), {85: (), 130: ()}),
    Case("ten flagged requests", few(**{items("flag"): jump(10), items("pass"): steady(0)}), {35: (), 50: ()}),
    Case(
        "a martingale's alarm",
        {of_model("guard_drift_alarm"): later(steady(0, 120), steady(1))},
        {65: (), 75: ("GuardTrafficDrift",), 140: ("GuardTrafficDrift",)},
    ),
    Case(
        "an alarm that rises in a wave, and stays",
        {**wave((60, 90)), of_model("guard_drift_alarm"): later(steady(0, 122), steady(1))},
        {64: ("GuardAttackWave",), 80: ("GuardAttackWave",), 120: (), 140: ()},
    ),
    Case(
        "an alarm that rises in a wave, and stays while scrapes fail for four minutes",
        {
            **wave((60, 90)),
            of_model("guard_drift_alarm"): "0x122 1x80 stale _x8 1x90",
            of_guard("up"): "1x203 0x8 1x90",
        },
        {64: ("GuardAttackWave",), 106: (), 125: (), 140: ()},
    ),
    Case(
        "an alarm that was up before the wave",
        {**wave((60, 90)), of_model("guard_drift_alarm"): later(steady(0, 20), steady(1))},
        {50: ("GuardTrafficDrift",), 80: ("GuardAttackWave", "GuardTrafficDrift"), 120: ("GuardTrafficDrift",)},
    ),
    Case(
        "an alarm after the bundle was replaced, long after a wave",
        {
            **wave((60, 70)),
            of_model("guard_drift_alarm"): "0x122 1x60 0x60 1x240",
        },
        {68: ("GuardAttackWave",), 88: (), 120: (), 140: ("GuardTrafficDrift",)},
    ),
)


def promtool_file(rules: str, cases: Sequence[Case]) -> dict[str, Any]:
    """The cases as promtool reads them; JSON is YAML."""
    return {"rule_files": [rules], "evaluation_interval": "1m", "tests": [as_test(case) for case in cases]}


def as_test(case: Case) -> dict[str, Any]:
    """A case as promtool has it: at each minute, which alerts fire, all of them."""
    series = {**HEALTHY, **case.series}
    return {
        "name": case.name,
        "interval": "30s",
        "input_series": [{"series": name, "values": values} for name, values in series.items()],
        "promql_expr_test": [
            {
                "expr": 'group by (alertname) (ALERTS{alertstate="firing"})',
                "eval_time": f"{minute}m",
                "exp_samples": [{"labels": f'{{alertname="{name}"}}', "value": 1} for name in sorted(alerts)],
            }
            for minute, alerts in case.fire.items()
        ],
    }
