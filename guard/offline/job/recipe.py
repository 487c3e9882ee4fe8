"""A recipe: which detectors in which program, which attacks to learn from, as data that a user can copy."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, TypeVar

from guard.errors import ConfigError
from guard.offline.attacks.adapter import installed
from guard.offline.attacks.attack import Attack
from guard.offline.attacks.table import build_attack
from guard.offline.data.input_kind import InputKind
from guard.offline.denoisers.denoiser import Denoiser
from guard.offline.denoisers.table import build_denoiser
from guard.offline.detectors.detector import Detector
from guard.offline.detectors.table import build_detector
from guard.offline.job.second_settings import ASKING, SecondSettings, second_settings
from guard.offline.job.toml_files import content_of, names_in, own_text, users_text
from guard.offline.model.classifier import Classifier

TABULAR = "tabular"
PROGRAMS = ("screen", "interpret")
PartT = TypeVar("PartT")
FITTED_ITEMS = 1000  # verified items of each attack that a guard is fitted on, unless the recipe says another number
KEYS = {
    *("description", "inputs", "items", "cascade", "cost"),
    *("detector", "attack", "left_out", "repair", "adaptive", "second"),
}


@dataclass(frozen=True)
class Recipe:
    """A recipe's settings as the TOML file has them; no detector is built until the model's taps are known."""

    name: str
    description: str
    detectors: tuple[Mapping[str, Any], ...]
    attacks: tuple[Attack, ...]  # learned from, and evaluated
    left_out: tuple[Attack, ...]  # only evaluated
    repairs: tuple[Denoiser, ...]
    adaptive_budgets: tuple[float, ...]
    tabular: bool  # for tables of features of different kinds
    raw: Mapping[str, Any]
    cost: float | None = None  # forwards on clean traffic that it is made for; `guard bench` holds it to them
    cascade: bool = False  # one program after the other, the first rejecting early; else one program for all
    skipped: tuple[str, ...] = ()  # parts that do not apply to the kind of input, each with the reason
    second: SecondSettings = field(default_factory=SecondSettings)
    items: int = FITTED_ITEMS  # verified items of each attack, to fit on

    @property
    def asks_second(self) -> bool:
        """Whether a detector asks second networks."""
        return any(entry["name"] in ASKING for entry in self.detectors)

    def asking(self, networks: Sequence[Any]) -> Recipe:
        """Return the recipe whose detectors ask these second networks; without any, those detectors are left out.

        Raises ConfigError where no detector is left.
        """
        entries = [
            {**entry, "networks": tuple(networks)} if entry["name"] in ASKING else entry
            for entry in self.detectors
            if networks or entry["name"] not in ASKING
        ]
        if not entries:
            raise ConfigError(
                f"recipe {self.name} has no detector but {' and '.join(ASKING)}, which ask a second network; bring "
                "one with --second, or let one be trained with --second-data"
            )
        return replace(self, detectors=tuple(entries))

    def having(self, blocks: Sequence[Mapping[str, Any]]) -> Recipe:
        """Return the recipe with these [[detector]] blocks in place of its own; they ask the same second networks."""
        networks = next((entry["networks"] for entry in self.detectors if entry.get("networks")), ())
        own = [{key: value for key, value in block.items() if key != "networks"} for block in blocks]
        entries = tuple({**b, "networks": networks} if networks and b["name"] in ASKING else b for b in own)
        return replace(self, detectors=entries, raw={**self.raw, "detector": own})

    def programs(self, taps: Sequence[str]) -> dict[str, list[Detector]]:
        """Build the detectors of each program, cheapest program first; a program without detectors is left out.

        So is a detector that asks second networks where there are none. Unless the recipe wants a cascade there is but
        one program, the last that has detectors: it has those of the earlier ones, too, and no forward runs twice.
        """
        programs: dict[str, list[Detector]] = {name: [] for name in PROGRAMS}
        for entry in self.detectors:
            if entry["name"] in ASKING and not entry.get("networks"):
                continue
            programs[entry["program"]].append(built_detector(entry, taps))
        found = {name: detectors for name, detectors in programs.items() if detectors}
        if self.cascade or not found:
            return found
        return {list(found)[-1]: [detector for detectors in found.values() for detector in detectors]}

    def fitting(self, kind: InputKind, taps: Sequence[str], classifier: Classifier | None = None) -> Recipe:
        """Return the recipe without the parts that do not apply to a kind of input; `skipped` says which and why.

        So does it of detectors that read what the classifier, where one is given, does not have.

        Raises ConfigError where no detector is left.
        """
        every = [(entry, built_detector(entry, taps)) for entry in self.detectors]
        detectors, silent = applying("detector", [detector for _, detector in every], kind)
        if classifier is not None:
            detectors, unread = readable(detectors, classifier)
            silent += unread
        attacks, unseen = applying("attack", self.attacks, kind)
        left_out, unmeasured = applying("attack", self.left_out, kind)
        repairs, unmended = applying("repair", self.repairs, kind)
        if not detectors:
            raise ConfigError(
                f"recipe {self.name} has no detector for {kind.name}: {'; '.join(silent)}; take another --preset or "
                "--recipe"
            )
        return replace(
            self,
            detectors=tuple(entry for entry, detector in every if detector in detectors),
            attacks=attacks,
            left_out=left_out,
            repairs=repairs,
            skipped=tuple(dict.fromkeys((*self.skipped, *silent, *unseen, *unmeasured, *unmended))),
        )

    def offering(self, repairs: Sequence[str]) -> Recipe:
        """Return the recipe with these denoisers for REPAIR, set as in the recipe or by default.

        Raises ConfigError for one that does not exist.
        """
        own = {denoiser.name: denoiser for denoiser in self.repairs}
        return replace(
            self, repairs=tuple(own.get(name) or denoiser_of({"name": name}, "--repair") for name in repairs)
        )


def built_detector(entry: Mapping[str, Any], taps: Sequence[str]) -> Detector:
    """Build the detector of one [[detector]] block. Raises ConfigError."""
    settings = {key: value for key, value in entry.items() if key not in ("name", "program")}
    return build_detector(entry["name"], taps, settings)


def applying(what: str, parts: Sequence[PartT], kind: InputKind) -> tuple[tuple[PartT, ...], list[str]]:
    """Return the parts that apply to a kind of input, and what is to be said of the others."""
    reasons = [(part, kind.refusal(part)) for part in parts]
    skipped = [f"{what} {part!r}: {reason}" for part, reason in reasons if reason is not None]
    return tuple(part for part, reason in reasons if reason is None), skipped


def readable(detectors: Sequence[Detector], classifier: Classifier) -> tuple[tuple[Detector, ...], list[str]]:
    """Return the detectors that find in a model all that they read, and what is to be said of the others."""
    lacking = [(one, next((why for need in one.needs if (why := need.lacks(classifier))), None)) for one in detectors]
    skipped = [f"detector {one!r}: {why}" for one, why in lacking if why is not None]
    return tuple(one for one, why in lacking if why is None), skipped


def presets() -> tuple[str, ...]:
    """Return the names of the recipes that come with the guard."""
    return names_in("presets")


def load_recipe(preset: str, file: Path | None = None) -> Recipe:
    """Load a preset by name, or a recipe from a file of the user's own.

    Raises:
        ConfigError: names the file and the key that is unknown, missing or out of range.
    """
    if file is not None:
        origin, text = str(file), users_text("recipe", file)
    elif preset in presets():
        origin, text = preset, own_text("presets", preset)
    else:
        raise ConfigError(f"unknown preset {preset!r}; there are: {', '.join(presets())}")
    return parse(content_of("recipe", origin, text), origin)


def parse(raw: Mapping[str, Any], origin: str) -> Recipe:
    if unknown := set(raw) - KEYS:
        raise ConfigError(f"recipe {origin}: unknown key {sorted(unknown)[0]!r}; known: {', '.join(sorted(KEYS))}")
    detectors = tables(raw, "detector", origin)
    if not detectors:
        raise ConfigError(f"recipe {origin} lists no [[detector]]; at least one is needed")
    for entry in detectors:
        if "name" not in entry or entry.get("program") not in PROGRAMS:
            raise ConfigError(
                f"recipe {origin}: a [[detector]] needs a name and program = {' or '.join(map(repr, PROGRAMS))}; "
                f"got {dict(entry)}"
            )
    repairs = tuple(denoiser_of(entry, origin) for entry in tables(raw, "repair", origin))
    attacks, left_out = (attacks_of(tables(raw, key, origin), origin) for key in ("attack", "left_out"))
    for attack in (*attacks, *left_out):
        installed(attack)  # now, not when crafting comes to it
    for kind, names in (("detector", [d["name"] for d in detectors]), ("repair", [r.name for r in repairs])):
        if twice := [name for name in names if names.count(name) > 1]:
            raise ConfigError(
                f"recipe {origin}: the {kind} {twice[0]!r} is listed twice; once is all that can be told apart"
            )
    return Recipe(
        name=Path(origin).stem,
        description=str(raw.get("description", "")),
        detectors=detectors,
        attacks=attacks,
        left_out=left_out,
        repairs=repairs,
        adaptive_budgets=budgets_of(raw.get("adaptive", {}), origin),
        tabular=inputs_of(raw, origin) == TABULAR,
        cost=cost_of(raw, origin),
        cascade=cascade_of(raw, origin),
        raw=raw,
        second=second_settings(raw.get("second", {}), origin),
        items=items_of(raw, origin),
    )


def tables(raw: Mapping[str, Any], key: str, origin: str) -> tuple[Mapping[str, Any], ...]:
    """Return the entries of a [[key]] block. Raises ConfigError."""
    entries = raw.get(key, [])
    if not isinstance(entries, list) or not all(isinstance(entry, dict) for entry in entries):
        raise ConfigError(f"recipe {origin}: {key} is written as [[{key}]], one block an entry")
    return tuple(entries)


def budgets_of(adaptive: Any, origin: str) -> tuple[float, ...]:
    """Return the budgets of the [adaptive] block. Raises ConfigError."""
    if not isinstance(adaptive, dict) or set(adaptive) - {"budgets"}:
        raise ConfigError(f"recipe {origin}: [adaptive] holds budgets = [...] and nothing else; got {adaptive!r}")
    budgets = adaptive.get("budgets", [])
    if not isinstance(budgets, list) or not all(isinstance(b, int | float) and 0 < b <= 1 for b in budgets):
        raise ConfigError(f"recipe {origin}: adaptive budgets = {budgets!r}; wanted a list of numbers from 0 to 1")
    return tuple(float(b) for b in budgets)


def inputs_of(raw: Mapping[str, Any], origin: str) -> str | None:
    """Return what kind of inputs a recipe is for, where that is not for the data to say. Raises ConfigError."""
    found = raw.get("inputs")
    if found not in (None, TABULAR):
        raise ConfigError(f"recipe {origin}: inputs = {found!r}; wanted {TABULAR!r}, or nothing")
    return found


def cascade_of(raw: Mapping[str, Any], origin: str) -> bool:
    """Return whether a recipe wants a program that rejects early before the others. Raises ConfigError."""
    found = raw.get("cascade", False)
    if not isinstance(found, bool):
        raise ConfigError(
            f"recipe {origin}: cascade = {found!r}; wanted true (screen first, interpret for what it leaves open) or "
            "false (one program)"
        )
    return found


def cost_of(raw: Mapping[str, Any], origin: str) -> float | None:
    """Return the forwards on clean traffic that a recipe is made for, where it says so. Raises ConfigError."""
    found = raw.get("cost")
    if found is None:
        return None
    if isinstance(found, bool) or not isinstance(found, int | float) or found < 1:
        raise ConfigError(f"recipe {origin}: cost = {found!r}; wanted forwards on clean traffic, 1 or more")
    return float(found)


def items_of(raw: Mapping[str, Any], origin: str) -> int:
    """Return how many verified items of each attack are fitted on. Raises ConfigError."""
    found = raw.get("items", FITTED_ITEMS)
    if isinstance(found, bool) or not isinstance(found, int) or found < 1:
        raise ConfigError(f"recipe {origin}: items = {found!r}; wanted a whole number from 1: verified items an attack")
    return found


def attacks_of(entries: Sequence[Mapping[str, Any]], origin: str) -> tuple[Attack, ...]:
    for entry in entries:
        if "name" not in entry:
            raise ConfigError(f"recipe {origin}: an [[attack]] needs a name; got {dict(entry)}")
    return tuple(build_attack(entry["name"], {k: v for k, v in entry.items() if k != "name"}) for entry in entries)


def denoiser_of(entry: Mapping[str, Any], origin: str) -> Denoiser:
    try:
        return build_denoiser(entry)
    except ConfigError as error:
        raise ConfigError(f"recipe {origin}: {error}") from error
