"""Features files: what a block may say, and what is refused with the nearest."""

from __future__ import annotations

import re
from dataclasses import asdict
from pathlib import Path

import pytest

from guard.errors import ConfigError
from guard.offline.job.feature_file import Stated, load_features, restored

TEXT = """
[[feature]]
name = "age"
kind = "integer"
immutable = true
low = 17
high = 90

[[feature]]
name = "trade"
categories = ["farmer", "nurse"]
cost = 0.5

[[feature]]
name = "colour"
group = ["red", "green"]
"""


def load(folder: Path, text: str) -> tuple[Stated, ...]:
    (folder / "features.toml").write_text(text, encoding="utf-8")
    return load_features(folder / "features.toml")


def test_blocks_are_read_and_restored(tmp_path: Path) -> None:
    found = load(tmp_path, TEXT)
    assert found == (
        Stated("age", "integer", immutable=True, low=17.0, high=90.0),
        Stated("trade", categories=("farmer", "nurse"), cost=0.5),
        Stated("colour", group=("red", "green")),
    )
    assert found[1].words == ("farmer", "nurse")
    assert restored([asdict(one) for one in found]) == found
    assert load_features(None) == ()


@pytest.mark.parametrize(
    ("block", "words"),
    [
        ("", ("no [[feature]] block",)),
        ('[[feture]]\nname = "a"', ("unknown key 'feture'", "[[feature]]")),
        ("[[feature]]\nkind = 'integer'", ("block 1", "name = None")),
        ("[[feature]]\nname = 'a'\nimutable = true", ("'a'", "'imutable'", "did you mean 'immutable'?")),
        ("[[feature]]\nname = 'a'\nkind = 'integral'", ("'integral'", "did you mean 'integer'?")),
        ("[[feature]]\nname = 'a'\nkind = 3", ("kind = 3", "known: 'numeric'")),
        ("[[feature]]\nname = 'a'\nimmutable = 'yes'", ("immutable = 'yes'", "true or false")),
        ("[[feature]]\nname = 'a'\nlow = '1'", ("low = '1'", "finite number")),
        ("[[feature]]\nname = 'a'\nlow = 2\nhigh = 1", ("low = 2 and high = 1",)),
        ("[[feature]]\nname = 'a'\nstep = 0", ("step = 0", "above zero")),
        ("[[feature]]\nname = 'a'\ncost = inf", ("cost = inf", "finite")),
        ("[[feature]]\nname = 'a'\nlow = 0\nhigh = 1\nstep = 0.3", ("3.33333 steps", "whole number of steps")),
        ("[[feature]]\nname = 'a'\nkind = 'integer'\nlow = 0.5", ("low = 0.5", "whole number")),
        ("[[feature]]\nname = 'a'\ncategories = ['x']", ("categories = ['x']", "two or more")),
        ("[[feature]]\nname = 'a'\ncategories = ['x', 1]", ("categories", "words, or of their numbers")),
        ("[[feature]]\nname = 'a'\ncategories = ['x', 'x']", ("'x' stands there twice",)),
        ("[[feature]]\nname = 'a'\nkind = 'binary'\ncategories = [1, 2, 3]", ("3 categories", "wanted two")),
        ("[[feature]]\nname = 'a'\nkind = 'numeric'\ncategories = [1, 2]", ("beside kind = 'numeric'",)),
        ("[[feature]]\nname = 'a'\nkind = 'categorical'\nlow = 1", ("low of categories",)),
        ("[[feature]]\nname = 'a'\ngroup = ['x']", ("group = ['x']", "two or more")),
        ("[[feature]]\nname = 'a'\ngroup = ['x', 'y']\nstep = 1", ("step beside group",)),
        ("[[feature]]\nname = 'a'\n[[feature]]\nname = 'a'", ("'a' stands in 2 places",)),
        ("[[feature]]\nname = 'a'\n[[feature]]\nname = 'b'\ngroup = ['a', 'c']", ("'a' stands in 2 places",)),
        ("[[feature]\n", ("not valid TOML",)),
    ],
)
def test_what_cannot_be_meant_is_refused(tmp_path: Path, block: str, words: tuple[str, ...]) -> None:
    with pytest.raises(ConfigError) as caught:
        load(tmp_path, block)
    assert all(word in str(caught.value) for word in ("features.toml", *words)), caught.value


def test_the_example_of_the_training_reference_is_read(tmp_path: Path, root: Path) -> None:
    page = (root / "guard/offline/README.md").read_text(encoding="utf-8")
    (block,) = [text for text in re.findall(r"```toml\n(.*?)```", page, flags=re.DOTALL) if "[[feature]]" in text]
    age, trade, colour = load(tmp_path, block)
    assert age.immutable
    assert trade.words == ("farmer", "nurse", "smith")
    assert colour.group == ("red", "green", "blue")
