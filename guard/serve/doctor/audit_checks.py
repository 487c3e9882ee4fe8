"""Checks of what the guard writes and watches: the audit's directory, the sink of its events, and files to reload.

Rule 1: what is written to try a directory is one empty file, and is removed at once.
"""

from __future__ import annotations

import os
import shutil
import socket
import stat
import tempfile
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlsplit

from guard.serve.doctor.remark import Remark
from guard.serve.doctor.setup import Setup

MIN_FREE_BYTES = 16 * 2**20
WATCHED = (
    *("tls_certificate", "tls_key", "tls_client_ca", "upstream_certificate", "upstream_key", "upstream_ca"),
    *("client_tokens", "admin_tokens"),
)


def audit(setup: Setup) -> Iterator[Remark]:
    """Whether the audit can be written where it is to be, and has the room that it may take."""
    config = setup.given.config
    if config.audit_dir is None:
        return
    folder = Path(config.audit_dir)
    there = existing(folder)
    if (fault := write_fault(there)) is not None:
        said = f"audit_dir = {config.audit_dir!r}: {there} cannot be written to: {fault}; mount a volume that user"
        yield Remark("audit", "wrong", f"{said} {os.geteuid()} may write to")
        return
    free = shutil.disk_usage(there).free
    logs = 1 + (len(setup.bundles) if config.sample_share > 0 else 0)
    wanted, has = logs * config.audit_max_bytes, f"{free // 2**20} MiB free"
    if free < MIN_FREE_BYTES:
        yield Remark("audit", "wrong", f"audit_dir = {config.audit_dir!r}: {has}; lines will be lost: make room")
    elif free + used(folder) < wanted:
        said = f"audit_dir = {config.audit_dir!r}: {has}, and it may take {wanted // 2**20} MiB; lower audit_max_bytes"
        yield Remark("audit", "warn", f"{said}, or give it room")
    elif folder.is_dir() and stat.S_IMODE(folder.stat().st_mode) & 0o077 and config.audit_inputs:
        said = f"audit_dir = {config.audit_dir!r} holds inputs and others may list it; chmod 0700 {folder}"
        yield Remark("audit", "warn", said)
    else:
        yield Remark("audit", "ok", f"{config.audit_dir} can be written to, {has}")


def existing(folder: Path) -> Path:
    """The folder itself, or the nearest above it that is there: the guard makes those between."""
    return next(one for one in (folder.absolute(), *folder.absolute().parents) if one.exists())


def write_fault(folder: Path) -> str | None:
    """Why no file can be made in a folder; None where one can."""
    try:
        with tempfile.TemporaryFile(dir=folder):
            return None
    except OSError as error:
        return error.strerror or str(error)


def used(folder: Path) -> int:
    """The bytes of what the audit has written already, which it may replace."""
    return sum(file.stat().st_size for file in folder.rglob("*") if file.is_file()) if folder.is_dir() else 0


def events(setup: Setup) -> Iterator[Remark]:
    """Whether a server listens where events are posted; nothing is posted."""
    sink = setup.given.config.events_sink
    if sink is None:
        return
    parts = urlsplit(sink)
    port = parts.port or (443 if parts.scheme == "https" else 80)
    try:
        socket.create_connection((parts.hostname or "", port), timeout=setup.timeout_s).close()
    except OSError as error:
        said = f"events_sink = {sink!r}: {error.strerror or error}; events are lost and counted until it is there"
        yield Remark("events", "wrong", said)
        return
    yield Remark("events", "ok", f"{parts.hostname}:{port} accepts connections")


def reload(setup: Setup) -> Iterator[Remark]:
    """Whether what is to be read again when it changes can change where it is."""
    given = setup.given
    files = {name: path for name in WATCHED if (path := getattr(given.config, name))}
    if given.file is not None and given.config.watch_files:
        files["--config"] = str(given.file)
    fixed = [f"{name} = {path!r}" for name, path in files.items() if setup.machine.mounted(path)]
    if fixed:
        said = f"{', '.join(fixed)}: mounted by subPath, whose content Kubernetes never changes; mount the whole volume"
        yield Remark("reload", "warn", said)
    elif files:
        yield Remark("reload", "ok", f"read again when they change: {', '.join(files)}")
