"""What deploy/monitoring holds, read: rules, the dashboard's queries, and the objects that are made from the rules.

python -m tests.deploy.monitoring       write the PrometheusRule of kustomize anew, and Helm's copy of the rules
"""

from __future__ import annotations

import json
import re
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from tests.side import ROOT, reach, ready

FOLDER = ROOT / "deploy" / "monitoring"
RULES, DASHBOARD = FOLDER / "rules.yaml", FOLDER / "dashboard.json"
COMPONENT = ROOT / "deploy" / "kustomize" / "components" / "monitoring" / "prometheus-rule.yaml"
CHART = ROOT / "deploy" / "helm"
IN_CHART = CHART / "rules.yaml"
TO_JSON = "import json, sys, yaml; print(json.dumps(list(yaml.safe_load_all(sys.stdin))))"
HEAD = """\
# Made from deploy/monitoring/rules.yaml by `python -m tests.deploy.monitoring`; change that file.
apiVersion: monitoring.coreos.com/v1
kind: PrometheusRule
metadata:
  name: guard
spec:
"""
VARIABLE = re.compile(r"\$(namespace|job|model)\b")
OPERATORS = {"MatchOp.Equal": "=", "MatchOp.NotEqual": "!=", "MatchOp.Re": "=~", "MatchOp.NotRe": "!~"}
SECONDS = {"s": 1, "m": 60, "h": 3600, "d": 86400}
# The length of a range, an offset, `for`, and the step of a scrape or of rules: whatever time there is in a rule.
DURATION = re.compile(r"(\[|offset |for: |interval: )(\d+)([smhd])\b")


@dataclass(frozen=True)
class Rule:
    """A rule of the file: an alert, or a series that is recorded."""

    group: str
    alert: str | None
    record: str | None
    expr: str
    patience: str  # `for`
    labels: dict[str, str]
    annotations: dict[str, str]


@dataclass(frozen=True)
class Selector:
    """A choice of series in a query: a metric and what its labels have to match."""

    metric: str
    matchers: tuple[tuple[str, str, str], ...]  # label, operator, value


@dataclass(frozen=True)
class Panel:
    """A panel of the dashboard, with its queries and what each of their lines is called."""

    row: str
    title: str
    kind: str
    unit: str
    queries: tuple[tuple[str, str], ...]


def documents(text: str) -> list[Any]:
    """The documents of a YAML text, read in the environment of kubectl: the main one has no YAML."""
    command = [str(ready("kubectl") / "python"), "-c", TO_JSON]
    done = subprocess.run(command, input=text, capture_output=True, text=True, check=True)
    found: list[Any] = json.loads(done.stdout)
    return found


@cache
def rules() -> tuple[Rule, ...]:
    """All rules of the file, in their order."""
    (document,) = documents(RULES.read_text("utf-8"))
    return tuple(
        Rule(
            group["name"],
            rule.get("alert"),
            rule.get("record"),
            rule["expr"],
            rule.get("for", "0s"),
            rule.get("labels", {}),
            rule.get("annotations", {}),
        )
        for group in document["groups"]
        for rule in group["rules"]
    )


def alert_names() -> list[str]:
    """The names of the alerts in their order, each once; read without YAML."""
    return list(dict.fromkeys(re.findall(r"^ +- alert: (\w+)$", RULES.read_text("utf-8"), re.MULTILINE)))


def dashboard() -> dict[str, Any]:
    """The dashboard as Grafana takes it."""
    found: dict[str, Any] = json.loads(DASHBOARD.read_text("utf-8"))
    return found


def panels() -> list[Panel]:
    """The panels of the dashboard in their order, with the row above each."""
    found, row = [], ""
    for panel in dashboard()["panels"]:
        if panel["type"] == "row":
            row = panel["title"]
            continue
        queries = tuple((target["expr"], target["legendFormat"]) for target in panel["targets"])
        found.append(Panel(row, panel["title"], panel["type"], panel["fieldConfig"]["defaults"]["unit"], queries))
    return found


def filled(expr: str) -> str:
    """A query of the dashboard with all of its variables set to everything."""
    return VARIABLE.sub(".*", expr)


def scaled(text: str, factor: float) -> str:
    """Rules or a query in which every time is that many times shorter: `[5m]` is `[5000ms]` at 60."""

    def shorter(match: re.Match[str]) -> str:
        before, number, unit = match.groups()
        return f"{before}{round(1000 * int(number) * SECONDS[unit] / factor)}ms"

    return DURATION.sub(shorter, text)


def selectors(expr: str) -> list[Selector]:
    """The series that a query reads. Raises ValueError where it is no PromQL."""
    reach("promql")
    import promql_parser

    found: list[Selector] = []

    def visit(node: Any) -> None:
        if isinstance(node, promql_parser.VectorSelector):
            matchers = tuple((one.name, OPERATORS[str(one.op)], one.value) for one in node.matchers.matchers)
            found.append(Selector(node.name or "", matchers))

    promql_parser.walk(promql_parser.parse(expr), visit)
    return found


def labels_named(expr: str) -> set[str]:
    """The labels by which a query groups or matches."""
    lists = re.findall(r"\b(?:by|on|without|ignoring|group_left|group_right)\s*\(([^()]*)\)", expr)
    return {name for one in lists for name in re.findall(r"\w+", one)}


def prometheus_rule(rules_text: str) -> str:
    """The PrometheusRule object of the operator that holds these rules."""
    groups = rules_text[rules_text.index("groups:") :]
    return HEAD + "".join(f"  {line}" if line.strip() else line for line in groups.splitlines(keepends=True))


def made() -> Iterator[tuple[Path, str]]:
    """The files that are made from the rules, and what they have to hold."""
    text = RULES.read_text("utf-8")
    yield COMPONENT, prometheus_rule(text)
    if CHART.is_dir():
        yield IN_CHART, text


if __name__ == "__main__":
    for path, content in made():
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content, encoding="utf-8")
        print(path.relative_to(ROOT))
