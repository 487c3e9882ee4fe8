"""Commands that need a bundle or a server and no torch: score, inspect, calibrate, sign, serve, drain and others."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated

import typer

from guard.option_values import column_choice, device_name
from guard.options import (
    BundleArgument,
    DataLayout,
    Device,
    DropColumn,
    LabelColumn,
    Threads,
)

TokenFile = Annotated[
    Path | None,
    typer.Option(envvar="GUARD_ADMIN_TOKENS", help="File with a token of admin_tokens.", show_default=False),
]
Tls = Annotated[bool, typer.Option("--tls", help="Speak TLS; the options below mean it, too.")]
Ca = Annotated[Path | None, typer.Option(metavar="PEM", help="Whom to trust.", show_default="the system's")]
ClientCertificate = Annotated[Path | None, typer.Option(metavar="PEM", help="What to show.", show_default=False)]
ClientKey = Annotated[Path | None, typer.Option(metavar="PEM", help="Its key.", show_default=False)]
ServerName = Annotated[
    str | None, typer.Option(help="The name in the server's certificate.", show_default="the address's")
]


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


def inspect(
    bundle: BundleArgument,
    *,
    as_json: Annotated[bool, typer.Option("--json", help="The manifest as it stands.")] = False,
    trusted_key: Annotated[
        list[Path] | None,
        typer.Option(help="Public key (PEM): refuses what it did not sign.", show_default=False),
    ] = None,
) -> None:
    """Print what is in a bundle, who signed it, and what each detector costs."""
    from guard.bundle import MANIFEST
    from guard.signing import Trust, open_trusted
    from guard.summary import summarise

    opened, signer = open_trusted(bundle, Trust.of(trusted_key or ()))
    if as_json:
        typer.echo((opened.path / MANIFEST).read_text(encoding="utf-8").rstrip())
    else:
        typer.echo(summarise(opened, verified_by=signer))


def sign(
    bundle: BundleArgument,
    *,
    key: Annotated[Path, typer.Option(metavar="PEM", help="The private key: ECDSA, P-256.", show_default=False)],
    replace: Annotated[bool, typer.Option(help="Sign anew a bundle that is signed already.")] = False,
) -> None:
    """Sign a bundle as OpenSSF model signing does; guard serve checks it against trusted_keys."""
    from guard.bundle import Bundle
    from guard.signing import sign as run

    def ask() -> str:
        password: str = typer.prompt(f"password of {key}", hide_input=True, err=True)
        return password

    file, key_id = run(Bundle.open(bundle), key, ask=ask, replace=replace)
    typer.echo(f"{file}, by the key {key_id}")


def calibrate(
    bundle: BundleArgument,
    *,
    sample: Annotated[
        Path, typer.Option("--from", metavar="STORE", help="An unbiased sample of traffic.", show_default=False)
    ],
    out: Annotated[Path, typer.Option(metavar="NEW", help="Where the new bundle is written.", show_default=False)],
    unnoticed: Annotated[
        float, typer.Option(help="Share of the sample that may be attacks nobody noticed: so much is left out.")
    ] = 0.01,
    max_rejected: Annotated[
        float, typer.Option(help="Share of the sample that the bundle may reject before it counts as attacked.")
    ] = 0.1,
    other_model: Annotated[
        bool, typer.Option("--other-model", help="Take a sample that names another model than the bundle's.")
    ] = False,
    device: Device = "cpu",
    threads: Threads = None,
) -> None:
    """Set thresholds and tails anew from a sample of traffic, without retraining; the new bundle is unsigned."""
    from guard.bundle import Bundle
    from guard.recalibrate import recalibrate, summary

    told = recalibrate(
        Bundle.open(bundle),
        sample,
        out,
        unnoticed_share=unnoticed,
        max_rejected_share=max_rejected,
        device=device_name(device),
        threads=threads,
        other_model=other_model,
    )
    summary(told, bundle, typer.echo)


def serve(
    *,
    bundle: Annotated[
        str | None,
        typer.Option(help="Directory that guard train wrote; required, here or as a setting.", show_default=False),
    ] = None,
    upstream: Annotated[
        str | None,
        typer.Option(
            metavar="TARGET",
            help="The model server to guard, HOST:PORT or another gRPC target; required, here or as a setting.",
            show_default=False,
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
        typer.Option(metavar="ADDRESS", help="guard.v1: Inspect, Describe and Drain.", show_default="127.0.0.1:8083"),
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
    kserve: Annotated[list[str] | None, typer.Option(hidden=True)] = None,
) -> None:
    """The sidecar. Settings: flags, then GUARD_* variables, then guard.toml, then the defaults.

    KServe's arguments for a transformer (--model_name, --predictor_host, --http_port and the others) are taken as well.
    """
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")  # before numpy, which starts a thread a CPU otherwise
    os.environ.setdefault("GRPC_VERBOSITY", "ERROR")  # before grpc, which writes a line for each failed handshake
    from guard.config import SettingsSource, service_links
    from guard.kserve_arguments import kserve_settings
    from guard.serve.log import Log
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
    of_kserve = kserve_settings(kserve or (), os.environ)
    own = {name: value for name, value in flags.items() if value is not None}
    source = SettingsSource(config, dict(os.environ), {**of_kserve.flags, **own})
    settings = source.load()
    if kserve:
        Log(settings.log_level).info(
            "kserve arguments",
            settings=of_kserve.flags,
            assumed=of_kserve.assumed,
            without_effect=of_kserve.without_effect
            | ({"model_name": "the tables of guard.toml name the models"} if settings.models else {}),
        )
    if links := service_links(os.environ):
        Log(settings.log_level).warning(
            "service links ignored",
            variables=links,
            warning="these variables are Kubernetes' links to a Service whose name begins with guard, and no settings; "
            "enableServiceLinks: false in the pod's template leaves them out",
        )
    run(settings, source)


def schema() -> None:
    """The JSON schema of guard.toml, for editors and validators: every setting with its type, range and default."""
    import json

    from guard.settings_schema import settings_schema

    typer.echo(json.dumps(settings_schema(), indent=2, ensure_ascii=False))


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


def drain(
    address: Annotated[
        str,
        typer.Argument(
            metavar="HOST:PORT|unix:PATH",
            envvar="GUARD_ADMIN_LISTEN",
            help="The guard's admin_listen.",
            show_envvar=True,
        ),
    ] = "127.0.0.1:8083",
    *,
    token_file: TokenFile = None,
    tls: Tls = False,
    ca: Ca = None,
    certificate: ClientCertificate = None,
    key: ClientKey = None,
    server_name: ServerName = None,
) -> None:
    """Send a guard's clients elsewhere before it is stopped: for preStop hooks. Returns after its drain_s."""
    from guard.serve.client_channel import ClientTls
    from guard.serve.drain_call import drain as run

    spoken = ClientTls.of(tls=tls, ca=ca, certificate=certificate, key=key, server_name=server_name)
    typer.echo(run(address, tls=spoken, token_file=token_file))


def conformance(
    *,
    upstream: Annotated[
        str, typer.Option(metavar="TARGET", help="The model server, HOST:PORT or another target.", show_default=False)
    ],
    guard: Annotated[
        str | None,
        typer.Option(
            metavar="TARGET",
            help="A guard in front of it; unless given one is started, for which more can be checked.",
            show_default=False,
        ),
    ] = None,
    bundle: Annotated[
        str | None,
        typer.Option(help="Of the guard that is started; without one it passes all (mode off).", show_default=False),
    ] = None,
    mode: Annotated[
        str | None, typer.Option(help="Of the guard that is started: enforce, flag, shadow or off.", show_default=False)
    ] = None,
    model: Annotated[
        str | None,
        typer.Option(
            metavar="NAME[:VERSION]",
            help="The model to ask; the bundle's, or the only one that the server lists, unless given.",
            show_default=False,
        ),
    ] = None,
    request: Annotated[
        Path | None,
        typer.Option(
            help="A ModelInferRequest to send, serialized or as protobuf's JSON; made up unless given.",
            show_default=False,
        ),
    ] = None,
    only: Annotated[
        list[str] | None, typer.Option(metavar="NAME", help="A procedure to try, again and again.", show_default="all")
    ] = None,
    out: Annotated[Path | None, typer.Option(help="File for the report, JSON.", show_default=False)] = None,
    timeout_s: Annotated[float, typer.Option("--timeout", help="Seconds for one call.")] = 10.0,
    tls: Tls = False,
    ca: Ca = None,
    certificate: ClientCertificate = None,
    key: ClientKey = None,
    server_name: ServerName = None,
) -> None:
    """Call every remote procedure of a model server directly and through the guard, and report each difference.

    Reads and infers only, some three hundred calls one after the other. Exit code 12 where something differs.
    """
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")  # before numpy, as above
    from rich.console import Console

    from guard.serve.client_channel import ClientTls
    from guard.serve.conformance.conformance import TrialOptions, run_trial
    from guard.serve.conformance.report import check_report, parts

    options = TrialOptions(
        upstream=upstream,
        guard=guard,
        bundle=bundle,
        mode=mode,
        model=model,
        request=request,
        only=tuple(only or ()),
        tls=ClientTls.of(tls=tls, ca=ca, certificate=certificate, key=key, server_name=server_name),
        timeout_s=timeout_s,
    )
    report = run_trial(options)
    if out is not None:
        out.write_text(report.to_json(), encoding="utf-8")
    console = Console()
    for part in parts(report):
        console.print(part)
    check_report(report)
