"""The query memory: searches are seen, clients' streams are not, and one principal's fate touches no other's."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray

from guard.near_copies import Nearness
from guard.queries import memory as memory_module
from guard.queries.evidence import MAX_SCORE
from guard.queries.fingerprint import Fingerprinter
from guard.queries.memory import EXPIRY_S, PRINCIPAL_QUERIES, QueryFinding, QueryMemory
from tests.queries.streams import (
    coordinate_search,
    exposure,
    line_search,
    panning_camera,
    scene,
    snapped,
    still_camera,
)

SHAPE = (3, 32, 32)
Images = NDArray[np.float32]


@pytest.fixture
def generator() -> np.random.Generator:
    return np.random.default_rng(16)


class Asked:
    """A memory that is asked with pictures; time passes by a tenth of a second a request."""

    def __init__(self, shape: tuple[int, ...] = SHAPE, *, streams: bool = True, typical: float | None = None) -> None:
        self.fingerprinter = Fingerprinter(shape, np.random.default_rng(1))
        self.memory = QueryMemory(self.fingerprinter, streams=streams, typical_distance=typical)
        self.now = 0.0

    def see(self, images: Images, principal: str = "a") -> list[QueryFinding]:
        found = []
        for image in images:
            self.now += 0.1
            found.append(self.memory.see(principal, self.fingerprinter.of(image[None]), self.now))
        return found


def pictures(count: int, generator: np.random.Generator) -> Images:
    return snapped(np.stack([scene(generator, size=32) for _ in range(count)]))


def seen_after(found: list[QueryFinding]) -> float:
    return next((number for number, one in enumerate(found, start=1) if one.is_attack), float("inf"))


def squares(start: Images, count: int, generator: np.random.Generator) -> Images:
    """Queries like those of Square: a square of one colour, on what was best so far."""
    best, asked = start, []
    for query in range(count):
        tried = best.copy()
        row, column = generator.integers(0, 20, 2)
        tried[:, row : row + 12, column : column + 12] += generator.choice([-8 / 255, 8 / 255], (3, 1, 1))
        asked.append(snapped(tried))
        best = asked[-1] if query % 5 == 0 else best
    return np.stack(asked)


def test_searches_are_seen_within_fifty_queries(generator: np.random.Generator) -> None:
    start, end = pictures(2, generator)
    simba, _ = coordinate_search(start, 0.1, generator, lambda image: float(image.mean()), count=50)
    lines = np.concatenate([line_search(start, end + generator.normal(0, 0.02, SHAPE), 12) for _ in range(4)])
    assert seen_after(Asked().see(simba)) <= 50
    assert seen_after(Asked().see(squares(start, 50, generator))) <= 50
    assert seen_after(Asked().see(lines)) <= 50


def small_step(kind: str, start: Images, query: int, generator: np.random.Generator) -> Images:
    """A query of a search whose changes no tile shows, or next to none."""
    asked = start.copy()
    if kind == "one value":  # ZOO: a difference quotient of each value, of 1e-4 by default
        asked.flat[query // 2] += np.float32(1e-4 if query % 2 else -1e-4)
    elif kind == "dense signs":  # NES
        asked += np.float32(1e-4) * generator.choice(np.asarray([-1, 1], np.float32), SHAPE)
    elif kind == "beyond the box":
        asked[:, 8:24, 8:24] = 1 + generator.random((3, 16, 16)).astype(np.float32)
    else:
        asked.flat[query] = np.nan if kind == "no number" else -np.inf if query % 2 else -3e38
    return asked


@pytest.mark.parametrize("streams", [True, False])
@pytest.mark.parametrize("kind", ["one value", "dense signs", "beyond the box", "no number", "no end"])
def test_steps_that_no_tile_shows_are_a_searchs(kind: str, generator: np.random.Generator, *, streams: bool) -> None:
    (start,) = pictures(1, generator)
    queries = np.stack([small_step(kind, start, query, generator) for query in range(50)])
    found = Asked(streams=streams).see(queries)
    assert seen_after(found) <= 50
    assert sum(one.repeats for one in found) == 0


@pytest.mark.parametrize("pixels", ["8 bits", "any"])
def test_anothers_rounding_is_a_retry(pixels: str, generator: np.random.Generator) -> None:
    """One picture by two decoders differs in the last bits of float32; of 8 bits they are identical all the same."""
    once = pictures(20, generator) if pixels == "8 bits" else generator.random((20, *SHAPE)).astype(np.float32)
    again = np.nextafter(once, np.float32(2))
    found = Asked().see(np.concatenate([once, once, again]))
    assert max(one.own for one in found) <= 1
    assert sum(one.repeats for one in found) >= (40 if pixels == "8 bits" else 20)


@pytest.mark.parametrize("noise", [0.5 / 255, 2 / 255, 6 / 255])
def test_a_still_camera_is_none_however_long(noise: float, generator: np.random.Generator) -> None:
    found = Asked().see(still_camera(scene(generator), 1000, generator, noise=noise))
    assert seen_after(found) == float("inf")
    assert found[-1].near >= PRINCIPAL_QUERIES - 1  # it is known to be a stream of near-copies


def test_videos_and_light_that_changes_are_none(generator: np.random.Generator) -> None:
    place = scene(generator)
    for pixels in (0.25, 1, 3):
        assert seen_after(Asked().see(panning_camera(place, 300, generator, pixels=pixels))) == float("inf")
    assert seen_after(Asked().see(exposure(place, 300, generator))) == float("inf")


def test_retries_and_duplicates_add_nothing(generator: np.random.Generator) -> None:
    asked = Asked(streams=False)
    once = pictures(20, generator)
    found = asked.see(np.concatenate([once, once, np.repeat(once[:1], 50, axis=0)]))
    assert [one.repeats for one in found] == [0] * 20 + [1] * 70
    assert max(one.own for one in found) < 1


def test_where_no_streams_are_expected_near_copies_alone_are_an_attack(generator: np.random.Generator) -> None:
    frames = still_camera(scene(generator), 50, generator)
    assert 13 <= seen_after(Asked(streams=False).see(frames)) <= 20


def test_unrelated_pictures_have_no_score(generator: np.random.Generator) -> None:
    assert max(one.own for one in Asked(streams=False).see(pictures(200, generator))) < 3


def heart_beats(count: int, generator: np.random.Generator, *, box: float) -> Images:
    """Unrelated heart beats of about 1 mV [item, 1, 256], in a box of so many mV either way."""
    time, found = np.arange(256), []
    for _ in range(count):
        period = generator.uniform(30, 60)
        at = (time - generator.uniform(0, period)) % period - period / 2
        beat = 1.2 * generator.uniform(0.5, 1.5) * np.exp(-((at / 2) ** 2))
        found.append(beat + 0.1 * np.sin(generator.uniform(0, 6) + time / 60) + generator.normal(0, 0.02, 256))
    return ((np.stack(found)[:, None] + box) / (2 * box)).astype(np.float32)


@pytest.mark.parametrize("streams", [True, False])
@pytest.mark.parametrize("box", [5.0, 10.0])
def test_items_that_fill_little_of_their_range_are_no_attack(
    box: float, generator: np.random.Generator, *, streams: bool
) -> None:
    """Nearness is measured against what lies between two clean items, and a search is seen all the same."""
    beats = heart_beats(200, generator, box=box)
    typical = Nearness.of(heart_beats(200, generator, box=box)).distance
    assert typical < 0.05
    asked = Asked((1, 256), streams=streams, typical=typical)
    assert not any(one.is_attack or one.is_shared_attack for one in asked.see(beats))
    queries = np.repeat(beats[:1], 50, axis=0)
    for number, query in enumerate(queries):
        query[0, 4 * number : 4 * number + 4] += np.float32(0.3 / (2 * box))
    assert seen_after(Asked((1, 256), streams=streams, typical=typical).see(queries)) <= 50


def test_one_principals_search_is_not_held_against_another(generator: np.random.Generator) -> None:
    asked = Asked()
    (start,) = pictures(1, generator)
    asked.see(start[None], "victim")
    assert seen_after(asked.see(squares(start, 60, generator), "attacker")) <= 50
    (found,) = asked.see(snapped(start + np.float32(1 / 255))[None], "victim")
    assert not found.is_attack


def test_several_principals_are_seen_together(generator: np.random.Generator) -> None:
    asked = Asked()
    (start,) = pictures(1, generator)
    found = [
        asked.see(query[None], f"p{number % 12}")[0] for number, query in enumerate(squares(start, 100, generator))
    ]
    assert not any(one.is_attack for one in found)  # each has asked 8 times
    assert any(one.is_shared_attack for one in found[:60])


def test_one_that_asks_much_does_not_push_out_anothers(generator: np.random.Generator) -> None:
    asked = Asked()
    (start,) = pictures(1, generator)
    queries = squares(start, 60, generator)
    asked.see(queries[:20], "attacker")
    asked.see(pictures(200, generator), "other")
    assert any(one.is_attack for one in asked.see(queries[20:], "attacker"))


@pytest.mark.parametrize("others", ["", "gateway"])
def test_a_search_among_others_of_one_name_is_seen(others: str, generator: np.random.Generator) -> None:
    """Unnamed callers, or all behind one gateway: 33 unrelated requests lie between two queries of the search."""
    asked = Asked()
    (start,) = pictures(1, generator)
    found = []
    for query in squares(start, 50, generator):
        found += asked.see(query[None], others)
        asked.see(np.kron(generator.random((33, 3, 8, 8)), np.ones((1, 1, 4, 4))).astype(np.float32), others)
    assert list(asked.memory.principals) == [others]
    assert not any(one.is_attack for one in found)
    assert any(one.is_shared_attack for one in found)


def test_streams_of_one_name_are_no_attack_together(generator: np.random.Generator) -> None:
    """Six cameras behind one gateway: what they show together is as calm as what each shows alone."""
    asked = Asked()
    places = [scene(generator) for _ in range(6)]
    kinds = [
        still_camera(places[0], 300, generator),
        still_camera(places[1], 300, generator, noise=0.5 / 255),
        panning_camera(places[2], 300, generator, pixels=0.25),
        panning_camera(places[3], 300, generator, pixels=1),
        panning_camera(places[4], 300, generator, pixels=3),
        exposure(places[5], 300, generator),
    ]
    found = asked.see(np.stack(kinds, axis=1).reshape(-1, *SHAPE), "gateway")
    assert not any(one.is_attack or one.is_shared_attack for one in found)


def test_what_is_old_is_forgotten(generator: np.random.Generator) -> None:
    asked = Asked()
    (start,) = pictures(1, generator)
    queries = squares(start, 60, generator)
    assert asked.see(queries)[-1].is_attack
    asked.now += EXPIRY_S + 60
    (found,) = asked.see(queries[:1], "b")
    assert list(asked.memory.principals) == ["b"]
    assert found.own == found.shared == 0


def test_memory_is_bounded(generator: np.random.Generator, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory_module, "MAX_PRINCIPALS", 50)
    asked = Asked()
    (start,) = pictures(1, generator)
    prints = asked.fingerprinter.of(start[None])
    for number in range(500):
        asked.memory.see(f"p{number}", prints, number / 10)
    assert len(asked.memory.principals) == len(asked.memory.last) == 50
    of_one = next(iter(asked.memory.principals.values())).size_bytes
    assert of_one <= 12_500  # guard/serve/README.md: so many bytes a principal
    assert asked.memory.size_bytes == 50 * of_one + asked.memory.together.size_bytes


@pytest.mark.parametrize("shape", [(1, 8, 8), (3, 33, 47), (1, 1, 1), (2, 100), (1, 5)])
def test_items_of_any_shape(shape: tuple[int, ...], generator: np.random.Generator) -> None:
    images = generator.random((8, *shape)).astype(np.float32)
    images[0], images[1].flat[0], images[2] = 0, np.nan, 1
    asked = Asked(shape)
    assert all(np.isfinite(one.own) for one in asked.see(images))


def test_a_request_is_as_suspicious_as_its_worst_item(generator: np.random.Generator) -> None:
    asked = Asked()
    (start,) = pictures(1, generator)
    queries = np.concatenate([squares(start, 40, generator), pictures(3, generator)])
    found = asked.memory.see("a", asked.fingerprinter.of(queries), 1.0)
    assert found.is_attack
    assert found.own > MAX_SCORE
