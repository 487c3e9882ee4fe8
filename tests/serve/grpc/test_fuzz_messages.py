"""A short differential fuzz of what the guard reads in a request, against protobuf and numpy; and of its own parts.

The long run is `python -m tests.bench.fuzz_messages`.
"""

from __future__ import annotations

from collections import Counter
from random import Random
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from guard.manifest import InputSpec
from tests.serve.reference_reading import judge, request_class
from tests.serve.wire_fields import LENGTH, SPECS, VARINT, Field, encoded, valid, varint
from tests.serve.wire_mutations import NAMES, mutated

EXAMPLES = 2_000
MIN_ACCEPTED = 0.10  # share; below it the comparison says little
RARE_EXAMPLES = 200  # of each mutation alone


@st.composite
def messages(draw: Any) -> tuple[bytes, InputSpec]:
    """A request's bytes, and whom they are for."""
    spec = draw(st.sampled_from(SPECS))
    names = draw(st.lists(st.sampled_from(NAMES), max_size=4))
    return mutated(spec, names, draw(st.randoms(note_method_calls=False, use_true_random=False))), spec


def test_what_is_accepted_is_what_a_model_server_reads() -> None:
    outcomes: Counter[str] = Counter()

    @settings(max_examples=EXAMPLES)
    @given(messages())
    def law(message: tuple[bytes, InputSpec]) -> None:
        wire, spec = message
        found = judge(wire, spec)
        outcomes[found.outcome] += 1
        assert found.fault is None, (found, spec, wire.hex())

    law()
    assert outcomes["accepted"] >= MIN_ACCEPTED * outcomes.total(), outcomes


@pytest.mark.parametrize("name", NAMES)
def test_each_mutation_alone(name: str) -> None:
    """By a plain generator, as the long run draws: where hypothesis draws little of one, this does not."""
    for number in range(RARE_EXAMPLES):
        rng = Random(f"{name}/{number}")
        spec = rng.choice(SPECS)
        wire = mutated(spec, [name], rng)
        found = judge(wire, spec)
        assert found.fault is None, (found, spec, wire.hex())


@pytest.mark.parametrize("spec", SPECS, ids=lambda spec: f"{spec.datatype}-{spec.layout}-{len(spec.shape)}")
def test_what_nothing_has_changed_is_accepted(spec: InputSpec) -> None:
    for number in range(50):
        wire = encoded(valid(spec, Random(number)))
        assert judge(wire, spec).outcome == "accepted", wire.hex()
        assert len(request_class().FromString(wire).inputs) == 1


def test_fields_to_the_byte() -> None:
    assert encoded([Field(1, LENGTH, b"tiny")]) == b"\x0a\4tiny"
    assert encoded([Field(1, LENGTH, b"tiny", spare=1)]) == b"\x8a\0\x84\0tiny"
    assert encoded([Field(5, LENGTH, [Field(3, VARINT, 300)], times=2)]) == b"\x2a\3\x18\xac\2" * 2
    assert varint(2**64 - 1) == b"\xff" * 9 + b"\1"
    assert varint(1, 9) == b"\x81" + b"\x80" * 8 + b"\0"
