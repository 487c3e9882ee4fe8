"""Generates the stubs in guard/serve/grpc/wire from the .proto files; run it where grpcio-tools is installed.

    .side/stubs/bin/python proto/generate.py                 writes the committed stubs anew
    .side/stubs/bin/python proto/generate.py --out FOLDER    writes them elsewhere (a test compares)

Rule 1: our messages live in a descriptor pool of their own. A client library that defines `inference.*` too
(tritonclient does) fills the default pool, and a second file with the same names in one pool raises.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from pathlib import Path

HERE = Path(__file__).resolve().parent
WIRE = HERE.parent / "guard" / "serve" / "grpc" / "wire"
SOURCES = ("inference.proto", "guard/v1/guard.proto")

REWRITES = (  # generated text -> ours; each must be found in at least one stub
    ("_descriptor_pool.Default()", "_POOL"),
    (
        "from google.protobuf import descriptor_pool as _descriptor_pool",
        "from guard.serve.grpc.wire.pool import POOL as _POOL",
    ),
    ("_Mapping]", "_Mapping[str, object]]"),  # bare, it fails a strict type check
    ("import inference_pb2 as", "from guard.serve.grpc.wire import inference_pb2 as"),
)


def main() -> None:
    parser = argparse.ArgumentParser(description="Generate the protobuf stubs of guard/serve/grpc/wire.")
    parser.add_argument("--out", type=Path, default=WIRE)
    write(parser.parse_args().out)


def write(out: Path) -> None:
    """Run protoc on every source and write the rewritten stubs, flat, into `out`."""
    from grpc_tools import protoc  # type: ignore[import-not-found]  # lives in the side environment only

    with tempfile.TemporaryDirectory() as folder:
        arguments = ["protoc", f"--proto_path={HERE}", f"--python_out={folder}", f"--pyi_out={folder}", *SOURCES]
        if protoc.main(arguments) != 0:
            sys.exit("protoc failed; nothing was written")
        stubs = {file.name: file.read_text(encoding="utf-8") for file in sorted(Path(folder).rglob("*_pb2.py*"))}
    for found, _ in REWRITES:
        if not any(found in text for text in stubs.values()):
            sys.exit(f"protoc no longer writes {found!r}: the stubs would land in the default pool; mend REWRITES")
    out.mkdir(parents=True, exist_ok=True)
    for name, text in stubs.items():
        for found, ours in REWRITES:
            text = text.replace(found, ours)
        (out / name).write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
