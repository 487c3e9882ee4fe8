"""One small bundle for all offline tests, trained once a session."""

from __future__ import annotations

import io
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from rich.console import Console

from guard.bundle import Bundle
from guard.offline.job import Job
from guard.offline.progress import Stages
from guard.offline.reopen import Work
from guard.offline.subject import Subject
from guard.offline.train import train
from tests.offline import tiny


@pytest.fixture(scope="session", autouse=True)
def one_thread() -> Iterator[None]:
    """Training on one thread, whichever was the quicker a moment ago: figures are compared to the last bit."""
    before = torch.get_num_threads()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("guard.offline.train.choose_threads", lambda *_: torch.set_num_threads(1))
        torch.set_num_threads(1)
        yield
    torch.set_num_threads(before)


@pytest.fixture(scope="session")
def tiny_job(tmp_path_factory: pytest.TempPathFactory) -> Job:
    """What `tiny_bundle` was asked for; its work directory is kept beside it."""
    return tiny.job(tmp_path_factory.mktemp("tiny"))


@pytest.fixture(scope="session")
def tiny_bundle(tiny_job: Job) -> Bundle:
    """Trained, calibrated, compiled and measured as `guard train` does it; about ten seconds, once."""
    return train(tiny_job, Stages(Console(file=io.StringIO())))


@pytest.fixture(scope="session")
def tiny_subject(tiny_bundle: Bundle) -> Subject:
    """The bundle at work, and its torch side."""
    return Work.beside(tiny_bundle).subject(tiny_bundle)


@pytest.fixture
def stages() -> Stages:
    """Progress that nobody sees."""
    return Stages(Console(file=io.StringIO()))


@pytest.fixture
def problem(tmp_path: Path) -> Path:
    """A folder with the tiny model and data, for a run of one's own."""
    tiny.job(tmp_path)
    return tmp_path
