"""Data sets as other tools write them, made by hand with pyarrow: Parquet exports and `save_to_disk` folders."""

from __future__ import annotations

import io
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from PIL import Image


def png_bytes(values: NDArray[np.uint8]) -> bytes:
    stream = io.BytesIO()
    Image.fromarray(values).save(stream, "PNG")
    return stream.getvalue()


def picture_column(pictures: Sequence[NDArray[np.uint8] | None]) -> pa.Array:
    """A column as Hugging Face stores images: the bytes of a file beside its path."""
    content = [None if one is None else png_bytes(one) for one in pictures]
    paths = [f"{place}.png" for place in range(len(pictures))]
    return pa.StructArray.from_arrays([pa.array(content, pa.binary()), pa.array(paths)], ["bytes", "path"])


def class_label(*names: str) -> dict[str, Any]:
    return {"names": list(names), "_type": "ClassLabel"}


def described(table: pa.Table, features: Mapping[str, Any]) -> pa.Table:
    """A table whose schema carries the description of its columns, as an export has it."""
    return table.replace_schema_metadata({"huggingface": json.dumps({"info": {"features": dict(features)}})})


def save_to_disk(folder: Path, table: pa.Table, features: Mapping[str, Any] | None = None, parts: int = 1) -> Path:
    """A folder as `save_to_disk` writes it, in so many parts."""
    folder.mkdir(parents=True, exist_ok=True)
    names = [f"data-{part:05}-of-{parts:05}.arrow" for part in range(parts)]
    step = -(-table.num_rows // parts)
    for part, name in enumerate(names):
        rows = table.slice(part * step, step)
        with pa.OSFile(str(folder / name), "wb") as sink, pa.ipc.new_stream(sink, table.schema) as writer:
            writer.write_table(rows, max_chunksize=3)
    state = {"_data_files": [{"filename": name} for name in names], "_fingerprint": "0", "_split": None}
    (folder / "state.json").write_text(json.dumps(state))
    (folder / "dataset_info.json").write_text(json.dumps({"features": dict(features or {})}))
    return folder
