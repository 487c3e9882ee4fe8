"""The digest of code changes when what is computed may change, wherever that is written, and not otherwise."""

from __future__ import annotations

import os
import subprocess
import sys
import threading

import pytest

from guard.offline.work.code import code_digest, digest, source_of

SOURCES = {
    "guard.a": "from guard.b import two\n\ndef one():\n    return two()\n",
    "guard.b": "def two():\n    from guard import c\n    return c.THREE\n",
    "guard.c": "THREE = 3\n",
    "guard.d": "FOUR = 4\n",
}


def digest_with(**changed: str) -> str:
    sources = SOURCES | {f"guard.{name}": source for name, source in changed.items()}
    return digest(["guard.a"], sources.get)


@pytest.mark.parametrize(
    "changed",
    [
        {"a": SOURCES["guard.a"].replace("return two()", "return -two()")},
        {"b": SOURCES["guard.b"].replace("c.THREE", "c.THREE + 1")},
        {"c": "THREE = 3.0\n"},
        {"b": "def two():\n    return 3\n"},
    ],
    ids=["its own", "what it imports", "what a function of that imports", "an import less"],
)
def test_a_change_of_what_is_computed_is_seen(changed):
    assert digest_with(**changed) != digest_with()


@pytest.mark.parametrize(
    "changed",
    [
        {"a": '"""What it is."""\n' + SOURCES["guard.a"].replace("one():\n", 'one():\n    """Two."""\n')},
        {"c": "# the third\nTHREE   =   3  # after the second\n"},
        {"d": "FOUR = 5\n"},
    ],
    ids=["docstrings", "comments and layout", "what nobody imports"],
)
def test_what_computes_nothing_counts_for_nothing(changed):
    assert digest_with(**changed) == digest_with()


def test_relative_imports_and_circles_are_followed():
    sources = {
        "guard.p.a": "from . import b\n",
        "guard.p.b": "from ..q import c\nimport guard.p.a\n",
        "guard.q": "c = 1\n",
    }
    other = {**sources, "guard.q": "c = 2"}
    assert digest(["guard.p.a"], sources.get) != digest(["guard.p.a"], other.get)


def test_modules_that_have_no_source_count_by_name():
    assert source_of("math") is None
    assert source_of("__main__") is None or isinstance(source_of("__main__"), str)
    assert digest(["x"], lambda _: None) != digest(["y"], lambda _: None)


def test_an_attack_depends_on_its_own_method_and_not_on_another():
    pgd, fgsm = (code_digest(f"guard.offline.attacks.methods.{name}") for name in ("pgd", "fgsm"))
    assert pgd != fgsm
    assert code_digest("guard.offline.attacks.methods.pgd") == pgd


def test_threads_may_ask_side_by_side():
    names = [f"guard.offline.attacks.methods.{name}" for name in ("bim", "cw", "deepfool", "frame", "patch", "uap")]
    found: list[str] = []
    threads = [threading.Thread(target=lambda name=name: found.append(code_digest(name))) for name in names]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(found) == sorted(code_digest(name) for name in names)


@pytest.mark.slow
def test_the_digest_is_the_same_in_every_process():
    """Sets of text have another order in each: a constant set in a program must not."""
    program = (
        "from guard.offline.work.code import code_digest, normal\n"
        'one = \'def f(x):\\n    return x in {"a", "b", "c", "d"}\'\n'
        "print(normal(one), code_digest('guard.offline.data.grid'))"
    )
    said = {
        subprocess.run(
            [sys.executable, "-c", program],
            env={**os.environ, "PYTHONHASHSEED": str(seed)},
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        for seed in range(4)
    }
    assert len(said) == 1
