"""Commands that work offline: demo, check, train, evaluate and bench; each imports its tower when it is called."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any

import typer

from guard.delivery_commands import asked_tracking, tracked
from guard.option_values import column_choice, device_name, numbers, second_boxes, value_box
from guard.options import (
    AcceptAccuracy,
    Answers,
    AttackItems,
    BundleArgument,
    CleanData,
    CleanItems,
    Cost,
    CraftItems,
    DataLayout,
    Device,
    DropColumn,
    FeaturesFile,
    InputName,
    InputType,
    LabelColumn,
    Mean,
    Minutes,
    Mlflow,
    ModelSource,
    OutputKind,
    OutputName,
    Preset,
    PromisedFlagRate,
    PromisedRejectRate,
    Questions,
    RayAddress,
    RecipeFile,
    Repairs,
    SecondData,
    SecondMean,
    SecondMinutes,
    SecondModels,
    SecondRange,
    SecondStd,
    Seed,
    ServedFile,
    ServerModel,
    Serves,
    Std,
    TestData,
    TorchThreads,
    ValueRange,
)


def demo(
    *,
    folder: Annotated[Path, typer.Option(help="Where model, bundle and report are put.")] = Path("demo"),
    seed: Seed = 0,
    keep: Annotated[bool, typer.Option("--keep", help="Leave model server and guard running until Ctrl-C.")] = False,
) -> None:
    """The whole story on scikit-learn's digits, offline, in about a minute on two cores."""
    from guard.demo import run_demo

    run_demo(folder, seed=seed, keep=keep)


def check(
    *,
    model: ModelSource = None,
    answers: Answers = None,
    name: ServerModel = None,
    questions: Questions = 20_000,
    data: CleanData,
    out: Annotated[
        Path | None,
        typer.Option(
            help="Where guard train will write: what it need not find again is kept beside it.",
            show_default="nothing is written",
        ),
    ] = None,
    test: TestData = None,
    data_layout: DataLayout = None,
    label_column: LabelColumn = None,
    drop_column: DropColumn = None,
    features: FeaturesFile = None,
    accept_accuracy: AcceptAccuracy = False,
    served: ServedFile = None,
    second: SecondModels = None,
    second_range: SecondRange = None,
    second_mean: SecondMean = None,
    second_std: SecondStd = None,
    second_data: SecondData = None,
    second_minutes: SecondMinutes = None,
    preset: Preset = "standard",
    recipe: RecipeFile = None,
    cost: Cost = None,
    reject_rate: PromisedRejectRate = 0.01,
    flag_rate: PromisedFlagRate = 0.05,
    serves: Serves = "model",
    input_name: InputName = None,
    input_type: InputType = None,
    output_name: OutputName = None,
    output: OutputKind = "logits",
    value_range: ValueRange = None,
    mean: Mean = None,
    std: Std = None,
    minutes: Minutes = 25.0,
    clean_items: CleanItems = None,
    craft_items: CraftItems = None,
    attack_items: AttackItems = None,
    threads: TorchThreads = None,
    seed: Seed = 0,
) -> None:
    """Say what would go wrong with a model and its data, and what training will cost, in a minute.

    Takes the options of guard train, which begins with the same lines. Nothing is
    written but, with --out, what guard train need not find again: what was read of
    data that does not fit into memory, and a closed model's answers and student.
    The exit code is that of the error that would stop guard train, or 0.
    """
    given = {**locals(), "out": out or Path("bundle")}  # which is not written
    typer.echo(f"reading   {answers or model} and {data}")  # before anything large is imported
    from guard.offline.preflight.check import check as run
    from guard.offline.preflight.check import wrapped

    job = job_of(given)
    kept = None if out is None else job.work
    run(job, lambda about, text: typer.echo("\n".join(wrapped(about, text, 80))), kept=kept)
    typer.echo("sound     guard train can begin, with the same options and --out")


def train(
    *,
    model: ModelSource = None,
    answers: Answers = None,
    name: ServerModel = None,
    questions: Questions = 20_000,
    data: CleanData,
    out: Annotated[Path, typer.Option(help="Where the bundle is written; must not exist.", show_default=False)],
    test: TestData = None,
    data_layout: DataLayout = None,
    label_column: LabelColumn = None,
    drop_column: DropColumn = None,
    features: FeaturesFile = None,
    accept_accuracy: AcceptAccuracy = False,
    served: ServedFile = None,
    second: SecondModels = None,
    second_range: SecondRange = None,
    second_mean: SecondMean = None,
    second_std: SecondStd = None,
    second_data: SecondData = None,
    second_minutes: SecondMinutes = None,
    preset: Preset = "standard",
    recipe: RecipeFile = None,
    cost: Cost = None,
    reject_rate: PromisedRejectRate = 0.01,
    flag_rate: PromisedFlagRate = 0.05,
    serves: Serves = "model",
    input_name: InputName = None,
    input_type: InputType = None,
    output_name: OutputName = None,
    output: OutputKind = "logits",
    value_range: ValueRange = None,
    mean: Mean = None,
    std: Std = None,
    repair: Repairs = None,
    minutes: Minutes = 25.0,
    clean_items: CleanItems = None,
    craft_items: CraftItems = None,
    attack_items: AttackItems = None,
    adaptive_items: Annotated[int, typer.Option(help="Items of the adaptive attack in the report.")] = 50,
    adaptive_steps: Annotated[int, typer.Option(help="Steps of the adaptive attack in the report.")] = 100,
    threads: TorchThreads = None,
    seed: Seed = 0,
    ray: RayAddress = None,
    mlflow: Mlflow = None,
) -> None:
    """Craft attacks, fit detectors, calibrate, compile and report. Resumes when started again.

    The guard follows from recipe, data and seed, however fast the machine is:
    each attack is tried on as many items as give the verified ones that the
    recipe wants (1,000 unless it says another number). Speeds are measured
    first, on items that count; the plan is printed, kept in OUT.work, and
    followed. --minutes sizes the report: half of what the guard leaves is for
    attacks on held-out items, the rest for the adaptive attack. What is cut of
    it is said first, and stands in the report. PGD of 20 steps costs about 40
    forwards an item, Carlini-Wagner of 4 x 60 steps about 300.
    """
    given = {name: value for name, value in locals().items() if name not in ("ray", "mlflow")}
    typer.echo(f"reading   {answers or model} and {data}")  # before anything large is imported
    began_s = asked_tracking(mlflow)
    from guard.offline.train import train as run
    from guard.offline.work.ray_cluster import computing_on
    from guard.offline.work.tables import print_lines

    console = make_console()
    with computing_on(ray) as executor:
        bundle = run(replace(job_of(given), executor=executor), stages(console))
    print_lines(console, [f"bundle {bundle.path}, report {bundle.path / 'report.html'}"])
    from guard.tracking import bundle_run

    tracked(mlflow, lambda: bundle_run(bundle, began_s=began_s), f"guard track {bundle.path}")


def job_of(given: dict[str, Any]) -> Any:
    """Return the job that the options of `guard train` or `guard check` describe, by the options' names."""
    from guard.offline.job.feature_file import load_features
    from guard.offline.job.job import Job
    from guard.offline.job.recipe import load_recipe

    ranged = given["value_range"] is not None
    low, high = value_box(given.pop("value_range") or (0.0, 1.0), given.pop("mean"), given.pop("std"))
    features = load_features(given.pop("features"))
    recipe, repair = load_recipe(given.pop("preset"), given.pop("recipe")), given.pop("repair", None)
    dropped = tuple(given.pop("drop_column") or ())
    offered = recipe.offering(repair) if repair else recipe
    ranges = second_boxes(*(given.pop(name) for name in ("second_range", "second_mean", "second_std")))
    second = tuple(given.pop("second") or ())
    given["model"] = given["model"] or ""
    return Job(
        recipe=offered,
        low=low,
        high=high,
        ranged=ranged,
        drop_columns=dropped,
        features=features,
        second=second,
        second_bounds=ranges,
        **given,
    )


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
    adaptive_items: Annotated[
        int | None,
        typer.Option(
            help="Items of the adaptive attack, fewer where time is short.", show_default="50, with --quick 20", min=1
        ),
    ] = None,
    grey_second: Annotated[
        str | None,
        typer.Option(
            metavar="BUNDLE|MODEL",
            help="Second networks of another seed, for an attacker who knows all but the guard's own.",
        ),
    ] = None,
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
    ray: RayAddress = None,
    mlflow: Mlflow = None,
) -> None:
    """Measure what is caught of each attack, seen and left out, and what one who knows the guard gets past it.

    Speeds are measured first, and it is said what the run will take. What is slow
    is kept beside the bundle: an interrupted evaluation goes on where it was.
    """
    from guard.bundle import Bundle
    from guard.offline.evaluate import Wish, evaluate_bundle
    from guard.offline.job.suite import load_suite
    from guard.offline.report.terminal import lines_of
    from guard.offline.work.ray_cluster import computing_on
    from guard.offline.work.tables import print_lines

    console = make_console()
    began_s = asked_tracking(mlflow)
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
        adaptive_items,
        grey_second,
    )
    opened = Bundle.open(bundle)
    with computing_on(ray) as executor:
        found = evaluate_bundle(opened, data, out, replace(wish, executor=executor), stages(console))
    print_lines(console, [*lines_of(found), "", f"report {out / 'report.html'}"])
    settings = {
        "quick": str(quick),
        "full": str(full),
        "minutes": f"{wish.time:g}",
        "suite": suite or "",
        "seed": str(seed),
    }
    from guard.tracking import report_run

    tracked(
        mlflow,
        lambda: report_run(opened, out, settings, began_s=began_s),
        f"guard track {bundle} --report {out}",
    )


def audit(
    log: Annotated[Path, typer.Argument(metavar="DIR", help="The directory that audit_dir named.", show_default=False)],
    *,
    out: Annotated[
        Path, typer.Option(metavar="PAGE", help="Where the page is written; a PNG of its picture lies beside it.")
    ] = Path("audit.html"),
    bundle: Annotated[
        list[Path] | None,
        typer.Option(help="A bundle that judged kept inputs: adds where the model looked.", show_default=False),
    ] = None,
) -> None:
    """Write a page of what a guard's audit log holds: waves over time, principals, detectors, kept inputs."""
    from guard.offline.audit.page import facts, write_page

    for fact in facts(write_page(log, out, bundle or ())):
        typer.echo(fact)
    typer.echo(f"page      {out}, {out.with_suffix('.png')}")


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


def make_console() -> Any:
    from rich.console import Console

    return Console()


def stages(console: Any) -> Any:
    from guard.offline.work.progress import Stages

    return Stages(console)
