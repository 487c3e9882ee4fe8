"""Second networks that a job asks for: those that were brought, one that is trained, or none.

Rule 1: what is wrong with them is found before anything is crafted, and what is left out is said.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

from guard.data_file import Reading
from guard.errors import ConfigError, ModelError
from guard.offline.data.dataset import Dataset
from guard.offline.data.splits import Split
from guard.offline.evidence.kinds.second import SecondNetwork
from guard.offline.job.accuracy import check_accuracy
from guard.offline.job.job import Job
from guard.offline.job.second_settings import ASKING
from guard.offline.model.classifier import Classifier
from guard.offline.second.answers import check_answers, checked_items
from guard.offline.second.brought import Brought, as_network, brought_networks, check_classes, open_brought
from guard.offline.second.kept import keep_lessons, keep_networks
from guard.offline.second.lessons import read_lessons
from guard.offline.second.same_model import is_same_model
from guard.offline.second.training import NAME, Progress, Training, cost_text

ABOUT = "second"  # the word before each line
TRAINED = "the second network that was trained"
Say = Callable[[str, str], None]


@dataclass(frozen=True, eq=False)
class SecondsAsked:
    """Second networks of a job: those that are there, and the training of the one that is not."""

    job: Job
    brought: tuple[Brought, ...] = ()
    there: tuple[SecondNetwork, ...] = ()
    training: Training | None = None

    @property
    def forecast(self) -> Job:
        """The job as it will be, with an untrained network in the place of the trained one."""
        untrained = (self.training.untrained,) if self.training is not None else ()
        return self.asking((*self.there, *untrained))

    def asking(self, networks: tuple[SecondNetwork, ...]) -> Job:
        """Return the job whose detectors ask these networks."""
        return replace(self.job, recipe=self.job.recipe.asking(networks))

    def trained(self, classifier: Classifier, data: Dataset, say: Callable[[str], None], progress: Progress) -> Job:
        """Train what is to be trained, keep all, and return the job whose detectors ask them. Raises ModelError."""
        networks = self.there
        if self.training is not None:
            found = self.training.run(say, progress)
            answers = check_answers(
                TRAINED, found.network, classifier, data, Split.COMBINER
            )  # heads' items it may know
            say(f"{answers}, {cost_text(found.forwards)}")
            networks = (*networks, replace(found, about=f"{found.about}; {answers}"))
        keep_networks(self.job.work, networks, self.brought)
        keep_lessons(self.job.work, None if self.training is None else self.training.lessons.hashes)
        return self.asking(networks)


def find_asked(
    job: Job, classifier: Classifier, data: Dataset, say: Say, reading: Reading | None = None
) -> SecondsAsked:
    """Open and check what was brought, read what will be learned, and say what is left out.

    Raises:
        ConfigError: networks that no detector asks.
        DataError, ModelError: they cannot be used.
    """
    brought = brought_networks(job.second, job.second_bounds)
    wanted = [flag for flag, given in (("--second", job.second), ("--second-data", job.second_data)) if given]
    if wanted and not job.recipe.asks_second:
        raise ConfigError(
            f"{' and '.join(wanted)} would go unused: recipe {job.recipe.name} has no detector that asks a second "
            f"network; wanted [[detector]] blocks of {' or '.join(ASKING)}, as in preset standard"
        )
    if twice := [
        name for name in (one.name for one in brought) if [b.name for b in brought].count(name) > 1 or name == NAME
    ]:
        raise ConfigError(f"--second: two networks would be called {twice[0]!r}; rename one of the files")
    there = tuple(opened_network(one, job, classifier, data, say) for one in brought)
    training = None
    if job.second_data is not None:
        checked_items(TRAINED, data, Split.COMBINER)
        lessons = read_lessons(job, classifier, data, reading)
        for note in lessons.notes:
            say(ABOUT, note)
        say(ABOUT, lessons.in_words)
        model = replace(classifier, answering=None)  # a closed model may have no answers to these items
        say(ABOUT, f"of these items {check_accuracy(model, lessons.learned, accepted=job.accept_accuracy)}")
        training = Training(job, classifier, lessons)
        cost = cost_text(training.untrained.forwards)
        say(ABOUT, f"a network ({job.recipe.second.kind}) will be trained on them, {training.time}; it costs {cost}")
    elif not wanted and job.recipe.asks_second:
        left = " and ".join(entry["name"] for entry in job.recipe.detectors if entry["name"] in ASKING)
        say(
            ABOUT,
            f"left out: {left}, for want of a second network; hand over the model's own training data "
            "(--second-data), or another model of the same classes (--second)",
        )
    return SecondsAsked(job, brought, there, training)


def opened_network(brought: Brought, job: Job, classifier: Classifier, data: Dataset, say: Say) -> SecondNetwork:
    """Open, check and describe one network that was brought. Raises ModelError."""
    spec = classifier.spec.input
    opened = open_brought(brought, classifier.item_shape, (spec.low, spec.high))
    check_classes(brought, opened, classifier)
    if classifier.spec.fingerprint == opened.fingerprint:
        raise ModelError(
            f"--second {brought.model} is the guarded model itself ({job.model}), and would agree with it always; "
            "wanted another network"
        )
    answers = check_answers(f"--second {brought.model}", opened.adapted, classifier, data)
    if answers.agrees == 1 and is_same_model(opened.adapted, classifier, data, job.seed):
        raise ModelError(
            f"--second {brought.model} gives the logits of the guarded model ({job.model}) on clean and noisy items, "
            "as another export of it does, and would agree with it always; wanted another network"
        )
    found = as_network(brought, opened, classifier, f"brought, {opened.in_words}; {answers}")
    say(ABOUT, f"{brought.name}: {opened.in_words}; {answers}; it costs {cost_text(found.forwards)}")
    return found
