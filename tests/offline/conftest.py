"""One small bundle for all offline tests, trained once for all processes of a run."""

from __future__ import annotations

import io
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from rich.console import Console

from guard.bundle import Bundle
from guard.offline import evaluate as evaluating
from guard.offline.attacks.model import TorchModel
from guard.offline.crafting.crafter import craft
from guard.offline.crafting.shard import CraftSetup
from guard.offline.data.dataset import Dataset
from guard.offline.job.job import Job
from guard.offline.preflight import check as checking
from guard.offline.programs.opened_guard import OpenedGuard
from guard.offline.programs.read import read
from guard.offline.train import train
from guard.offline.training.reopen import Work
from guard.offline.work.progress import Stages
from guard.offline.work.store import ResultStore
from tests.offline import tiny
from tests.once import once


@pytest.fixture(scope="session", autouse=True)
def one_thread() -> Iterator[None]:
    """Training on one thread, whichever was the quicker a moment ago: figures are compared to the last bit."""
    before = torch.get_num_threads()
    with pytest.MonkeyPatch.context() as patch:
        for command in (checking, evaluating):
            patch.setattr(command, "choose_threads", lambda *_: torch.set_num_threads(1))
        torch.set_num_threads(1)
        yield
    torch.set_num_threads(before)


@pytest.fixture(scope="session")
def tiny_job(tmp_path_factory: pytest.TempPathFactory) -> Job:
    """What `tiny_bundle` was asked for; its work directory is kept beside it, and no test changes either."""
    silent = Stages(Console(file=io.StringIO()))
    return tiny.job(once(tmp_path_factory, "tiny", lambda folder: train(tiny.job(folder), silent)))


@pytest.fixture(scope="session")
def tiny_bundle(tiny_job: Job) -> Bundle:
    """Trained, calibrated, compiled and measured as `guard train` does it; about ten seconds, once."""
    return Bundle.open(tiny_job.out)


@pytest.fixture(scope="session")
def tiny_subject(tiny_bundle: Bundle) -> OpenedGuard:
    """The bundle at work, and its torch side."""
    return Work.beside(tiny_bundle).subject(tiny_bundle)


@pytest.fixture(scope="session")
def served_name(tiny_bundle: Bundle) -> str:
    """The model name that clients ask for."""
    return tiny_bundle.manifest.model.name


@pytest.fixture(scope="session")
def clean_inputs(tiny_bundle: Bundle) -> NDArray[np.float32]:
    """Clean wire inputs that the bundle has not seen."""
    unit, _ = tiny.data(60, seed=31)
    return np.asarray(tiny_bundle.manifest.model.input.box.from_unit(unit), dtype=np.float32)


@pytest.fixture(scope="session")
def caught_inputs(
    tiny_job: Job,
    tiny_subject: OpenedGuard,
    tmp_path_factory: pytest.TempPathFactory,
) -> NDArray[np.float32]:
    """Freshly crafted wire inputs that the guard rejects."""
    unit, labels = tiny.data(60, seed=32)
    items = Dataset(unit, labels, np.asarray([f"{i:064d}" for i in range(len(unit))]))
    spec = tiny_subject.classifier.spec
    work = ResultStore(tmp_path_factory.mktemp("fresh"))
    run = CraftSetup(TorchModel(tiny_subject.classifier.graph), spec.input.grid, spec.fingerprint, work, seed=5)
    (crafted,) = craft(run, items, tiny_job.recipe.attacks[:1])
    p = read(tiny_subject.cascade, crafted.attacked).p_value
    found = spec.input.box.from_unit(crafted.attacked[p <= tiny_subject.rates.reject])
    assert len(found) >= 3
    return np.asarray(found, dtype=np.float32)


@pytest.fixture
def stages() -> Stages:
    """Progress that nobody sees."""
    return Stages(Console(file=io.StringIO()))


@pytest.fixture
def problem(tmp_path: Path) -> Path:
    """A folder with the tiny model and data, for a run of one's own."""
    tiny.job(tmp_path)
    return tmp_path
