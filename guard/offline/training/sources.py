"""Sources of a bundle: the SHA-256 of the model and of the data that it was made from, for its manifest.

How it works. A data set has two digests. `digest` is over its items as the guard read them, a line `HASH LABEL` each,
sorted: it is the same for an .npz, a folder of pictures and a table that hold the same items. `file` is that of the
file's bytes, as `sha256sum` prints it, where the data are one file. No path and no host's name is kept.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from guard.bundle import file_digest
from guard.offline.data.dataset import Dataset
from guard.offline.job.job import Job, by_file


def source_facts(job: Job, data: Dataset) -> dict[str, Any]:
    """Return what a manifest says of the files and data that a bundle was made from."""
    parts = by_file(job, data)
    files = [job.data, *([] if job.test is None else [job.test])]
    facts: dict[str, Any] = {
        name: {"items": len(part), "digest": content_digest(part), **digest_of_file("file", file)}
        for name, part, file in zip(("data", "test"), parts, files, strict=False)
    }
    single = {"model": job.answers or job.model, "served": job.served, "second-data": job.second_data}
    facts |= {name: digest_of_file("digest", source) for name, source in single.items() if source}
    facts |= {f"second-{number}": digest_of_file("digest", one) for number, one in enumerate(job.second)}
    return {name: found for name, found in facts.items() if found}


def content_digest(data: Dataset) -> str:
    """SHA-256 over a data set's items and labels, whatever files they came from and in which order."""
    lines = sorted(f"{one} {label}\n" for one, label in zip(data.hashes.tolist(), data.labels.tolist(), strict=True))
    return sha256_text(lines)


def sha256_text(lines: Sequence[str]) -> str:
    found = hashlib.sha256()
    for line in lines:
        found.update(line.encode())
    return f"sha256:{found.hexdigest()}"


def digest_of_file(name: str, source: str | Path) -> dict[str, str]:
    """Return the SHA-256 of a file under that name; nothing where the source is a folder, a module or a server."""
    file = Path(source)
    return {name: f"sha256:{file_digest(file)}"} if file.is_file() else {}
