"""Tables as a job's data: columns are as the user says, in training as in evaluation, and a bad cell ends with 3."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from guard import cli
from guard.errors import DataError
from guard.offline.data.splits import Split
from guard.offline.job.job import Job, open_job
from guard.offline.training.reopen import PutAside, Work, write_work
from tests.offline import tiny

ROWS = 60
NAMES = ("ant", "bee", "cat")


def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(2, 8), nn.ReLU(), nn.Linear(8, 3))


def table(file: Path, header: str = "id,width,kind,height", names: tuple[str, ...] = NAMES, seed: int = 0) -> Path:
    values = np.random.default_rng(seed).random((ROWS, 2))
    rows = [f"{row},{a},{names[row % len(names)]},{b}" for row, (a, b) in enumerate(values)]
    file.write_text("\n".join([header, *rows]))
    return file


def job(folder: Path, **settings: Any) -> Job:
    wanted = {"label_column": "kind", "drop_columns": ("id",)} | settings
    data = table(folder / "data.csv")
    return Job(model=f"{__name__}:network", data=data, out=folder / "bundle", recipe=tiny.recipe(), **wanted)


def test_a_table_is_a_jobs_data(tmp_path: Path) -> None:
    classifier, data = open_job(job(tmp_path))
    assert data.images.shape == (ROWS, 2)
    assert data.labels.tolist() == [row % 3 for row in range(ROWS)]
    assert classifier.spec.output.labels == NAMES
    assert "columns left out, as asked: 'id'" in data.notes


def test_columns_of_held_out_tables_are_found_by_name(tmp_path: Path) -> None:
    test = table(tmp_path / "test.csv", names=("cat",), seed=1)
    _, data = open_job(job(tmp_path, test=test))
    held_out = data.part(Split.TEST)
    assert set(held_out.labels.tolist()) == {2}
    rows = [row.split(",") for row in test.read_text().splitlines()]
    test.write_text("\n".join(",".join((row[3], row[0], row[1], row[2])) for row in rows))
    _, moved = open_job(job(tmp_path, test=test))
    assert np.array_equal(moved.part(Split.TEST).images, held_out.images)
    table(test, "id,hight,kind,width", seed=1)
    with pytest.raises(DataError, match=r"test\.csv has no column 'height', .*; did you mean 'hight'"):
        open_job(job(tmp_path, test=test))


def test_a_held_out_table_may_sweep_a_known_feature(tmp_path: Path) -> None:
    wanted, test = job(tmp_path, test=tmp_path / "test.csv", high=(100.0,)), tmp_path / "test.csv"
    header, *rows = [line.split(",") for line in wanted.data.read_text().splitlines()]
    wide = [[one[0], str(99 * float(one[1])), *one[2:]] for one in rows]
    swept = [[one[0], str(20 + row), *one[2:]] for row, one in enumerate(rows)]
    for file, every in ((wanted.data, wide), (test, swept)):
        file.write_text("\n".join(",".join(one) for one in [header, *every]))
    held_out = open_job(wanted)[1].part(Split.TEST)
    assert sorted(np.rint(held_out.images[:][:, 0] * 100).tolist()) == [20 + row for row in range(ROWS)]
    with pytest.raises(DataError, match="'width' numbers the rows"):
        open_job(replace(wanted, data=test, test=None))


def test_more_names_than_classes_and_a_table_without_labels(tmp_path: Path) -> None:
    wanted = job(tmp_path)
    table(wanted.data, names=(*NAMES, "dog"))
    with pytest.raises(DataError, match=r"4 names of classes \(ant, bee, cat, dog\); the model has 3 classes"):
        open_job(wanted)
    with pytest.raises(DataError, match=r"no labels; .*--label-column"):
        open_job(replace(wanted, label_column=None, drop_columns=("id", "kind")))


def test_evaluation_reads_columns_as_training_did(tmp_path: Path) -> None:
    wanted = job(tmp_path)
    classifier, data = open_job(wanted)
    write_work(wanted, data)
    bundle: Any = SimpleNamespace(path=wanted.out, manifest=SimpleNamespace(model=classifier.spec, programs=()))
    work = Work.beside(bundle)
    assert work.job_of(bundle).choice == wanted.choice
    unseen = table(tmp_path / "unseen.csv", names=("cat",), seed=2)
    held_out, aside = work.held_out(bundle, unseen)
    assert (len(held_out), aside, set(held_out.labels.tolist())) == (ROWS, PutAside(0), {2})
    table(unseen, "id,width,class,height", names=("bee",), seed=2)
    with pytest.raises(DataError, match="no column 'kind'"):
        work.held_out(bundle, unseen)
    choice = replace(wanted.choice, label="class")
    assert set(work.held_out(bundle, unseen, choice=choice)[0].labels.tolist()) == {1}


def complaint(capsys: pytest.CaptureFixture[str], command: str, data: Path, *more: str) -> tuple[int, str]:
    code = cli.run([command, "--model", f"{__name__}:network", "--data", str(data), *more])
    return code, capsys.readouterr().err


@pytest.mark.parametrize(
    ("cell", "words"),
    [
        ("", ("row 5 (line 6)", "'width'", "missing")),
        ("red", ("row 5 (line 6)", "'width'", "'red'", "a number")),
        ("0.5,0.5", ("row 5 (line 6)", "5 values", "wanted 4")),
    ],
)
def test_a_bad_cell_ends_with_3(
    cell: str, words: tuple[str, ...], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    lines = table(tmp_path / "data.csv").read_text().splitlines()
    number, _, kind, height = lines[5].split(",")
    (tmp_path / "data.csv").write_text("\n".join([*lines[:5], f"{number},{cell},{kind},{height}", *lines[6:]]))
    code, said = complaint(capsys, "check", tmp_path / "data.csv", "--label-column", "kind", "--drop-column", "id")
    assert all(word in said for word in ("data.csv", *words)), said
    assert code == 3


def test_a_missing_package_is_named_with_its_extra(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in [name for name in sys.modules if name.partition(".")[0] == "pyarrow"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    (tmp_path / "data.parquet").write_bytes(b"PAR1")
    code, said = complaint(capsys, "train", tmp_path / "data.parquet", "--out", str(tmp_path / "bundle"))
    assert (code, "needs pyarrow; install inference-guard[cpu,tables]" in said) == (2, True), said
