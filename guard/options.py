"""Options of the command line that several commands share, each with its help text."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

BundleArgument = Annotated[
    Path, typer.Argument(metavar="BUNDLE", help="Directory that guard train wrote.", show_default=False)
]
Threads = Annotated[
    int | None,
    typer.Option(help="Threads of ONNX Runtime; the CPUs that this process may use unless given.", show_default=False),
]
DataLayout = Annotated[
    str | None,
    typer.Option(
        metavar="NCHW|NHWC|NCT|NTC",
        help="Order of axes of images (four) and series (three).",
        show_default="as the model's input says",
    ),
]
LabelColumn = Annotated[
    str | None,
    typer.Option(
        metavar="NAME", help="Column of a table with the labels.", show_default="label, labels, target, class or y"
    ),
]
DropColumn = Annotated[
    list[str] | None,
    typer.Option(metavar="NAME", help="Column of a table that is left out; may be repeated.", show_default=False),
]
FeaturesFile = Annotated[
    Path | None,
    typer.Option(
        "--features",
        metavar="FILE",
        help="What is known of a table's features, as [[feature]] blocks of TOML: kinds, ranges, steps, costs.",
        show_default="found in the data, with --preset tabular",
    ),
]
Mlflow = Annotated[
    str | None,
    typer.Option(
        "--mlflow",
        metavar="URI",
        help="Log parameters, figures and files to this MLflow tracking server; where that fails it is said.",
        show_default=False,
    ),
]
AcceptAccuracy = Annotated[
    bool, typer.Option("--accept-accuracy", help="Go on where the model is seldom right on the data.")
]
SecondModels = Annotated[
    list[str] | None,
    typer.Option(
        "--second",
        metavar="MODEL",
        help="Another model of the same classes, asked whether it stands behind the model's label; may be repeated.",
        show_default=False,
    ),
]
SecondRange = Annotated[
    list[str] | None,
    typer.Option(
        metavar="LOW,HIGH",
        help="Its values of black and white; once for all, or as often as --second.",
        show_default="the model's",
    ),
]
SecondMean = Annotated[
    list[str] | None,
    typer.Option(help="Per channel or feature, as --mean; once for all, or as often as --second.", show_default=False),
]
SecondStd = Annotated[list[str] | None, typer.Option(help="With --second-mean.", show_default=False)]
SecondData = Annotated[
    Path | None,
    typer.Option(
        metavar="FILE",
        help="The model's own training data, labelled: a second network is trained on them.",
        show_default=False,
    ),
]
SecondMinutes = Annotated[
    float | None,
    typer.Option(
        help="Time for training the second network: fewer epochs than the recipe has, where it is short.",
        show_default="all epochs of the recipe",
        min=0.0,
    ),
]
Device = Annotated[str, typer.Option(help="cpu or cuda; cuda is refused where there is none.")]
ModelSource = Annotated[
    str | None,
    typer.Option(
        metavar="MODEL", help="An .onnx file, a .pt2 file from torch.export, or module:factory.", show_default=False
    ),
]
Answers = Annotated[
    str | None,
    typer.Option(
        metavar="FILE|MODULE:FUNCTION|HOST:PORT",
        help="In place of --model, what answers for a model that cannot be opened: a student is distilled from it.",
        show_default=False,
    ),
]
ServerModel = Annotated[
    str | None,
    typer.Option(
        "--name", metavar="NAME[:VERSION]", help="The model of the server that --answers names.", show_default=False
    ),
]
InputType = Annotated[
    str | None,
    typer.Option(
        metavar="FP32|FP64",
        help="What clients send, where it is not the model's own type: scikit-learn's send FP64.",
        show_default="the model's own",
    ),
]
Questions = Annotated[
    int, typer.Option(help="Answers of a closed model that its student is distilled from, about.", min=1)
]
ServedFile = Annotated[
    Path | None,
    typer.Option(
        metavar="FILE",
        help="The .onnx file that answers clients, where it is not the model: one in fewer bits, made from it.",
        show_default="the model",
    ),
]
CleanData = Annotated[
    Path,
    typer.Option(
        help="Clean inputs and labels: .npz, IDX, .csv, .parquet, a saved data set or class folders.",
        show_default=False,
    ),
]
TestData = Annotated[
    Path | None,
    typer.Option(help="Held-out inputs for the report; a part of --data is held out unless given.", show_default=False),
]
Preset = Annotated[
    str,
    typer.Option(
        help="A recipe that comes with the guard: digits, fast, series, standard, tabular, thorough or vectors."
    ),
]
RecipeFile = Annotated[Path | None, typer.Option(help="A recipe file of your own.", show_default=False)]
PromisedRejectRate = Annotated[float, typer.Option(help="Share of clean items that you are willing to lose.")]
PromisedFlagRate = Annotated[
    float, typer.Option(help="Share of clean items that may be flagged, rejected ones included.")
]
Serves = Annotated[str, typer.Option(metavar="NAME[:VERSION]", help="The model name that clients ask for.")]
InputName = Annotated[
    str | None,
    typer.Option(help="Name of the model's input on the wire.", show_default="an .onnx file's own, else input"),
]
OutputName = Annotated[
    str | None,
    typer.Option(help="Name of the prediction on the wire.", show_default="an .onnx file's own, else logits"),
]
OutputKind = Annotated[
    str, typer.Option(help="What the output holds: logits, probabilities or label; of two classes, one number will do.")
]
ValueRange = Annotated[
    tuple[float, float] | None,
    typer.Option(
        "--range",
        metavar="LOW HIGH",
        help="Wire values of black and white.",
        show_default="0 1; of a table's features what the data have",
    ),
]
Mean = Annotated[
    str | None,
    typer.Option(help="Per channel or feature, as 0.485,0.456,0.406: wire = (pixel - mean) / std.", show_default=False),
]
Std = Annotated[str | None, typer.Option(help="Per channel or feature, with --mean.", show_default=False)]
Repairs = Annotated[
    list[str] | None,
    typer.Option(
        help="Denoiser to offer for REPAIR: bit_depth, dct_quantisation, guided_unet, keyed_resize, median, "
        "moving_average, non_local_means, rectifier, reformer or total_variation; may be repeated."
    ),
]
Cost = Annotated[
    float | None,
    typer.Option(
        metavar="FORWARDS",
        help="Choose those of the recipe's detectors that catch most within so many forwards on clean traffic.",
        show_default="all of the recipe's",
    ),
]
Minutes = Annotated[
    float, typer.Option(help="Time for everything: the report is sized to it, the guard never.", min=0.0)
]
CleanItems = Annotated[
    int | None,
    typer.Option(
        help="Clean items that are used of data that does not fit into memory.",
        show_default="by recipe, rates and memory",
        min=1,
    ),
]
CraftItems = Annotated[
    int | None,
    typer.Option(
        help="Clean items that each attack is tried on, for fitting.", show_default="as the recipe wants", min=1
    ),
]
AttackItems = Annotated[
    int | None,
    typer.Option(
        help="Clean items that each attack is tried on, for the report.", show_default="sized to --minutes", min=1
    ),
]
TorchThreads = Annotated[
    int | None,
    typer.Option(
        help="Threads of torch (the quicker of one and all unless given), and attacks side by side (one a core).",
        show_default=False,
    ),
]
Seed = Annotated[int, typer.Option(min=0, max=2**31 - 1, help="Seed of everything random.")]
RayAddress = Annotated[
    str | None,
    typer.Option(
        "--ray",
        metavar="ADDRESS",
        help="Compute on the Ray cluster at HOST:PORT, ray://HOST:PORT or auto.",
        show_default="this machine's cores",
    ),
]
