"""Features as values: what each may be, exactly so in unit space and back, and as a manifest keeps them."""

from __future__ import annotations

import json
from dataclasses import asdict, replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from guard.errors import DataError
from guard.feature_values import check_values, feature_text, within
from guard.features import (
    BINARY,
    CATEGORICAL,
    INTEGER,
    NUMERIC,
    Feature,
    box_of,
    features_from,
    names_of,
    only_names,
    unnamed,
)
from guard.manifest import InputSpec
from guard.value_box import ValueBox
from guard.value_faults import value_fault

AGE = Feature("age", INTEGER, 17, 90, step=1, immutable=True, open_low=True, open_high=True)
HOURS = Feature("hours", NUMERIC, 0, 60, step=0.25)
TRADE = Feature("trade", CATEGORICAL, 0, 2, categories=(0, 1, 2), words=("farmer", "nurse", "smith"))
RED, GREEN = (Feature(name, BINARY, 0, 1, categories=(0, 1), group="colour") for name in ("red", "green"))
FEATURES = (AGE, HOURS, TRADE, RED, GREEN)
ROW = [40.0, 2.25, 1.0, 0.0, 1.0]


@settings(max_examples=60)
@given(st.integers(1, 1500), st.integers(-1000, 1000), st.data())
def test_whole_numbers_and_categories_survive_unit_space(span: int, low: int, data: st.DataObject) -> None:
    """As torch computes it in a program: an embedding looked up there must be the one that was meant."""
    kind = data.draw(st.sampled_from([INTEGER, CATEGORICAL]))
    codes = tuple(float(low + code) for code in range(span + 1))
    categories = codes if kind == CATEGORICAL else ()
    feature = Feature("x", kind, low, low + span, step=None if categories else 1.0, categories=categories)
    (least,), (most,) = box_of([feature])
    wire = np.asarray(codes, dtype=np.float32)[:, None]
    box = ValueBox((least,), (most,), 1, "NC", features=(feature,))
    unit = box.to_unit(wire)
    assert unit.min() >= 0
    assert unit.max() <= 1
    back = np.float32(least) + unit * (np.float32(most) - np.float32(least))
    assert np.array_equal(back, wire)
    assert np.array_equal(box.from_unit(unit), wire)


@settings(max_examples=40)
@given(st.integers(1, 1500), st.integers(-1000, 1000), st.integers(1, 9))
def test_whole_numbers_near_a_range_that_was_found_survive_unit_space(span: int, low: int, step: int) -> None:
    feature = Feature("x", INTEGER, low, low + span * step, step=float(step), open_low=True, open_high=True)
    (least,), (most,) = box_of([feature])
    reach = min(span * step, 4096)
    wire = np.arange(low - reach, low + span * step + reach + 1, dtype=np.float32)
    if feature.span <= 4096:
        unit = (wire - np.float32(least)) / (np.float32(most) - np.float32(least))
        assert np.array_equal(np.float32(least) + unit * (np.float32(most) - np.float32(least)), wire)


@pytest.mark.parametrize(("value", "fault"), [(-1.0, True), (0.0, False), (5.0, False), (6.0, True)])
def test_a_number_that_the_model_cannot_look_up_is_a_fault_of_the_input(value: float, fault: bool) -> None:  # noqa: FBT001
    feature = Feature("row", INTEGER, 1, 4, step=1, open_low=True, open_high=True, least=0, most=5)
    spec = InputSpec("x", "FP32", (1,), (1.0,), (4.0,), None, "NC", (feature,))
    wire = np.asarray([[2.0], [value]], np.float32)
    found = value_fault(wire, spec)
    wanted = "wanted a number from 0 on up to 5, as the model takes it"
    assert found == (f"input 'x': item 1 has {value:g} for 'row'; {wanted}" if fault else None)
    if fault:
        with pytest.raises(DataError, match=r"row 2, column 'row': .* as the model takes it"):
            check_values(wire, [feature], "new.csv")
    assert value_fault(wire, replace(spec, features=(replace(feature, least=None, most=None),))) is None


def test_a_manifest_keeps_features() -> None:
    raw = json.loads(json.dumps([asdict(feature) for feature in FEATURES]))
    assert features_from(raw) == FEATURES
    for broken in ({"kind": "colour"}, {"high": 0.0, "low": 0.0}, {"words": ["one"]}):
        with pytest.raises((ValueError, TypeError, KeyError)):
            features_from([{**raw[2], **broken}])


def test_names_alone_say_nothing_of_the_values() -> None:
    plain = tuple(Feature(name, NUMERIC, 0, 1) for name in ("a", "b"))
    assert only_names(plain)
    assert names_of(plain) == ("a", "b")
    assert not only_names((*plain, AGE))
    assert not only_names((replace(plain[0], cost=2.0),))
    assert names_of(tuple(replace(AGE, name=name) for name in unnamed(3))) == ()


@pytest.mark.parametrize(
    ("place", "value", "words"),
    [
        (0, 40.5, ("row 2", "'age'", "'40.5'", "a whole number")),
        (1, 60.25, ("row 2", "'hours'", "up to 60")),
        (2, 3.0, ("row 2", "'trade'", "farmer, nurse, smith")),
        (2, 0.5, ("row 2", "'trade'", "'0.5'")),
        (3, 1.0, ("row 2", "2 of the columns 'red', 'green' at 1", "'colour'")),
        (4, 0.0, ("row 2", "0 of the columns")),
        (4, 2.0, ("row 2", "'green'", "'2'")),
    ],
)
def test_a_value_that_no_feature_may_have_is_named(place: int, value: float, words: tuple[str, ...]) -> None:
    values = np.asarray([ROW, ROW], dtype=np.float32)
    assert check_values(values, FEATURES, "data.csv") == []
    values[1, place] = value
    with pytest.raises(DataError) as caught:
        check_values(values, FEATURES, "data.csv")
    assert all(word in str(caught.value) for word in ("data.csv", *words)), caught.value


def test_what_lies_beyond_a_found_range_is_said_and_cut() -> None:
    values = np.asarray([ROW, [95.0, 2.3, 2.0, 1.0, 0.0]], dtype=np.float32)
    (note,) = check_values(values, FEATURES, "data.csv")
    assert "'age' from 40 to 95, not 17 to 90" in note
    assert within(values, FEATURES)[1].tolist() == [90.0, 2.25, 2.0, 1.0, 0.0]
    with pytest.raises(DataError, match=r"row 2, column 'hours': '2\.3'; wanted a number .* in steps of 0\.25"):
        check_values(values, FEATURES, "data.csv", steps=True)


def test_a_feature_in_words() -> None:
    assert feature_text(AGE) == "age: integer, 17 to 90, immutable"
    assert feature_text(TRADE) == "trade: categorical, farmer, nurse, smith"
    assert feature_text(replace(HOURS, cost=2)) == "hours: numeric, 0 to 60 in steps of 0.25, cost 2"
    assert feature_text(RED) == "red: binary, 0, 1, in the one-hot group 'colour'"
