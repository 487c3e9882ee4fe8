"""For maintainers: a scripted day before a real Prometheus: each alert fires in its scene and in no other.

    python -m tests.side prometheus                     once
    python -m tests.bench.day [--out FOLDER]            ten minutes, a second for each minute of the day
    python -m tests.bench.day --quick                   under a minute, four scenes, two minutes of the day a second

A guard of the tests' tiny bundle and a model server meet one scene after the other, and Prometheus scrapes the guard
and evaluates `deploy/monitoring/rules.yaml`, all times in it shortened alike; counts stay as they are. A scene lasts
until its alerts fire and then a while, for others to fire wrongly; the next begins once none fires any more. Judged:
the alerts that fired from a scene's begin to the next one's are the scene's; Prometheus could evaluate every rule; each
query of `deploy/monitoring/dashboard.json` has data. FOLDER/day.png (`build` unless given) has each panel as it was.
"""

from __future__ import annotations

import argparse
import asyncio
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Iterator
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import grpc
import grpc.aio
import trustme

from tests.bench.day_parts import LONG_DAYS, PATH, SHORT_DAYS, Guard, Load, Mix, ModelServer, Traffic, make_bundle
from tests.bench.sidecar import table
from tests.deploy.monitoring import alert_names, filled, panels
from tests.deploy.prometheus_process import Prometheus, Series, prometheus_process
from tests.serve import tiny_bundle
from tests.serve.frames import unary

FACTOR, QUICK_FACTOR = 60.0, 120.0
RATE, ITEMS = 10.0, 15  # requests a minute of the day, and items in each
PATIENCE_MINUTES = 60.0  # of the day, in which an alert must come, and go
BEYOND_THE_DAY = frozenset({"GuardMemory"})  # needs the kubelet's metrics; promtool's tests have it
QUICK = ("clean", "attack wave", "upstream loss", "stale bundle")


@dataclass
class Day:
    """All that scenes turn: guard, model server, traffic, and the Prometheus that watches."""

    guard: Guard
    other: Guard | None  # before a grpcio that it does not know
    server: ModelServer
    traffic: Traffic
    load: Load
    prometheus: Prometheus

    async def minutes(self, minutes: float) -> None:
        """Let so many minutes of the day pass."""
        await asyncio.sleep(60 * minutes / self.prometheus.factor)

    async def until(self, holds: Callable[[], bool]) -> bool:
        """Wait until it holds; False where that does not come."""
        end = time.monotonic() + 60 * PATIENCE_MINUTES / self.prometheus.factor
        while not (there := await asyncio.to_thread(holds)) and time.monotonic() < end:
            await asyncio.sleep(0.5)
        return there

    async def reread(self) -> None:
        """Have the guard read its settings again, and wait until it has."""
        before = await asyncio.to_thread(self.guard.reloads)
        self.guard.reread()
        await self.until(lambda: self.guard.reloads() > before)

    async def start_guard(self) -> None:
        """Start the guard again; clients come once it is ready, as those of a Service do."""
        await asyncio.to_thread(self.guard.start)
        self.load.paused = False

    async def kill_guard(self) -> None:
        self.load.paused = True
        await asyncio.to_thread(self.guard.kill)


FIRING = 'ALERTS{alertstate="firing"}'
Turn = Callable[[Day], Awaitable[None]]


@dataclass(frozen=True)
class Scene:
    """A part of the day: what begins it, what ends it, and the alerts that are its."""

    name: str
    alerts: frozenset[str]
    begin: Turn
    end: Turn
    minutes: float = 6.0  # of the day, for which it goes on after its alerts have come


SCENES: list[Scene] = []


def scene(name: str, *alerts: str, minutes: float = 6.0) -> Callable[[Callable[[Day], Any]], None]:
    """Write a scene as one function, whose `yield` stands for the time in which it lasts."""

    def made(story: Callable[[Day], Any]) -> None:
        running: list[Any] = []

        async def begin(day: Day) -> None:
            running.append(story(day))
            await anext(running[-1])

        async def end(day: Day) -> None:
            async for _ in running.pop():
                raise AssertionError(f"{name} has no second end")

        SCENES.append(Scene(name, frozenset(alerts), begin, end, minutes))

    return made


def sending(name: str, *alerts: str, mix: Callable[[Traffic], Mix], minutes: float = 6.0, **load: float) -> None:
    """A scene in which other items come, or more of them."""

    async def story(day: Day) -> Any:
        before = {key: getattr(day.load, key) for key in load}
        day.load.mix = mix(day.traffic)
        for key, value in load.items():
            setattr(day.load, key, value)
        yield
        day.load.mix = day.traffic.clean
        for key, value in before.items():
            setattr(day.load, key, value)

    scene(name, *alerts, minutes=minutes)(story)


sending("clean", mix=lambda traffic: traffic.clean, minutes=15)


@scene("ten crafted requests")
async def _(day: Day) -> Any:
    day.load.paused = True
    await day.minutes(6)
    for _ in range(10):
        await day.load.one(tiny_bundle.striped())
    yield
    day.load.paused = False


@scene("drift", "GuardTrafficDrift", "GuardFalseAlarmDrift")
async def _(day: Day) -> Any:
    day.load.mix = day.traffic.drifted
    yield
    day.load.mix = day.traffic.clean
    await asyncio.to_thread(make_bundle, day.guard.folder / "bundle", day=2)  # one that was calibrated anew
    await day.reread()


sending("attack wave", "GuardAttackWave", mix=lambda traffic: traffic.attacked, minutes=14)
sending("query attack", "GuardQueryAttack", mix=lambda traffic: traffic.searching, items=1)
sending("detector without a score", "GuardDetectorSilent", mix=lambda traffic: traffic.blank)


@scene("stale bundle", "GuardUpstreamDisagreement")
async def _(day: Day) -> Any:
    day.server.upstream.wrong = True
    yield
    day.server.upstream.wrong = False


@scene("upstream loss", "GuardUpstreamDown")
async def _(day: Day) -> Any:
    await day.server.kill()
    yield
    await day.server.start()


@scene("overload", "GuardShedding")
async def _(day: Day) -> Any:
    day.guard.fail("slow", "0.8")
    before = day.load.rate, day.load.items, day.load.deadline_s
    day.load.rate, day.load.items, day.load.deadline_s = 12.0, 32, 1.5
    yield
    day.load.rate, day.load.items, day.load.deadline_s = before
    day.guard.mend("slow")


@scene("slow device", "GuardInspectionBudget")
async def _(day: Day) -> Any:
    before = day.load.rate, day.load.items
    day.guard.fail("slow", "1.5")
    day.load.rate, day.load.items = 30.0, 1
    yield
    day.load.rate, day.load.items = before
    day.guard.mend("slow")


@scene("device lost, closed", "GuardCannotInspect")
async def _(day: Day) -> Any:
    day.guard.fail("lost")
    yield
    day.guard.mend("lost")


@scene("device lost, open", "GuardUnchecked")
async def _(day: Day) -> Any:
    day.guard.write(on_failure="open")
    await day.reread()
    day.guard.fail("lost")
    yield
    day.guard.mend("lost")
    day.guard.write()
    await day.reread()


@scene("bad settings", "GuardReloadFailed")
async def _(day: Day) -> Any:
    day.guard.settings.write_text("bundle = 7\nno_such_setting = 1\n", encoding="utf-8")
    await day.reread()
    yield
    day.guard.write()
    await day.reread()


@scene("certificate near its end", "GuardCertificateExpiry")
async def _(day: Day) -> Any:
    day.guard.certify(SHORT_DAYS)
    yield
    day.guard.certify(LONG_DAYS)


@scene("audit directory lost", "GuardAuditDropping")
async def _(day: Day) -> Any:
    folder = day.guard.folder / "audit"
    folder.rename(folder.with_name("audit.gone"))
    folder.touch()
    yield
    folder.unlink()
    folder.with_name("audit.gone").rename(folder)


@scene("path that is no text", "GuardListenerReopened")
async def _(day: Day) -> Any:
    assert day.other is not None
    await asyncio.to_thread(unary, f"127.0.0.1:{day.other.port}", b"/x/\xff", b"", patience_s=0.2)
    yield


@scene("guard killed", "GuardDown")
async def _(day: Day) -> Any:
    await day.kill_guard()
    yield
    await day.start_guard()


@scene("guard restarts again and again", "GuardRestarting")
async def _(day: Day) -> Any:
    for _ in range(3):
        await day.kill_guard()
        await day.start_guard()
        await day.minutes(2)
    yield


@dataclass
class Played:
    """A scene as it was: when it began and the next one did, which alerts fired, and how calls ended."""

    scene: Scene
    began: float
    ended: float = 0.0
    took_s: float | None = None  # until its alerts fired
    ends: Counter[str] = field(default_factory=Counter)
    fired: frozenset[str] = frozenset()

    @property
    def faults(self) -> Iterator[str]:
        """What is wrong with it."""
        for name in sorted(self.scene.alerts - self.fired):
            yield f"{self.scene.name}: {name} did not fire"
        for name in sorted(self.fired - self.scene.alerts):
            yield f"{self.scene.name}: {name} fired"


async def play(day: Day, scene: Scene) -> Played:
    """Play a scene to its end, and until no alert fires any more."""
    before, played = Counter(day.load.ends), Played(scene, time.time())
    await scene.begin(day)
    if await day.until(lambda: scene.alerts <= day.prometheus.firing()):
        played.took_s = time.time() - played.began
    await day.minutes(scene.minutes)
    await scene.end(day)
    await day.until(day.prometheus.is_calm)
    await day.minutes(1)
    played.ended, played.ends = time.time(), day.load.ends - before
    fired = await asyncio.to_thread(day.prometheus.over, FIRING, played.began, played.ended, 0.25)
    played.fired = frozenset(series.labels["alertname"] for series in fired)
    return played


async def whole(folder: Path, names: list[str], factor: float) -> tuple[list[Played], dict[str, list[list[Series]]]]:
    """Play the scenes, and return them with each panel's results, a list a query."""
    authority, traffic, server = trustme.CA(), Traffic(), ModelServer()
    chosen = [scene for scene in SCENES if scene.name in names]
    async with AsyncExitStack() as stack:
        guards = [Guard(folder / "guard", server.address, tls=authority)]
        if any(scene.name == "path that is no text" for scene in chosen):
            guards.append(Guard(folder / "other", server.address, foreign_grpcio=True))
        await server.start()
        stack.push_async_callback(server.kill)
        for guard in guards:
            guard.folder.mkdir()
            make_bundle(guard.folder / "bundle")
            guard.write()
            if guard.tls is not None:
                guard.certify(LONG_DAYS)
            stack.callback(guard.kill)
            await asyncio.to_thread(guard.start)
        targets = [f"127.0.0.1:{guard.metrics}" for guard in guards]
        prometheus = stack.enter_context(prometheus_process(folder / "prometheus", targets, factor=factor))
        credentials = grpc.ssl_channel_credentials(authority.cert_pem.bytes())
        options = [("grpc.initial_reconnect_backoff_ms", 100), ("grpc.max_reconnect_backoff_ms", 200)]
        address = f"127.0.0.1:{guards[0].port}"
        channel = await stack.enter_async_context(grpc.aio.secure_channel(address, credentials, options))
        load = Load(channel.unary_unary(PATH), traffic.clean, RATE * factor / 60, ITEMS)
        day = Day(guards[0], guards[1] if guards[1:] else None, server, traffic, load, prometheus)
        task = asyncio.create_task(load.run())
        stack.callback(task.cancel)  # before the channel is closed
        await day.minutes(3)
        played = []
        for scene in chosen:
            played.append(await play(day, scene))
            print(told(played[-1]), flush=True)
        return played, await asyncio.to_thread(read, prometheus, played)


def told(played: Played) -> str:
    """A line about a scene, for those who watch the day."""
    took = "" if played.took_s is None else f", its alerts after {played.took_s:.1f} s"
    return f"{played.scene.name}: {played.ended - played.began:.0f} s{took}; fired: {', '.join(sorted(played.fired))}"


def read(prometheus: Prometheus, played: list[Played]) -> dict[str, list[list[Series]]]:
    """Ask Prometheus each panel's queries over the day."""
    begin, end = played[0].began, played[-1].ended
    if faults := prometheus.rule_faults():
        raise SystemExit("\n".join(faults))
    step_s = max(0.5, (end - begin) / 1000)
    return {
        panel.title: [prometheus.over(filled(expr), begin, end, step_s) for expr, _ in panel.queries]
        for panel in panels()
    }


def without_data(results: dict[str, list[list[Series]]], *, quick: bool) -> Iterator[str]:
    """The queries that have no data; in a quick day, the panels of which none has."""
    for panel in panels():
        empty = [expr for (expr, _), found in zip(panel.queries, results[panel.title], strict=True) if not found]
        if empty and (not quick or len(empty) == len(panel.queries)):
            yield from (f"{panel.title}: no data for {expr}" for expr in empty)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="under a minute, four scenes")
    parser.add_argument("--scenes", nargs="+", metavar="NAME", help="only these")
    parser.add_argument("--out", type=Path, default=Path("build"), metavar="FOLDER", help="for the picture")
    parser.add_argument("--factor", type=float, help="how many times shorter the day is; less on a busy machine")
    options = parser.parse_args()
    names = options.scenes or (list(QUICK) if options.quick else [scene.name for scene in SCENES])
    if unknown := set(names) - {scene.name for scene in SCENES}:
        parser.error(f"no scene {sorted(unknown)[0]!r}; there are {', '.join(scene.name for scene in SCENES)}")
    factor = options.factor or (QUICK_FACTOR if options.quick else FACTOR)
    part = len(names) < len(SCENES)
    with tempfile.TemporaryDirectory() as folder:
        played, results = asyncio.run(whole(Path(folder), names, factor))
    from tests.bench.day_page import draw

    picture = draw(options.out, [(one.scene.name, one.began, one.ended) for one in played], results, factor)
    rows = [
        [
            one.scene.name,
            ", ".join(sorted(one.fired)) or "none",
            "" if one.took_s is None or not one.scene.alerts else f"{one.took_s * factor / 60:.0f}",
            ", ".join(f"{count} {end}" for end, count in one.ends.most_common(3)),
        ]
        for one in played
    ]
    print(table(("scene", "alerts that fired", "minutes of the day until they did", "calls"), rows))
    bad = [fault for one in played for fault in one.faults] + list(without_data(results, quick=part))
    if not part:
        homeless = set(alert_names()) - {name for one in played for name in one.scene.alerts} - BEYOND_THE_DAY
        bad += [f"{name} has no scene" for name in sorted(homeless)]
    print("\n".join(bad) or "each alert fired in its scene and in no other; every panel has data")
    print(f"picture: {picture}")
    return 1 if bad else 0


if __name__ == "__main__":
    sys.exit(main())
