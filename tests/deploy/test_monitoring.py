"""Rules and dashboard, without a Prometheus: each query is over what a real guard exposes, each alert explained."""

from __future__ import annotations

import asyncio
import json
import re
import subprocess
import urllib.request
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import grpc
import pytest
import trustme
from prometheus_client.parser import text_string_to_metric_families

from guard.serve.failure_table import WANTED_UNCHECKED
from guard.serve.grpc.passage import METHODS
from guard.serve.metrics import OTHER, REFUSED_REASONS, UNCHECKED_REASONS, UPSTREAM_FAULTS
from tests.deploy.monitoring import (
    COMPONENT,
    DURATION,
    IN_CHART,
    RULES,
    Selector,
    alert_names,
    dashboard,
    documents,
    filled,
    labels_named,
    made,
    panels,
    prometheus_rule,
    rules,
    scaled,
    selectors,
)
from tests.serve import tiny_bundle
from tests.serve.fake_upstream import FakeUpstream, listening
from tests.serve.guarded import guarding_at, infer_request

QUESTIONS = [  # of an operator, in this order
    "Are we under attack?",
    "Is the guard healthy?",
    "What does it cost?",
    "Is the bundle stale?",
    "Is the traffic what it was?",
]
ISSUE_WANTS = {  # what issue 17 names, and the alert that it became
    "attack wave": "GuardAttackWave",
    "query attack": "GuardQueryAttack",
    "unchecked > 0": "GuardUnchecked",
    "false-alarm drift": "GuardFalseAlarmDrift",
    "martingale": "GuardTrafficDrift",
    "upstream disagreement": "GuardUpstreamDisagreement",
    "inspection budget": "GuardInspectionBudget",
    "detector silent": "GuardDetectorSilent",
    "shedding": "GuardShedding",
    "reload failed": "GuardReloadFailed",
    "certificate expiry": "GuardCertificateExpiry",
    "audit dropping": "GuardAuditDropping",
    "listener reopened": "GuardListenerReopened",
}
# What Prometheus adds to each series of a target, and what others expose: kube-state-metrics and the kubelet.
TARGET_LABELS = {"namespace", "job", "instance", "pod", "container"}
ELSEWHERE = {
    "up": set(),
    "ALERTS": {"alertname", "alertstate"},
    "kube_pod_container_status_restarts_total": {"container", "pod"},
    "kube_pod_init_container_status_restarts_total": {"container", "pod"},
    "kube_pod_container_resource_limits": {"container", "pod", "resource"},
    "kube_pod_init_container_resource_limits": {"container", "pod", "resource"},
    "container_memory_working_set_bytes": {"container", "pod"},
}
STATUSES = {code.name for code in grpc.StatusCode}
MORE_VALUES = {
    "code": STATUSES | set(UPSTREAM_FAULTS),
    "grpc_code": STATUSES,
    "grpc_method": set(METHODS),
}  # which no series has at first

Exposed = Mapping[str, list[Mapping[str, str]]]  # metric -> the labels of its series


@pytest.fixture(scope="module")
def exposed(tmp_path_factory: pytest.TempPathFactory) -> Exposed:
    """What a guard with every part that rules speak of exposes, after a few calls."""
    folder = tmp_path_factory.mktemp("exposed")
    bundle = tiny_bundle.make(folder / "bundle").path
    authority = trustme.CA()
    found = authority.issue_cert("localhost", "127.0.0.1")
    chain, key = folder / "chain.pem", folder / "key.pem"
    chain.write_bytes(b"".join(one.bytes() for one in found.cert_chain_pems))
    found.private_key_pem.write_to_path(key)
    settings: dict[str, Any] = {"tls_certificate": str(chain), "tls_key": str(key), "query_memory": "watch"}

    async def text() -> str:
        fake = FakeUpstream()
        async with listening(fake) as upstream, guarding_at(bundle, upstream, fake, **settings) as guarded:
            await guarded.until_ready()
            credentials = grpc.ssl_channel_credentials(authority.cert_pem.bytes())
            async with grpc.aio.secure_channel(guarded.serving.address, credentials) as channel:
                infer: Any = channel.unary_unary("/inference.GRPCInferenceService/ModelInfer")
                request = infer_request(tiny_bundle.ordinary(2)).SerializeToString()
                await infer(request, timeout=20)
                fake.fail = grpc.StatusCode.UNAVAILABLE, "away", ()
                with pytest.raises(grpc.aio.AioRpcError):
                    await infer(request, timeout=20)
            address = f"http://{guarded.serving.metrics_address}/metrics"
            return await asyncio.to_thread(lambda: urllib.request.urlopen(address).read().decode())

    series: dict[str, list[Mapping[str, str]]] = defaultdict(list)
    for family in text_string_to_metric_families(asyncio.run(text())):
        for sample in family.samples:
            series[sample.name].append(sample.labels)
    return series


def queries() -> Iterator[tuple[str, str]]:
    """Every query of the rules and of the dashboard, with the name of what it is for."""
    yield from ((rule.alert or rule.record or "", rule.expr) for rule in rules())
    yield from ((panel.title, filled(expr)) for panel in panels() for expr, _ in panel.queries)


def recorded_labels(metric: str) -> set[str]:
    """The labels of a series that the rules record: those that its rule groups by or sets, or that its metric keeps."""
    found: set[str] = set()
    for rule in rules():
        if rule.record == metric:
            found |= labels_named(rule.expr) | set(rule.labels)
            for one in selectors(rule.expr):
                if one.metric != metric and ":" in one.metric:
                    found |= recorded_labels(one.metric)
    return found


def faults(selector: Selector, exposed: Exposed) -> Iterator[str]:
    """What is wrong with a choice of series: no such metric, label or value."""
    metric = selector.metric
    if metric in ELSEWHERE:
        known = ELSEWHERE[metric]
    elif metric in {rule.record for rule in rules()}:
        known = recorded_labels(metric)
    elif metric in exposed:
        known = set().union(*exposed[metric])
    else:
        yield f"no guard exposes {metric}"
        return
    for label, operator, value in selector.matchers:
        if label not in known | TARGET_LABELS:
            yield f"{metric} has no label {label}"
        elif metric in exposed and label in known and operator in ("=", "=~"):
            there = {labels.get(label, "") for labels in exposed[metric]} | MORE_VALUES.get(label, set())
            for part in value.split("|") if operator == "=~" and "(" not in value else [value]:
                if not any(re.fullmatch(part, one) for one in there):
                    yield f"no series of {metric} has {label}={part}"


def test_every_series_that_is_asked_for_is_exposed(exposed: Exposed) -> None:
    found = [(name, fault) for name, expr in queries() for one in selectors(expr) for fault in faults(one, exposed)]
    assert found == []


def test_what_the_operator_wants_unchecked_raises_no_alarm_and_the_runbook_names_it(root: Path) -> None:
    assert re.findall(r'guard_unchecked_total\{reason!~"(.*?)"\}', RULES.read_text("utf-8")) == [
        "|".join(WANTED_UNCHECKED)
    ]
    runbook = (root / "deploy/RUNBOOK.md").read_text("utf-8")
    (line,) = [line for line in runbook.splitlines() if line.startswith("- `guard_unchecked_total` does not rise but")]
    assert tuple(re.findall(r"`(\w+)`", line)[1:]) == WANTED_UNCHECKED


def test_the_first_count_that_an_alarm_looks_at_is_a_rise(exposed: Exposed) -> None:
    """A series that begins at its first count has not risen: `increase` is 0 over it."""
    reasons = {(labels["model"], labels["reason"]) for labels in exposed["guard_unchecked_total"]}
    assert reasons >= {(model, one) for model in (OTHER, tiny_bundle.MODEL_NAME) for one in UNCHECKED_REASONS}
    assert {labels["reason"] for labels in exposed["guard_refused_total"]} >= set(REFUSED_REASONS)
    assert {labels["code"] for labels in exposed["guard_upstream_failures_total"]} >= set(UPSTREAM_FAULTS)


def test_the_alarm_of_a_failing_model_server_looks_at_each_fault_of_its_own() -> None:
    (code,) = re.findall(r'guard_upstream_failures_total\{code=~"(.*?)"\}', RULES.read_text("utf-8"))
    assert [one for one in UPSTREAM_FAULTS if not re.fullmatch(code, one)] == []
    assert not re.fullmatch(code, "HTTP_422")


def test_every_label_that_is_grouped_by_is_some_series(exposed: Exposed) -> None:
    for name, expr in queries():
        known = TARGET_LABELS | set().union(*ELSEWHERE.values())
        for one in selectors(expr):
            known |= set().union(*exposed.get(one.metric, [{}])) | recorded_labels(one.metric)
        assert labels_named(expr) <= known, name


@pytest.mark.parametrize(
    ("expr", "fault"),
    [
        ("rate(guard_request_total[5m])", "no guard exposes guard_request_total"),
        ('guard_items_total{verdict="reject"}', "guard_items_total has no label verdict"),
        ('guard_items_total{action="rejected"}', "no series of guard_items_total has action=rejected"),
        ('guard_items_total{action=~"reject|would_rejct"}', "no series of guard_items_total has action=would_rejct"),
        ('guard_upstream_failures_total{code=~"UNAVAILABLE|OOPS"}', "no series of guard_upstream_failures_total has"),
        ('model:guard_attack_wave:bool{scope="x"}', "model:guard_attack_wave:bool has no label scope"),
    ],
)
def test_a_planted_fault_is_found(expr: str, fault: str, exposed: Exposed) -> None:
    found = [text for one in selectors(expr) for text in faults(one, exposed)]
    assert len(found) == 1
    assert found[0].startswith(fault)


def test_what_is_no_promql_is_refused() -> None:
    with pytest.raises(ValueError, match="unclosed left parenthesis"):
        selectors("sum by (model (guard_ready)")


def test_the_alerts_that_the_issue_names_are_there() -> None:
    assert set(ISSUE_WANTS.values()) <= set(alert_names())


@pytest.mark.parametrize("name", alert_names())
def test_an_alert_says_what_it_is_and_where_its_runbook_is(name: str) -> None:
    for rule in (one for one in rules() if one.alert == name):
        assert set(rule.annotations) == {"summary", "description", "runbook_url"}
        page, _, anchor = rule.annotations["runbook_url"].partition("#")
        assert anchor == name.lower()
        assert rule.labels["severity"] in {"warning", "critical"}
        assert not rule.annotations["summary"].endswith(".")
        assert rule.annotations["description"].endswith(".")
        used = set(re.findall(r"\$labels\.(\w+)", " ".join(rule.annotations.values())))
        kept = {"instance", "job", "pod", "model", "setting"}  # of series that no rule has grouped
        assert used <= kept.union(
            labels_named(rule.expr), *(recorded_labels(one.metric) for one in selectors(rule.expr))
        )
        runbook = RULES.parent.parent / page
        if runbook.exists():
            headings = re.findall(r"^#+ (\S+)$", runbook.read_text("utf-8"), re.MULTILINE)
            assert anchor in {heading.lower() for heading in headings}


def test_what_is_made_from_the_rules_is_up_to_date() -> None:
    """Written anew by `python -m tests.deploy.monitoring`."""
    for path, content in made():
        assert path.read_text("utf-8") == content, path


def test_the_operators_object_has_the_rules_as_they_are() -> None:
    text = RULES.read_text("utf-8")
    plain, found = documents(f"{text}\n---\n{prometheus_rule(text)}")
    assert found["kind"] == "PrometheusRule"
    assert found["spec"] == plain
    assert not IN_CHART.exists() or IN_CHART.read_text("utf-8") == text


def test_the_component_adds_that_object_and_no_other(side: Callable[[str], Path], tmp_path: Path) -> None:
    (tmp_path / "monitoring").symlink_to(COMPONENT.parent)
    (tmp_path / "overlay").mkdir()
    (tmp_path / "overlay/kustomization.yaml").write_text("components: [../monitoring]\n", encoding="utf-8")
    command = [side("kubectl") / "kubectl", "kustomize", tmp_path / "overlay", "--load-restrictor=LoadRestrictionsNone"]
    rendered = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    found, wanted = documents(f"{rendered}\n---\n{COMPONENT.read_text('utf-8')}")
    assert found == wanted


def test_the_dashboard_answers_in_the_order_of_the_questions() -> None:
    assert list(dict.fromkeys(panel.row for panel in panels())) == QUESTIONS


def test_panels_have_names_of_their_own_explain_themselves_and_take_the_chosen_source() -> None:
    shown = [panel for panel in dashboard()["panels"] if panel["type"] != "row"]
    for names in ([panel["id"] for panel in dashboard()["panels"]], [panel["title"] for panel in shown]):
        assert len(names) == len(set(names))
    variables = {variable["name"] for variable in dashboard()["templating"]["list"]}
    for panel in shown:
        assert panel["description"].endswith((".", "?"))
        for part in (panel, *panel["targets"]):
            assert part["datasource"] == {"type": "prometheus", "uid": "${datasource}"}
    assert set(re.findall(r"\$\{?(\w+)", json.dumps(dashboard()["panels"]))) == variables


def overlaps(places: list[dict[str, int]]) -> bool:
    """Tell whether two panels lie on each other, or one lies beside the grid of 24 columns."""
    taken: set[tuple[int, int]] = set()
    for place in places:
        cells = {
            (x, y)
            for x in range(place["x"], place["x"] + place["w"])
            for y in range(place["y"], place["y"] + place["h"])
        }
        if cells & taken or place["x"] + place["w"] > 24:
            return True
        taken |= cells
    return False


def test_no_panel_lies_on_another() -> None:
    assert not overlaps([panel["gridPos"] for panel in dashboard()["panels"]])
    place = {"x": 0, "y": 0, "w": 8, "h": 8}
    assert overlaps([place, {**place, "x": 7}])
    assert overlaps([{**place, "x": 17}])


def test_a_shorter_day_shortens_every_time() -> None:
    assert scaled("rate(x[5m] offset 1h)\n    for: 10m", 60) == "rate(x[5000ms] offset 60000ms)\n    for: 10000ms"
    text = scaled(RULES.read_text("utf-8"), 60)
    assert not [match for match in DURATION.findall(text) if match[2] != "s" and f"{match[1]}ms" not in text]
    assert len(re.findall(r"\d+ms\b", text)) == len(DURATION.findall(RULES.read_text("utf-8")))
