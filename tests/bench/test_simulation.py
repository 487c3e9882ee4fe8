"""The simulation against what can be worked out by hand."""

from __future__ import annotations

import math

import numpy as np
import pytest

from tests.bench.simulation import Cluster, Stage, simulate

TASKS = tuple(np.random.default_rng(3).uniform(1, 9, 200))
STAGES = (Stage("a", TASKS), Stage("b", (7.0, 1.0)))


def test_one_worker_takes_the_sum() -> None:
    found = simulate(STAGES, Cluster(1))
    assert found.seconds == pytest.approx(sum(TASKS) + 8)
    assert found.busy_s == pytest.approx(found.held_s(1))
    assert found.stage_s == {"a": pytest.approx(sum(TASKS)), "b": pytest.approx(8)}


def test_endless_workers_take_the_longest_task_of_each_stage() -> None:
    assert simulate(STAGES, Cluster(1000)).seconds == pytest.approx(max(TASKS) + 7)


@pytest.mark.parametrize("workers", [1, 2, 3, 7, 64])
def test_equal_tasks_take_whole_rounds(workers: int) -> None:
    found = simulate([Stage("equal", (2.0,) * 50)], Cluster(workers, start_s=5))
    assert found.seconds == pytest.approx(5 + 2 * math.ceil(50 / workers))


@pytest.mark.parametrize("workers", [1, 2, 5, 30])
def test_no_schedule_beats_its_bounds_and_grahams_bound_holds(workers: int) -> None:
    found = simulate([Stage("a", TASKS)], Cluster(workers)).seconds
    least = max(sum(TASKS) / workers, max(TASKS))
    assert least - 1e-9 <= found <= sum(TASKS) / workers + (1 - 1 / workers) * max(TASKS) + 1e-9


def test_the_driver_takes_results_one_after_the_other() -> None:
    cluster = Cluster(1000, bytes_per_s=100, handling_s=0.5)
    found = simulate([Stage("equal", (2.0,) * 50, result_bytes=150)], cluster)
    assert found.seconds == pytest.approx(2 + 50 * 2.0)
    assert found.moved_bytes == 50 * 150
    assert found.driver_s == pytest.approx(100)


def test_every_task_a_straggler_is_a_slower_cluster() -> None:
    slow = Cluster(3, straggler_share=1, straggler_factor=4)
    assert simulate(STAGES, slow).seconds == pytest.approx(4 * simulate(STAGES, Cluster(3)).seconds)


def test_a_lost_worker_costs_what_the_law_of_restarts_says() -> None:
    """A task of t seconds that starts anew at each loss takes (exp(r t) - 1)(1/r + restart) seconds on average."""
    rate, restart_s, task_s = 1 / 50, 5.0, 30.0
    cluster = Cluster(1, start_s=restart_s, losses_per_hour=3600 * rate)
    expected = (math.exp(rate * task_s) - 1) * (1 / rate + restart_s)
    stage = Stage("one", (task_s,) * 40)
    found = [(simulate([stage], cluster, seed=seed).seconds - restart_s) / 40 for seed in range(100)]
    error = np.std(found) / 10
    assert abs(np.mean(found) - expected) < 4 * error


def test_lost_workers_lose_no_task() -> None:
    found = simulate(STAGES, Cluster(4, start_s=3, losses_per_hour=60), seed=1)
    assert found.losses > 0
    assert found.lost_s > 0
    assert found.busy_s == pytest.approx(sum(TASKS) + 8)
    assert found.held_s(4) >= found.busy_s + found.lost_s


def test_the_same_seed_gives_the_same_run() -> None:
    cluster = Cluster(5, start_s=3, losses_per_hour=30, straggler_share=0.1, straggler_factor=3)
    assert simulate(STAGES, cluster, seed=4) == simulate(STAGES, cluster, seed=4)
    assert simulate(STAGES, cluster, seed=4) != simulate(STAGES, cluster, seed=5)


def test_nothing_to_do_takes_the_start() -> None:
    assert simulate([Stage("none", ())], Cluster(2, start_s=3)).seconds == 3
