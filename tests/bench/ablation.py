"""For maintainers: what each detector and each pass buys, at the same share of clean items given up.

    python -m tests.bench.ablation --model M.onnx --data FIT.npz [--preset standard | --recipe FILE] \
        [--second N.onnx] [--items N] [--tested N] [--attacks NAMES] [--work DIR]
    python -m tests.bench.ablation --quick

Crafts the recipe's attacks on the splits of FIT (kept in DIR, and taken up again), and `spatial` and `frame` to be
tried. Every candidate is fitted on all families and without each, every set of candidates fused anew, in torch, as one
program; the share of the rate for evidence that needs no attacks is chosen for each set, as in a training, by the
families that it has. A threshold gives up exactly 1 % or 5 % of the clean test items, so that rows compare. The first
table takes
one detector or pass away; the second has, for each cost, the set that catches most of its worst attack left out.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch

from guard.fusion import Floats
from guard.offline.attacks.attack import Attack
from guard.offline.attacks.methods.frame import Frame
from guard.offline.attacks.methods.spatial import Spatial
from guard.offline.crafting.crafted_set import CraftedSet
from guard.offline.crafting.stage import learning_items
from guard.offline.data.attacked import Attacked
from guard.offline.data.splits import Split
from guard.offline.evidence.cache import EvidenceCache
from guard.offline.evidence.needs import Need
from guard.offline.findings.attack_names import labels_of
from guard.offline.job.job import Job, open_job
from guard.offline.job.recipe import load_recipe, parse
from guard.offline.second.asked import find_asked
from guard.offline.training.build import Prepared
from guard.offline.training.candidates import Candidate, candidates_of, columns, fitted_heads, option_of
from guard.offline.training.choose_detectors import Option, forwards_of, readable, sets_within
from guard.offline.training.choose_share import FamilyTrial, share_of_others, try_family
from guard.offline.training.family_scores import FamilyScores
from guard.offline.training.fit_fusion import fit_fusion, usual_share
from guard.offline.training.pooled_items import attacked_items, pool
from tests.bench.second import crafted_of

RATES = (0.01, 0.05)
MIN_SIDE_PIXELS = 16  # of images that are turned and framed


@dataclass(frozen=True, eq=False)
class Scores:
    """Scores by every candidate, whose heads saw all families or all but one."""

    clean: Floats  # [item, candidate] of the combiner's split, as the next two
    noisy: Floats
    learned: Attacked[Floats]
    judged: Attacked[Floats]  # of the family that was left out
    test_clean: Floats
    tested: Mapping[str, Floats]  # by attack


@dataclass(frozen=True, eq=False)
class Ablation:
    """Candidates and their scores: with all families, under None, and without each."""

    options: Sequence[Option]
    scores: Mapping[str | None, Scores]
    families: Mapping[str, str]  # of the tested attacks

    def trials(self, places: Sequence[int]) -> Mapping[str, FamilyTrial]:
        """What each share of the rate catches of each family that is left out, by a fusion of these candidates."""
        own = [self.options[place].independent for place in places]
        parts = {family: one for family, one in self.scores.items() if family is not None and len(one.judged)}
        return {
            family: try_family(FamilyScores(family, one.clean, one.noisy, one.learned, one.judged).of(places), own)
            for family, one in parts.items()
        }

    def caught(
        self, places: Sequence[int], without: str | None, trials: Mapping[str, FamilyTrial]
    ) -> dict[str, list[float]]:
        """The share caught of each tested attack at each rate, by a fusion of these candidates."""
        found, chosen = self.scores[without], list(places)
        own = [self.options[place].independent for place in places]
        share = share_of_others(list(trials.values()), trials.get(without or ""), usual_share(own))
        learned = found.learned.seen_as(found.learned.items[:, chosen])
        fusion = fit_fusion(found.clean[:, chosen], found.noisy[:, chosen], learned, own, share)
        limits = np.quantile(
            fusion.risk(found.test_clean[:, chosen]), [1 - rate for rate in RATES], method="inverted_cdf"
        )
        return {
            name: [float((fusion.risk(items[:, chosen]) > limit).mean()) for limit in limits]
            for name, items in found.tested.items()
        }

    def row(self, places: Sequence[int]) -> Row:
        """What a set catches: each attack as seen, and those of learned families as left out."""
        trials = self.trials(places)
        seen = self.caught(places, None, trials)
        left = {family: self.caught(places, family, trials) for family in self.scores if family is not None}
        out = {name: left[family][name] for name, family in self.families.items() if family in left}
        return Row(forwards_of([self.options[place] for place in places]), seen, out)


@dataclass(frozen=True)
class Row:
    """What one set of candidates costs and catches: shares at each rate, by attack."""

    forwards: float
    seen: Mapping[str, list[float]]
    left_out: Mapping[str, list[float]]

    @property
    def worst(self) -> tuple[str, float]:
        """The attack that is caught least when its family was left out, at the larger rate."""
        name = min(self.left_out, key=lambda one: self.left_out[one][-1])
        return name, self.left_out[name][-1]

    @property
    def text(self) -> str:
        seen, left = (np.asarray(list(shares.values())) for shares in (self.seen, self.left_out))
        name, share = self.worst
        return (
            f"{self.forwards:8.2f} {seen[:, 0].mean():6.0%} {seen[:, 1].mean():6.0%} "
            f"{left[:, 0].mean():8.0%} {left[:, 1].mean():6.0%} {share:6.0%}  {name}"
        )


HEAD = f"{'':58} {'forwards':>8} {'seen 1':>6} {'seen 5':>6} {'left 1':>8} {'left 5':>6} {'worst':>6}  at 5 %"


def lines_of(ablation: Ablation) -> Iterator[str]:
    """Yield both tables."""
    options = ablation.options
    passes: dict[Need, float] = {}
    for option in options:
        passes |= option.passes
    every = readable(options, frozenset(passes))
    yield HEAD
    yield f"{'all':58} {ablation.row(every).text}"
    for place in every:
        yield f"{'without ' + options[place].name:58} {ablation.row([one for one in every if one != place]).text}"
    for gone in passes:
        left = readable(options, frozenset(passes) - {gone})
        yield f"{'without the pass ' + repr(gone)[:41]:58} {ablation.row(left).text}"
    yield ""
    yield HEAD
    best: dict[float, tuple[tuple[int, ...], Row]] = {}
    for places in sets_within(options, forwards_of(options)):
        row = ablation.row(places) if places else None
        cost = None if row is None else round(row.forwards, 3)
        if row is not None and cost is not None and (cost not in best or best[cost][1].worst[1] < row.worst[1]):
            best[cost] = (places, row)
    for cost in sorted(best):
        places, row = best[cost]
        text = ", ".join(options[place].text for place in places if options[place].passes) or "the free ones"
        yield f"{text[:58]:58} {row.text}"
        yield from ("    " + text[start : start + 100] for start in range(58, len(text), 100))


def scores_of(
    job: Job,
    prepared: Prepared,
    candidates: Sequence[Candidate],
    tested: Mapping[str, CraftedSet],
    remembered: EvidenceCache,
    without: str | None,
) -> tuple[Scores, list[Option]]:
    """Fit every candidate without a family, and score everything."""
    data, spec = prepared.data, prepared.classifier.spec.input
    others = tuple(found for found in prepared.crafted if str(found.family) != without)
    hidden = attacked_items(tuple(found for found in prepared.crafted if found not in others), data, Split.COMBINER)
    heads = fitted_heads(others, job, prepared, candidates, remembered, lambda _: None)
    learned, noisy = pool(others, data, Split.COMBINER, spec, job.seed)
    clean, test = data.part(Split.COMBINER).images[:], data.part(Split.TEST).images[:]
    found = Scores(
        columns(heads, clean, remembered),
        columns(heads, noisy, remembered),
        learned.seen_as(columns(heads, learned.items, remembered)),
        hidden.seen_as(columns(heads, hidden.items, remembered)),
        columns(heads, test, remembered),
        {name: columns(heads, one.attacked, remembered) for name, one in tested.items() if len(one)},
    )
    return found, [option_of(one, head.detector) for one, head in zip(candidates, heads, strict=True)]


def measure(job: Job, items: int, tried: int) -> Ablation:
    """Craft, fit and score; print how far it is."""
    classifier, data = open_job(job)
    job = job.fitting(classifier)
    job.work.begin()

    def say(*words: object) -> None:
        print(*words, flush=True)

    job = find_asked(job, classifier, data, say).trained(classifier, data, say, lambda *_: None)
    images = data.images.ndim == 4 and min(data.item_shape[1:]) >= MIN_SIDE_PIXELS
    more: list[Attack] = [Spatial(samples=16), Frame(budget=0.12)] if images else []
    attacks = [*job.recipe.attacks, *job.recipe.left_out, *more]
    learned = crafted_of(job, classifier, learning_items(data), job.recipe.attacks, items)
    made = crafted_of(job, classifier, data.part(Split.TEST), attacks, tried)
    tested = dict(zip(labels_of(attacks, classifier.spec.input.grid), made, strict=True))
    say("learned from", ", ".join(f"{one.attack[:24]} {len(one)}" for one in learned))
    say("tried on", ", ".join(f"{name} {len(one)}" for name, one in tested.items()))
    prepared, remembered = Prepared(classifier, data, tuple(learned)), EvidenceCache(classifier)
    candidates = candidates_of(job.recipe, [tap.name for tap in classifier.taps])
    scores: dict[str | None, Scores] = {}
    options: list[Option] = []
    for without in (None, *dict.fromkeys(str(one.family) for one in learned)):
        scores[without], options = scores_of(job, prepared, candidates, tested, remembered, without)
        say("fitted", f"without {without}" if without else "on all")
    return Ablation(options, scores, {name: str(one.family) for name, one in tested.items() if len(one)})


def quick() -> Ablation:
    """Run it all on the tests' tiny images: no figures to quote."""
    from tests.offline import tiny

    detectors = [one for one in tiny.RECIPE["detector"] if one["name"] != "saliency_classifier"]
    with tempfile.TemporaryDirectory() as name:
        job = tiny.job(Path(name), recipe=parse({**tiny.RECIPE, "detector": detectors}, "quick"), threads=1)
        return measure(job, 100, 60)


def main(arguments: Sequence[str]) -> None:
    if list(arguments) == ["--quick"]:
        print("\n".join(lines_of(quick())))
        return
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--test", type=Path)
    parser.add_argument("--preset", default="standard")
    parser.add_argument("--recipe", type=Path, help="a TOML file of your own instead, as `guard train` takes it")
    parser.add_argument("--second", action="append", default=[])
    parser.add_argument("--items", type=int, default=330, help="that each attack is tried on, to learn from")
    parser.add_argument("--tested", type=int, default=200, help="that each attack is tried on, to be measured")
    parser.add_argument("--attacks", default="", help="of the recipe's, by name, separated by commas; all unless given")
    parser.add_argument("--work", type=Path, default=Path("ablation-bench"))
    given = parser.parse_args(arguments)
    recipe, names = load_recipe(given.preset, given.recipe), tuple(filter(None, given.attacks.split(",")))
    recipe = replace(recipe, attacks=tuple(one for one in recipe.attacks if not names or one.name in names))
    job = Job(
        given.model, given.data, given.work, recipe, test=given.test, second=tuple(given.second), threads=1
    )  # fmt: skip
    print("\n".join(lines_of(measure(job, given.items, given.tested))))


if __name__ == "__main__":
    torch.set_num_threads(1)
    main(sys.argv[1:])
