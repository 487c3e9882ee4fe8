"""What becomes of every item that an attack was tried on."""

from __future__ import annotations

import numpy as np
import pytest

from guard.cascade import Readings
from guard.offline.evaluation.attack_rows import Outcomes, alone_at, hits, worst_of
from guard.offline.evaluation.clean_rows import class_rows
from guard.offline.evaluation.suite_rows import Planned, shared_out
from guard.offline.findings.evaluation import ClassRow
from guard.offline.findings.intervals import Promise, Rate
from tests.offline.worst_case import counted

PROMISES = (Promise.of(0.001, 500), Promise.of(0.01, 500), Promise.of(0.05, 500))


class Tried:
    """As much of a crafted set as `hits` looks at."""

    def __init__(self, tried: str, attacked: str) -> None:
        self.tried_hashes, self.hashes = np.array(list(tried)), np.array(list(attacked))
        self.tried = len(tried)

    def __len__(self) -> int:
        return len(self.hashes)


@pytest.mark.parametrize(
    ("tried", "attacked", "expected"),
    [("abcd", "bd", [0, 1, 0, 1]), ("abcd", "", [0, 0, 0, 0]), ("aab", "ab", [1, 0, 1]), ("aab", "aab", [1, 1, 1])],
)
def test_attacked_items_are_found_among_those_tried(tried: str, attacked: str, expected: list[int]) -> None:
    """Also where two items have one content: as many are counted as were attacked."""
    found = hits(Tried(tried, attacked))  # type: ignore[arg-type]
    assert found.astype(int).tolist() == expected


def fate(hashes: str, wrong: list[int], p_value: list[float]) -> Outcomes:
    return Outcomes(np.array(list(hashes)), np.array(wrong, dtype=bool), np.array(p_value))


def test_handled_is_rejected_or_still_right() -> None:
    found = fate("abcd", [1, 1, 0, 0], [0.001, 0.5, 0.5, 0.001])
    assert found.handled(0.01).tolist() == [True, False, True, True]


def test_the_worst_case_meets_each_item_with_the_attack_that_is_worst_for_it() -> None:
    one = fate("abc", [1, 0, 0], [0.5, 0.5, 0.5])
    two = fate("cba", [0, 1, 0], [0.5, 0.5, 0.5])  # in another order
    other = fate("abcz", [1, 0, 1, 1], [0.001, 0.5, 0.001, 0.5])
    worst = worst_of({"one": one, "two": two, "other": other}, PROMISES, 0.05)
    assert worst is not None
    assert worst.bare == Rate.counted(0, 3), "each of the three items is lost to some attack"
    assert worst.handled[0.01] == Rate.counted(1, 3), "c alone is caught; z was not met by all"
    assert worst.handled[0.001] is None
    assert worst.robust_accuracy == Rate.counted(1, 3)
    assert worst_of({"one": one, "none": fate("xyz", [1, 1, 1], [0.5] * 3)}, PROMISES, 0.05) is None
    assert worst_of({}, PROMISES, 0.05) is None


@pytest.mark.parametrize("seed", range(20))
def test_the_worst_case_is_counted_exactly_on_the_shared_items(seed: int) -> None:
    """Three attacks, each on items of its own in an order of its own; half of all are fooled, half of those caught."""
    draw, fates = np.random.default_rng(seed), {}
    for label in ("one", "two", "three"):
        hashes = draw.permutation([f"item {number}" for number in range(120)])[:100]
        p_value = draw.choice([0.0005, 0.005, 0.01, 0.03, 0.05, 0.5], 100)
        fates[label] = Outcomes(hashes, draw.random(100) < 0.5, p_value)
    worst = worst_of(fates, PROMISES, 0.05)
    assert worst == counted(fates, PROMISES, 0.05)
    assert worst.bare.items == len(set.intersection(*(set(fate.hashes.tolist()) for fate in fates.values())))
    assert 0 < worst.bare.count < worst.robust_accuracy.count < worst.bare.items


def test_a_detector_alone_promises_half_as_finely() -> None:
    """Two tails: with 500 clean items its smallest p-value is 2 in 501."""
    promises = (Promise.of(0.003, 500), Promise.of(0.05, 500))
    found = alone_at(promises, np.asarray([0.001, 0.04, 0.5]), 500)
    assert found[0.003] is None
    assert found[0.05] == Rate.counted(2, 3)


def readings(prediction: list[int], p_value: list[float]) -> Readings:
    logits = np.eye(3, dtype=np.float32)[prediction]
    p, none = np.asarray(p_value), np.zeros((len(p_value), 0))
    return Readings(logits, none, -p, p, np.zeros(len(p), dtype=np.int64), none)


def test_whom_it_bothers() -> None:
    clean = readings([0, 1, 1, 2], [0.5, 0.001, 0.5, 0.001])
    rows = {row.name: row for row in class_rows(clean, np.asarray([0, 1, 2, 2]), ("cat", "dog"), PROMISES)}
    assert list(rows) == ["the model is right", "the model is wrong", "cat", "dog", "class 2"]
    assert rows["the model is right"].alarms[0.05] == Rate.counted(2, 3)
    assert rows["the model is wrong"].alarms[0.05] == Rate.counted(0, 1)
    assert rows["class 2"].accuracy == Rate.counted(1, 2)
    assert not rows["dog"].bothered(0.05), "one alarm on one item: chance in one of twenty"
    assert not rows["cat"].bothered(0.05)


def test_of_many_classes_that_are_all_at_the_rate_hardly_one_is_bothered() -> None:
    """At 5 %, of 100 classes with three items each some have two alarms in half of all reports."""
    two, many = ClassRow("c", Rate.counted(3, 3), {0.05: Rate.counted(2, 3)}), 100
    assert two.bothered(0.05)
    assert not two.bothered(0.05, many)
    assert ClassRow("c", Rate.counted(60, 60), {0.05: Rate.counted(20, 60)}).bothered(0.05, many)
    generator = np.random.default_rng(0)
    marked = 0
    for _ in range(40):
        counts = generator.binomial(30, 0.05, size=many).tolist()
        rows = [ClassRow("c", Rate.counted(30, 30), {0.05: Rate.counted(count, 30)}) for count in counts]
        marked += any(row.bothered(0.05, many) for row in rows)
    assert marked <= 4


def planned(**costs: tuple[float, int]) -> list[Planned]:
    return [Planned(label, seconds, wanted) for label, (seconds, wanted) in costs.items()]


def test_what_a_cheap_attack_leaves_goes_to_the_dear_ones() -> None:
    attacks = planned(dear=(10.0, 100), cheap=(0.1, 100), other=(10.0, 100))
    sizes = shared_out(attacks, 1010)
    assert sizes == {"cheap": 100, "dear": 50, "other": 50}
    assert sum(sizes[one.label] * one.seconds for one in attacks) <= 1010
    assert shared_out(attacks, 0.0) == {"cheap": 16, "dear": 16, "other": 16}, "some, whatever it takes"
    assert shared_out(planned(broken=(0.0, 16)), 5.0) == {"broken": 16}
