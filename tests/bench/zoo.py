"""What the guard makes of many models, exporters and forms of the batch: opens, gradient, trains, serves, or refuses.

    python -m tests.side models keras         the packages that networks come from, once
    python -m tests.bench.zoo                 all; what is done is kept in zoo.work, and is not done again
    python -m tests.bench.zoo resnet "transformers ViT" --form "legacy, NHWC"
    python -m tests.bench.zoo --quick         eight of our own; one of them trained with `fast` and served

Every file is opened and its gradient compared with torch's. Of each model that is not like another one of them
(`ALIKE` in `tests/zoo/entries.py`) one file is trained with the preset `fast` and with a recipe that reads gradients
(`tests/zoo/gradient.toml`), and served: another form from model to model. With `--train-all` all are. Rows that failed
are tried again when it is started again.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import redirect_stdout
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
from torch import nn

from guard.bundle import Bundle
from guard.errors import GuardError
from guard.offline.model.open_model import Source
from tests.zoo.entries import Entry, entries
from tests.zoo.exports import ANY, DEFAULT, PROGRAM, Form
from tests.zoo.fitting import MIN_ACCURACY_SHARE, Pictures, fitted
from tests.zoo.trial import COMPARED_ITEMS, RECIPE, SENT_ITEMS, opened, said, served, trained

ROOT = Path(__file__).resolve().parent.parent.parent
QUICK = ("alexnet", "vit", "convnext", "shufflenet", "mobilenet_v2", "poolformer", "resnet", "gru")
GUARD_ITEMS = 480
YES, NO, UNTRIED = "yes", "no", "-"
RECIPES = {"fast": ("--preset", "fast"), "gradient": ("--recipe", str(RECIPE))}


@dataclass(frozen=True)
class Row:
    """What became of one file; a `-` is what was not tried."""

    model: str
    form: str
    accuracy: float
    opens: str = UNTRIED
    gradient: str = UNTRIED
    error: float = float("nan")  # of the gradient, relative L2 of the median item
    fast: str = UNTRIED  # trains with the preset
    recipe: str = UNTRIED  # trains with a recipe that reads gradients
    serves: str = UNTRIED
    message: str = ""
    seconds: float = 0.0
    peak_mib: float = 0.0

    @property
    def key(self) -> tuple[str, str]:
        return self.model, self.form

    @property
    def is_good(self) -> bool:
        return NO not in (self.opens, self.gradient, self.fast, self.recipe, self.serves) and not self.message

    def line(self) -> str:
        cells = (self.opens, f"{self.gradient} {self.error:.0e}", self.fast, self.recipe, self.serves)
        figures = f"{self.accuracy:4.0%}  {'  '.join(f'{cell:9}' for cell in cells)}  {self.seconds:5.0f} s"
        return f"{self.model:36}{self.form:22}{figures}  {self.message}".rstrip()


def main() -> int:
    options = parse()
    if options.quick:
        return quick(options.models or QUICK, is_trained=not options.no_training)
    known = entries()
    names = options.models or list(known)
    if unknown := [name for name in names if name not in known]:
        sys.exit(f"no model {unknown[0]!r}; there are: {', '.join(known)}")
    if options.child:
        try_entry(known[names[0]], options)
        return 0
    options.out.mkdir(parents=True, exist_ok=True)
    began = time.monotonic()
    print(f"{'model':36}{'exporter, batch':22}right  opens      gradient   fast       recipe     serves")
    with ThreadPoolExecutor(options.workers) as pool:
        for _ in pool.map(lambda name: child(name, options), names):
            pass
    rows = [row for name in names for row in kept(options.out, name).values()]
    return summary(rows, time.monotonic() - began)


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", nargs="*", help="names; all unless given")
    parser.add_argument("--form", help='only this one, as "default, dynamic"')
    parser.add_argument("--out", type=Path, default=Path("zoo.work"), help="where what was found is kept")
    parser.add_argument("--workers", type=int, default=1, help="models beside each other, one thread each")
    parser.add_argument("--train-all", action="store_true", help="train and serve every file")
    parser.add_argument("--no-training", action="store_true", help="only open, and compare gradients")
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--child", action="store_true", help=argparse.SUPPRESS)
    parser.set_defaults(recipes=tuple(RECIPES))
    return parser.parse_args()


def child(name: str, options: argparse.Namespace) -> None:
    """Try one model in a process of its own, whose end ends nothing else."""
    words = [sys.executable, "-m", "tests.bench.zoo", name, "--child", "--out", str(options.out)]
    words += ["--form", options.form] if options.form else []
    words += ["--train-all"] if options.train_all else []
    words += ["--no-training"] if options.no_training else []
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    with (options.out / f"{file_name(name)}.log").open("wb") as log:
        code = subprocess.run(words, env=environment, cwd=ROOT, stdout=sys.stdout, stderr=log, check=False).returncode
    if code:
        print(f"{name:36}ended with exit code {code}; see {log.name}", flush=True)


def try_entry(entry: Entry, options: argparse.Namespace) -> None:
    """Try the forms of a model that are not kept as good."""
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    place = list(entries()).index(entry.name)
    before = kept(options.out, entry.name)
    forms = [form for form in entry.forms if options.form in (None, str(form))]
    forms = [
        form for form in forms if (entry.name, str(form)) not in before or not before[entry.name, str(form)].is_good
    ]
    if not forms:
        return
    fitted_on, guarded = entry.pictures()
    network, right = fitted_network(entry, fitted_on, guarded, options.out / f"{file_name(entry.name)}.pt")
    chosen = entry.forms[place % len(entry.forms)]
    with tempfile.TemporaryDirectory() as folder, (options.out / f"{file_name(entry.name)}.jsonl").open("a") as log:
        data = Path(folder) / "data.npz"
        np.savez(data, images=guarded.images[:GUARD_ITEMS], labels=guarded.labels[:GUARD_ITEMS])
        for form in forms:
            is_trained = not options.no_training and (options.train_all or (entry.is_trained and form == chosen))
            row = try_form(Trial(entry, network, guarded, right, data, options.recipes), form, is_trained=is_trained)
            log.write(json.dumps(asdict(row)) + "\n")
            log.flush()
            print(row.line(), flush=True)


def fitted_network(entry: Entry, fitted_on: Pictures, guarded: Pictures, file: Path) -> tuple[nn.Module, float]:
    """A model and the share of items that it has right; one whose parameters are torch's own is fitted once."""
    network = entry.build()
    if entry.fit is fitted and file.exists():
        saved = torch.load(file, weights_only=True)
        network.load_state_dict(saved["network"])
        return network, saved["accuracy"]
    right = entry.fit(network, fitted_on, guarded)
    if entry.fit is fitted:
        torch.save({"network": network.state_dict(), "accuracy": right}, file)
    return network, right


@dataclass(frozen=True)
class Trial:
    """A fitted model, and the data file to guard it with."""

    entry: Entry
    network: nn.Module
    pictures: Pictures
    accuracy: float
    data: Path
    recipes: Sequence[str]  # of RECIPES, those to train with


def try_form(trial: Trial, form: Form, *, is_trained: bool) -> Row:
    began = time.monotonic()
    file = trial.data.parent / f"model{form.suffix}"
    entry, images = trial.entry, trial.pictures.unit[:COMPARED_ITEMS]
    found = {"model": entry.name, "form": str(form), "accuracy": trial.accuracy}
    try:
        with redirect_stdout(sys.stderr):  # the older exporter prints its whole graph where it gives up
            entry.write(trial.network, entry.shape, form, file)
    except Exception as error:  # noqa: BLE001 - an exporter raises anything
        text = (str(error).strip().splitlines() or ["?"])[0]
        return Row(
            **found, message=f"not exported: {type(error).__name__}: {text[:150]}", seconds=time.monotonic() - began
        )
    named = dict(zip(entry.options[::2], entry.options[1::2], strict=True))
    source = Source(
        str(file), entry.shape, output_name=named.get("--output-name"), output=named.get("--output", "logits")
    )
    got = opened(file, trial.network, images, source)
    if got.classifier is None:
        return Row(**found, opens=NO, message=got.message, seconds=time.monotonic() - began)
    found.update(opens=YES, gradient=YES if got.gradient_agrees else NO, error=got.gradient_error)
    if is_trained:
        found.update(train_and_serve(trial, form, file))
    peak_mib = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    return Row(**found, seconds=time.monotonic() - began, peak_mib=peak_mib)


def train_and_serve(trial: Trial, form: Form, file: Path) -> dict[str, str]:
    """Train the guards; serve the last of them, before the file or, of a .pt2, the ONNX file beside it."""
    folder, entry = file.parent, trial.entry
    options = (*entry.options, *(() if trial.accuracy >= MIN_ACCURACY_SHARE else ("--accept-accuracy",)))
    found: dict[str, str] = {}
    messages = []
    for name in trial.recipes:
        message = trained(file, trial.data, folder / name, RECIPES[name], options)
        found["fast" if name == "fast" else "recipe"] = NO if message else YES
        messages += [f"{name}: {message}"] if message else []
    if not message:
        upstream = file
        if form.exporter == PROGRAM:
            upstream = folder / "served.onnx"
            entry.write(trial.network, entry.shape, Form(DEFAULT, ANY), upstream)
        images = trial.pictures.unit[:SENT_ITEMS]
        classes = trial.network(images).argmax(dim=1).numpy()
        try:
            message = served(Bundle.open(folder / name), upstream, images.numpy(), classes, folder)
        except GuardError as error:
            message = said(str(error), file)
        found["serves"] = NO if message else YES
        messages += [f"serving: {message}"] if message else []
    return {**found, "message": "; ".join(messages)}


def kept(out: Path, name: str) -> dict[tuple[str, str], Row]:
    """The last row of each form of a model."""
    file = out / f"{file_name(name)}.jsonl"
    rows = [Row(**json.loads(line)) for line in file.read_text("utf-8").splitlines()] if file.exists() else []
    return {row.key: row for row in rows}


def file_name(name: str) -> str:
    return name.replace(" ", "_").replace(",", "")


def summary(rows: Sequence[Row], seconds: float) -> int:
    """Print how many of the files did what."""
    exported = [row for row in rows if row.opens != UNTRIED]
    print(f"\n{len({row.model for row in rows})} models, {len(rows)} files, {len(exported)} exported, {seconds:.0f} s")
    for what in ("opens", "gradient", "fast", "recipe", "serves"):
        answers = [getattr(row, what) for row in exported]
        print(f"  {what:9} {answers.count(YES)} of {len(answers) - answers.count(UNTRIED)}")
    for row in rows:
        if not row.is_good:
            print(f"  {row.model}, {row.form}: {row.message or 'its gradient is another'}")
    return int(any(row.opens == NO or NO in (row.gradient, row.fast, row.recipe, row.serves) for row in rows))


def quick(names: Sequence[str], *, is_trained: bool) -> int:
    """Try a few networks of our own, each in another form; the first may be trained and served as well."""
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder)
        options = argparse.Namespace(out=out, form=None, train_all=True, no_training=False, recipes=("fast",))
        for place, name in enumerate(names):
            entry = entries()[name]
            options.form, options.no_training = str(entry.forms[place % len(entry.forms)]), place > 0 or not is_trained
            try_entry(entry, options)
        return summary([row for name in names for row in kept(out, name).values()], time.process_time())


if __name__ == "__main__":
    sys.exit(main())
