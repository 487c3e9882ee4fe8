"""The command line: parses, imports one tower, and turns errors into one line and an exit code."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Sequence
from typing import Annotated

import typer

from guard import bundle_commands, delivery_commands, doctor_commands, explain_command, offline_commands
from guard.errors import GuardError
from guard.kserve_arguments import rewritten

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


# In the order of guard --help: the name, what is called, one example.
COMMANDS: tuple[tuple[str, Callable[..., None], str], ...] = (
    ("demo", offline_commands.demo, "guard demo --folder /tmp/demo"),
    ("check", offline_commands.check, "guard check --model model.onnx --data clean.npz"),
    ("train", offline_commands.train, "guard train --model model.onnx --data clean.npz --out bundle --serves digits"),
    ("evaluate", offline_commands.evaluate, "guard evaluate bundle --data unseen.npz --out report --quick"),
    ("score", bundle_commands.score, "guard score bundle inputs.npz"),
    ("inspect", bundle_commands.inspect, "guard inspect bundle"),
    ("calibrate", bundle_commands.calibrate, "guard calibrate bundle --from sample --out recalibrated"),
    ("audit", offline_commands.audit, "guard audit audit --out audit.html"),
    ("explain", explain_command.explain, "guard explain inputs.npz 127.0.0.1:8083 --item 3"),
    ("sign", bundle_commands.sign, "guard sign bundle --key key.pem"),
    ("pack", delivery_commands.pack, "guard pack bundle --out oci://registry.example/guards/digits:1"),
    ("unpack", delivery_commands.unpack, "guard unpack bundle.tar --out bundle"),
    ("track", delivery_commands.track, "guard track bundle --mlflow http://127.0.0.1:5000"),
    ("bench", offline_commands.bench, "guard bench bundle --batches 1,8 --seconds 30"),
    ("serve", bundle_commands.serve, "guard serve --bundle bundle --upstream 127.0.0.1:9000"),
    ("schema", bundle_commands.schema, "guard schema > guard.schema.json"),
    ("model-server", bundle_commands.model_server, "guard model-server --model model.onnx --name digits"),
    ("probe", doctor_commands.probe, "guard probe 127.0.0.1:8081"),
    ("doctor", doctor_commands.doctor, "guard doctor --config guard.toml --bundle bundle --upstream 127.0.0.1:9000"),
    ("drain", bundle_commands.drain, "guard drain 127.0.0.1:8083"),
    (
        "conformance",
        bundle_commands.conformance,
        "guard conformance --upstream 127.0.0.1:9000 --bundle bundle --out report.json",
    ),
)
for name, command, example in COMMANDS:
    app.command(name, epilog=f"Example: {example}")(command)


def run(arguments: Sequence[str]) -> int:
    """Run a command and return its exit code; every error of ours is one line on standard error."""
    debug = "--debug" in arguments
    try:
        words = rewritten([word for word in arguments if word != "--debug"])
        command = typer.main.get_command(app)
        result = command.main(words, prog_name="guard", standalone_mode=False)
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
            "matplotlib": "offline",
            "jinja2": "offline",
            "onnxscript": "offline",
            "pyarrow": "tables",
            "cryptography": "sign",
            "oras": "registry",
            "requests": "registry",
            "mlflow": "mlflow",
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
