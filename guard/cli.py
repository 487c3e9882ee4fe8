"""The command line: parses, imports one tower, and turns errors into one line and an exit code."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

from guard.errors import ConfigError, GuardError
from guard.options import (
    AcceptAccuracy,
    AttackItems,
    BundleArgument,
    CleanData,
    CraftItems,
    DataLayout,
    Device,
    DropColumn,
    InputName,
    LabelColumn,
    Mean,
    Minutes,
    ModelSource,
    OutputKind,
    OutputName,
    Preset,
    PromisedFlagRate,
    PromisedRejectRate,
    RecipeFile,
    Repairs,
    Seed,
    ServedFile,
    Serves,
    Std,
    TestData,
    Threads,
    TorchThreads,
    ValueRange,
)

USAGE_CODE = 2
INTERRUPTED_CODE = 130
PIPE_CODE = 141

app = typer.Typer(
    name="guard",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
    context_settings={"help_option_names": ["-h", "--help"]},
    help="Finds inputs that were crafted to fool a classifier, in front of its model server. Begin with: guard demo",
    epilog="Every command takes --debug, which shows the traceback of an error.",
)


def version_callback(wanted: bool) -> None:
    """Print the guard's version and end, where that was asked for."""
    if wanted:
        from importlib.metadata import version

        typer.echo(f"guard {version('inference-guard')}")
        raise typer.Exit


@app.callback()
def guard(
    *,
    version: Annotated[
        bool, typer.Option("--version", help="Print the version and exit.", callback=version_callback, is_eager=True)
    ] = False,
) -> None:
    """Finds inputs that were crafted to fool a classifier, in front of its model server. Begin with: guard demo."""


@app.command(epilog="Example: guard demo --folder /tmp/demo")
def demo(
    *,
    folder: Annotated[Path, typer.Option(help="Where model, bundle and report are put.")] = Path("demo"),
    seed: Seed = 0,
    keep: Annotated[bool, typer.Option("--keep", help="Leave model server and guard running until Ctrl-C.")] = False,
) -> None:
    """The whole story on scikit-learn's digits, offline, in about a minute on two cores."""
    from guard.demo import run_demo

    run_demo(folder, seed=seed, keep=keep)


@app.command(epilog="Example: guard check --model model.onnx --data clean.npz")
def check(
    *,
    model: ModelSource,
    data: CleanData,
    test: TestData = None,
    data_layout: DataLayout = None,
    label_column: LabelColumn = None,
    drop_column: DropColumn = None,
    accept_accuracy: AcceptAccuracy = False,
    served: ServedFile = None,
    preset: Preset = "standard",
    recipe: RecipeFile = None,
    reject_rate: PromisedRejectRate = 0.01,
    flag_rate: PromisedFlagRate = 0.05,
    serves: Serves = "model",
    input_name: InputName = None,
    output_name: OutputName = None,
    output: OutputKind = "logits",
    value_range: ValueRange = (0.0, 1.0),
    mean: Mean = None,
    std: Std = None,
    minutes: Minutes = 25.0,
    craft_items: CraftItems = None,
    attack_items: AttackItems = None,
    threads: TorchThreads = None,
    seed: Seed = 0,
) -> None:
    """Say what would go wrong with a model and its data, and what training will cost, in a minute.

    Takes the options of guard train, which begins with the same lines; nothing is
    written. The exit code is that of the error that would stop it, or 0.
    """
    given = {**locals(), "out": Path("bundle")}  # which is not written
    typer.echo(f"reading   {model} and {data}")  # before anything large is imported
    from guard.offline.preflight.check import check as run
    from guard.offline.preflight.check import wrapped

    run(job_of(given), lambda about, text: typer.echo("\n".join(wrapped(about, text, 80))))
    typer.echo("sound     guard train can begin, with the same options and --out")


@app.command(epilog="Example: guard train --model model.onnx --data clean.npz --out bundle --serves digits")
def train(
    *,
    model: ModelSource,
    data: CleanData,
    out: Annotated[Path, typer.Option(help="Where the bundle is written; must not exist.", show_default=False)],
    test: TestData = None,
    data_layout: DataLayout = None,
    label_column: LabelColumn = None,
    drop_column: DropColumn = None,
    accept_accuracy: AcceptAccuracy = False,
    served: ServedFile = None,
    preset: Preset = "standard",
    recipe: RecipeFile = None,
    reject_rate: PromisedRejectRate = 0.01,
    flag_rate: PromisedFlagRate = 0.05,
    serves: Serves = "model",
    input_name: InputName = None,
    output_name: OutputName = None,
    output: OutputKind = "logits",
    value_range: ValueRange = (0.0, 1.0),
    mean: Mean = None,
    std: Std = None,
    repair: Repairs = None,
    minutes: Minutes = 25.0,
    craft_items: CraftItems = None,
    attack_items: AttackItems = None,
    adaptive_items: Annotated[int, typer.Option(help="Items of the adaptive attack in the report.")] = 50,
    adaptive_steps: Annotated[int, typer.Option(help="Steps of the adaptive attack in the report.")] = 100,
    threads: TorchThreads = None,
    seed: Seed = 0,
) -> None:
    """Craft attacks, fit detectors, calibrate, compile and report. Resumes when started again.

    Speeds are measured first, on items that count. Then the plan is printed,
    kept in OUT.work, and followed. Each attack is tried on enough items for 300
    to 1,200 verified ones, all with the same time; 300 are kept to whatever they
    take, and it is said by how much that overruns. PGD of 20 steps costs about
    40 forwards an item, Carlini-Wagner of 4 x 60 steps about 300. A third of the
    time is kept for the adaptive attack of the report.
    """
    given = dict(locals())
    from guard.offline.train import train as run
    from guard.offline.work.tables import print_lines

    console = make_console()
    bundle = run(job_of(given), stages(console))
    print_lines(console, [f"bundle {bundle.path}, report {bundle.path / 'report.html'}"])


def job_of(given: dict[str, Any]) -> Any:
    """Return the job that the options of `guard train` or `guard check` describe, by the options' names."""
    from guard.offline.job.job import Job
    from guard.offline.job.recipe import load_recipe

    low, high = value_box(*(given.pop(name) for name in ("value_range", "mean", "std")))
    recipe, repair = load_recipe(given.pop("preset"), given.pop("recipe")), given.pop("repair", None)
    dropped = tuple(given.pop("drop_column") or ())
    offered = recipe.offering(repair) if repair else recipe
    return Job(recipe=offered, low=low, high=high, drop_columns=dropped, **given)


def value_box(
    value_range: tuple[float, float], mean: str | None, std: str | None
) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """The wire values of black and white per channel or feature. Raises ConfigError."""
    if (mean is None) != (std is None):
        raise ConfigError("--mean and --std go together; give both or neither")
    if mean is None or std is None:
        low, high = value_range
        if low >= high:
            raise ConfigError(f"--range {low:g} {high:g}: the first must be below the second")
        return (low,), (high,)
    means, deviations = numbers(mean, "--mean"), numbers(std, "--std")
    if len(means) != len(deviations) or min(deviations) <= 0:
        raise ConfigError(f"--mean {mean} and --std {std}: wanted as many of each, deviations above zero")
    pairs = list(zip(means, deviations, strict=True))
    return tuple(-m / s for m, s in pairs), tuple((1 - m) / s for m, s in pairs)


def numbers(text: str, name: str) -> tuple[float, ...]:
    try:
        return tuple(float(part) for part in text.split(","))
    except ValueError as error:
        raise ConfigError(f"{name} {text!r}: wanted numbers separated by commas") from error


@app.command(epilog="Example: guard evaluate bundle --data unseen.npz --out report --quick")
def evaluate(
    bundle: BundleArgument,
    *,
    data: Annotated[
        Path, typer.Option(help="Clean inputs and labels that the bundle has not seen.", show_default=False)
    ],
    out: Annotated[Path, typer.Option(help="Where report.json and report.html are written.", show_default=False)],
    data_layout: DataLayout = None,
    label_column: LabelColumn = None,
    drop_column: DropColumn = None,
    accept_accuracy: AcceptAccuracy = False,
    suite: Annotated[
        str | None,
        typer.Option(metavar="NAME|FILE", help="A further list of attacks: aldahdooh, survey, or a .toml file."),
    ] = None,
    quick: Annotated[
        bool, typer.Option("--quick", help="Fewer items and steps, no family left out; an indication only.")
    ] = False,
    full: Annotated[
        bool, typer.Option("--full", help="Every method of the adaptive attack, not the two best.")
    ] = False,
    minutes: Annotated[
        float | None,
        typer.Option(
            help="Time for all but the suite; the adaptive attack takes what is left.",
            show_default="40, with --quick 4",
            min=0.0,
        ),
    ] = None,
    suite_minutes: Annotated[float, typer.Option(help="Time for the suite, beside that.", min=0.0)] = 20.0,
    seed: Seed = 0,
) -> None:
    """Measure what is caught of each attack, seen and left out, and what one who knows the guard gets past it.

    Speeds are measured first, and it is said what the run will take. What is slow
    is kept beside the bundle: an interrupted evaluation goes on where it was.
    """
    from guard.bundle import Bundle
    from guard.offline.evaluate import Wish, evaluate_bundle
    from guard.offline.job.suite import load_suite
    from guard.offline.report.terminal import lines_of
    from guard.offline.work.tables import print_lines

    console = make_console()
    wish = Wish(
        seed,
        quick,
        full,
        minutes,
        load_suite(suite) if suite else None,
        suite_minutes,
        data_layout,
        accept_accuracy,
        column_choice(label_column, drop_column),
    )
    found = evaluate_bundle(Bundle.open(bundle), data, out, wish, stages(console))
    print_lines(console, [*lines_of(found), "", f"report {out / 'report.html'}"])


@app.command(epilog="Example: guard score bundle inputs.npz")
def score(
    bundle: BundleArgument,
    file: Annotated[
        Path, typer.Argument(metavar="FILE", help=".npz, IDX, .csv, .parquet, picture or folder.", show_default=False)
    ],
    *,
    data_layout: DataLayout = None,
    label_column: LabelColumn = None,
    drop_column: DropColumn = None,
    device: Device = "cpu",
    threads: Threads = None,
) -> None:
    """Print one JSON line an item: item, prediction, action, p_value, detectors."""
    from guard.columns import ColumnChoice
    from guard.scoring import score_lines

    lines = score_lines(
        bundle,
        file,
        device=device_name(device),
        threads=threads,
        layout=data_layout,
        choice=column_choice(label_column, drop_column) or ColumnChoice(),
        say=lambda note: typer.echo(f"guard: {note}", err=True),
    )
    for line in lines:
        typer.echo(line)


@app.command(epilog="Example: guard inspect bundle")
def inspect(
    bundle: BundleArgument,
    *,
    as_json: Annotated[bool, typer.Option("--json", help="The manifest as it stands.")] = False,
) -> None:
    """Print what is in a bundle, and what each detector costs."""
    from guard.bundle import MANIFEST, Bundle
    from guard.summary import summarise

    opened = Bundle.open(bundle)
    if as_json:
        typer.echo((opened.path / MANIFEST).read_text(encoding="utf-8").rstrip())
    else:
        typer.echo(summarise(opened))


@app.command(epilog="Example: guard bench bundle --batches 1,8 --seconds 30")
def bench(
    bundle: BundleArgument,
    *,
    batches: Annotated[str, typer.Option(help="Batch sizes, separated by commas.")] = "1,8,32",
    threads: Annotated[int, typer.Option(help="Threads of ONNX Runtime, on both sides.")] = 1,
    seconds: Annotated[float, typer.Option(help="Time for the whole measurement.")] = 60.0,
    device: Device = "cpu",
    profile: Annotated[bool, typer.Option("--profile", help="Print where each program's time goes.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object instead of tables.")] = False,
) -> None:
    """Cost of each program over the bare model and over its floor; latency, throughput."""
    from guard.bundle import Bundle
    from guard.offline.bench.bench import run_bench

    sizes = tuple(int(size) for size in numbers(batches, "--batches"))
    run_bench(
        Bundle.open(bundle),
        batches=sizes,
        threads=threads,
        seconds=seconds,
        device=device_name(device),
        profile=profile,
        as_json=as_json,
        console=make_console(),
    )


@app.command(epilog="Example: guard serve --bundle bundle --upstream 127.0.0.1:9000")
def serve(
    *,
    bundle: Annotated[
        str | None,
        typer.Option(help="Directory that guard train wrote; required, here or as a setting.", show_default=False),
    ] = None,
    upstream: Annotated[
        str | None,
        typer.Option(
            metavar="HOST:PORT", help="The model server to guard; required, here or as a setting.", show_default=False
        ),
    ] = None,
    listen: Annotated[
        str | None, typer.Option(metavar="HOST:PORT", help="Where clients connect.", show_default="0.0.0.0:8081")
    ] = None,
    metrics_listen: Annotated[
        str | None, typer.Option(metavar="HOST:PORT", help="Prometheus.", show_default="0.0.0.0:8082")
    ] = None,
    admin_listen: Annotated[
        str | None,
        typer.Option(metavar="HOST:PORT", help="guard.v1: Inspect and Describe.", show_default="127.0.0.1:8083"),
    ] = None,
    mode: Annotated[str | None, typer.Option(help="enforce, flag, shadow or off.", show_default="enforce")] = None,
    on_failure: Annotated[
        str | None, typer.Option(help="closed or open: what happens to what cannot be checked.", show_default="closed")
    ] = None,
    reject_rate: Annotated[
        float | None, typer.Option(help="Share of clean items that may be rejected.", show_default="the bundle's")
    ] = None,
    flag_rate: Annotated[
        float | None, typer.Option(help="Share of clean items that may be flagged.", show_default="the bundle's")
    ] = None,
    repair: Annotated[
        str | None,
        typer.Option(
            help="Denoiser of the bundle through which flagged items are cleaned (guard inspect lists them).",
            show_default=False,
        ),
    ] = None,
    device: Annotated[str | None, typer.Option(help="cpu or cuda.", show_default="cpu")] = None,
    threads: Threads = None,
    config: Annotated[Path | None, typer.Option(help="guard.toml, for all the rest.", show_default=False)] = None,
) -> None:
    """The sidecar. Settings: flags, then GUARD_* variables, then guard.toml, then the defaults."""
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")  # before numpy, which starts a thread a CPU otherwise
    from guard.config import load_config
    from guard.serve.server import serve as run

    flags = {
        "bundle": bundle,
        "upstream": upstream,
        "listen": listen,
        "metrics_listen": metrics_listen,
        "admin_listen": admin_listen,
        "mode": mode,
        "on_failure": on_failure,
        "reject_rate": reject_rate,
        "flag_rate": flag_rate,
        "repair": repair,
        "device": device,
        "threads": threads,
    }
    run(load_config(config, os.environ, flags))


@app.command(name="model-server", epilog="Example: guard model-server --model model.onnx --name digits")
def model_server(
    *,
    model: Annotated[Path, typer.Option(help="An .onnx file.", show_default=False)],
    listen: Annotated[str, typer.Option(metavar="HOST:PORT", help="Where to listen.")] = "127.0.0.1:9000",
    name: Annotated[str | None, typer.Option(help="Model name; the file's unless given.", show_default=False)] = None,
    threads: Threads = None,
) -> None:
    """A small Open Inference Protocol server over ONNX Runtime, to try things out."""
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")  # before numpy, as above
    from guard.serve.model_server import serve_model

    serve_model(model, listen=listen, name=name, threads=threads)


@app.command(epilog="Example: guard probe 127.0.0.1:8081")
def probe(
    address: Annotated[str, typer.Argument(metavar="HOST:PORT", show_default=False)],
    *,
    service: Annotated[str, typer.Option(help="readiness, or empty for liveness.")] = "readiness",
    timeout_s: Annotated[float, typer.Option("--timeout", help="Seconds to wait.")] = 2.0,
) -> None:
    """Exit code 0 if the guard is healthy, 10 if not: for exec probes and scripts."""
    from guard.serve.probe import probe as run

    run(address, service, timeout_s=timeout_s)


def column_choice(label: str | None, drop: Sequence[str] | None) -> Any:
    """Return what was said of a table's columns, or None where nothing was."""
    from guard.columns import ColumnChoice

    return ColumnChoice(label, tuple(drop or ())) if label is not None or drop else None


def device_name(text: str) -> Any:
    """Return a device's name as it is. Raises ConfigError where it is unknown."""
    if text not in ("cpu", "cuda"):
        raise ConfigError(f"--device {text!r}; wanted cpu or cuda")
    return text


def make_console() -> Any:
    from rich.console import Console

    return Console()


def stages(console: Any) -> Any:
    from guard.offline.work.progress import Stages

    return Stages(console)


def run(arguments: Sequence[str]) -> int:
    """Run a command and return its exit code; every error of ours is one line on standard error."""
    debug = "--debug" in arguments
    try:
        command = typer.main.get_command(app)
        result = command.main([a for a in arguments if a != "--debug"], prog_name="guard", standalone_mode=False)
        if result == INTERRUPTED_CODE:  # which typer makes of an interrupt inside a command
            raise KeyboardInterrupt
        return result if isinstance(result, int) else 0
    except GuardError as error:
        return complain(error, str(error), error.exit_code, debug=debug)
    except ModuleNotFoundError as error:
        known = {
            "torch": "offline",
            "sklearn": "offline",
            "onnx": "offline",
            "scipy": "offline",
            "onnxscript": "offline",
            "pyarrow": "tables",
        }
        extra = known.get((error.name or "").split(".")[0])
        if extra is None:
            raise
        return complain(
            error, f"this command needs {error.name}; install inference-guard[cpu,{extra}]", USAGE_CODE, debug=debug
        )
    except (KeyboardInterrupt, typer.Abort):
        typer.echo("guard: interrupted; what was finished is kept, the same command goes on from there", err=True)
        return INTERRUPTED_CODE
    except BrokenPipeError:  # the reader has seen enough, as in `guard score … | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return PIPE_CODE
    except typer.Exit as error:
        return int(error.exit_code)
    except Exception as error:
        show = getattr(error, "show", None)  # click's usage errors print themselves
        if show is None:
            raise
        show()
        return int(getattr(error, "exit_code", USAGE_CODE))


def complain(error: BaseException, text: str, code: int, *, debug: bool) -> int:
    if debug:
        raise error
    typer.echo(f"guard: {' '.join(text.split())}", err=True)
    return code


def main() -> None:
    """Entry point of the console script `guard`."""
    sys.exit(run(sys.argv[1:]))
