"""A real Prometheus as a process of its own, with the rules that the repository ships in times that are shorter."""

from __future__ import annotations

import json
import math
import os
import subprocess
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.deploy.monitoring import RULES, scaled
from tests.serve.guarded import free_port
from tests.side import shelf

START_S = 30.0
SCRAPE_S = RULE_S = 60.0  # as an operator has them, before they are scaled
LOOKBACK_S = 300.0
CONFIGURATION = """\
global: {{scrape_interval: {scrape}, scrape_timeout: {scrape}, evaluation_interval: {rule}}}
rule_files: [rules.yaml]
scrape_configs:
  - job_name: guard
    static_configs:
{targets}
"""


@dataclass(frozen=True)
class Series:
    """A series that a query gave: its labels, and times with values."""

    labels: Mapping[str, str]
    times: tuple[float, ...]
    values: tuple[float, ...]


@dataclass(frozen=True)
class Prometheus:
    """A running Prometheus, asked over HTTP."""

    address: str
    factor: float

    def ask(self, path: str, **parameters: Any) -> Any:
        """The data of an answer of its interface. Raises ValueError with its error where the query is refused."""
        url = f"http://{self.address}/api/v1/{path}?{urllib.parse.urlencode(parameters)}"
        try:
            with urllib.request.urlopen(url, timeout=30) as answer:
                return json.load(answer)["data"]
        except urllib.error.HTTPError as error:
            raise ValueError(f"{parameters}: {json.load(error).get('error')}") from None

    def query(self, expr: str) -> list[Series]:
        """The series of a query at this moment, its times scaled."""
        data = self.ask("query", query=scaled(expr, self.factor))
        return [Series(one["metric"], (one["value"][0],), (float(one["value"][1]),)) for one in data["result"]]

    def over(self, expr: str, begin: float, end: float, step_s: float) -> list[Series]:
        """The series of a query between two moments, its times scaled; samples that are no number are left out."""
        times = {"start": f"{begin:.3f}", "end": f"{end:.3f}", "step": f"{step_s:.3f}"}
        found = []
        for one in self.ask("query_range", query=scaled(expr, self.factor), **times)["result"]:
            samples = [(float(at), float(value)) for at, value in one["values"]]
            samples = [(at, value) for at, value in samples if math.isfinite(value)]
            if samples:
                found.append(Series(one["metric"], *map(tuple, zip(*samples, strict=True))))  # type: ignore[arg-type]
        return found

    def firing(self) -> set[str]:
        """The names of the alerts that fire now."""
        return {one["labels"]["alertname"] for one in self.ask("alerts")["alerts"] if one["state"] == "firing"}

    def is_calm(self) -> bool:
        """Whether no alert fires or is about to, though every target answers: without samples nothing fires either."""
        return not self.ask("alerts")["alerts"] and not self.query("up == 0")

    def rule_faults(self) -> list[str]:
        """What Prometheus says of rules that it could not evaluate."""
        groups = self.ask("rules")["groups"]
        return [
            f"{rule['name']}: {rule['lastError']}" for one in groups for rule in one["rules"] if "lastError" in rule
        ]


def promtool(*arguments: str | Path, folder: Path | None = None) -> subprocess.CompletedProcess[str]:
    """Run promtool, Prometheus' own checker. Raises StaleError."""
    command = [shelf("prometheus") / "usr" / "bin" / "promtool", *arguments]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)


@contextmanager
def prometheus_process(folder: Path, targets: Sequence[str], *, factor: float) -> Iterator[Prometheus]:
    """A Prometheus that scrapes guards at these addresses, all times shortened by `factor`. Raises StaleError."""
    program = shelf("prometheus") / "usr" / "bin" / "prometheus"
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "rules.yaml").write_text(scaled(RULES.read_text("utf-8"), factor), encoding="utf-8")
    lines = "\n".join(f"      - {{targets: ['{target}'], labels: {{namespace: day}}}}" for target in targets)
    scrape, rule = (f"{round(1000 * seconds / factor)}ms" for seconds in (SCRAPE_S, RULE_S))
    file, log = folder / "prometheus.yaml", folder / "prometheus.log"
    file.write_text(CONFIGURATION.format(scrape=scrape, rule=rule, targets=lines), encoding="utf-8")
    address = f"127.0.0.1:{free_port()}"
    lookback = f"--query.lookback-delta={round(1000 * LOOKBACK_S / factor)}ms"
    flags = [f"--config.file={file}", f"--storage.tsdb.path={folder / 'data'}", f"--web.listen-address={address}"]
    environment = {**os.environ, "GOMAXPROCS": "1"}
    with (
        log.open("wb") as output,
        subprocess.Popen([program, *flags, lookback], stdout=output, stderr=output, env=environment) as process,
    ):
        try:
            until_ready(address, process, log)
            yield Prometheus(address, factor)
        finally:
            process.kill()


def until_ready(address: str, process: subprocess.Popen[bytes], log: Path) -> None:
    deadline = time.monotonic() + START_S
    while True:
        try:
            with urllib.request.urlopen(f"http://{address}/-/ready", timeout=5):
                return
        except OSError:
            ended = process.poll() is not None or time.monotonic() > deadline
            assert not ended, f"Prometheus did not start; it wrote\n{log.read_text(errors='replace')}"
            time.sleep(0.05)
