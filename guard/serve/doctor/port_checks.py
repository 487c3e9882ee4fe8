"""Checks of the addresses that the guard listens on: free, its own already, or another's; and who may connect.

Rule 1: a port that a guard with these settings has is as it should be, unless another of its ports is free.
"""

from __future__ import annotations

import errno
import http.client
import os
import stat
from collections.abc import Iterator
from pathlib import Path

from guard.errors import GuardError
from guard.serve.admin_access import check_admin, is_local
from guard.serve.doctor.listeners import bind_fault, page
from guard.serve.doctor.remark import Remark
from guard.serve.doctor.setup import Setup
from guard.serve.grpc.unix_socket import PRIVATE_CODE
from guard.serve.neighbours import neighbour_of, port_error
from guard.serve.own_ports import addresses, clashes
from guard.target import socket_path, split_address


def ports(setup: Setup) -> Iterator[Remark]:
    """Whether each address that the guard listens on is free, or a guard's already."""
    config = setup.given.config
    listed = ", ".join(f"{name} {address}" for name, address in addresses(config))
    taken = {name: fault for name, address in addresses(config) if (fault := bind_fault(address)) is not None}
    yield from (Remark("ports", "wrong", said) for said in clashes(config))
    held = {name for name, fault in taken.items() if fault.errno == errno.EADDRINUSE}
    if held and setup.is_running:
        taken = {name: fault for name, fault in taken.items() if name not in held}
        if not taken:
            yield Remark("ports", "ok", f"a guard serves on {listed} already")
    elif not taken:
        yield Remark("ports", "ok", f"free: {listed}")
    for name, fault in taken.items():
        yield Remark("ports", "wrong", f"{name}: {complaint(setup, getattr(config, name), fault)}")


def complaint(setup: Setup, address: str, fault: OSError) -> str:
    """The line of an address that cannot be listened on, with the process that has it where that can be seen."""
    _, port = split_address(address) or ("", 0)
    owner = setup.machine.owner(port) if fault.errno == errno.EADDRINUSE and port else None
    if owner is None:
        return str(port_error(address, fault))
    likely = neighbour_of(address)
    by_default = "" if likely is None else f" (by default it is the port of {likely})"
    return f"cannot listen on {address}: {owner} has it{by_default}; stop it, or name another port"


def running(setup: Setup) -> Iterator[Remark]:
    """Whether the guard that serves here already is ready, and if not why."""
    if not setup.is_running:
        return
    status, said = page(setup.given.config.metrics_listen, "/readyz", setup.timeout_s)
    if status == http.client.OK:
        yield Remark("running", "ok", "the guard that serves here is ready")
    else:
        yield Remark("running", "wrong", f"the guard that serves here is not ready: {said.strip() or 'no answer'}")


def admin(setup: Setup) -> Iterator[Remark]:
    """Whether strangers can ask the admin listener, which tells p-values."""
    config = setup.given.config
    try:
        check_admin(config)
    except GuardError:  # told by the check of settings
        return
    path = socket_path(config.admin_listen)
    if path is None:
        where = "on loopback" if is_local(config.admin_listen) else "by TLS, with a token"
        yield Remark("admin", "ok", f"{config.admin_listen}, {where}")
        return
    folder = Path(path).absolute().parent
    if os.path.lexists(path):
        found = Path(path).lstat()
        if stat.S_ISSOCK(found.st_mode) and stat.S_IMODE(found.st_mode) & ~PRIVATE_CODE:
            mode = stat.S_IMODE(found.st_mode)
            yield Remark("admin", "wrong", f"{path} has mode {mode:04o}, so that others may ask; chmod 0600 {path}")
            return
        if found.st_uid != os.geteuid():
            said = f"{path} belongs to user {found.st_uid}, and this is user {os.geteuid()}; remove it, or run as that"
            yield Remark("admin", "wrong", said)
            return
    elif folder.is_dir() and folder.stat().st_mode & (stat.S_IWOTH | stat.S_ISVTX) == stat.S_IWOTH:
        said = f"{folder} can be written to by everybody, who could put a socket of their own at {path}; chmod o-w"
        yield Remark("admin", "wrong", f"{said} {folder}")
        return
    yield Remark("admin", "ok", f"unix:{path}, for its owner alone")
