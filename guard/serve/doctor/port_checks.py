"""Checks of the addresses that the guard listens on: free, its own already, or somebody else's; and who may connect.

Rule 1: an address is bound for a moment and never listened on, so that a guard that starts meanwhile is not in the way.
"""

from __future__ import annotations

import errno
import http.client
import os
import socket
import stat
from collections.abc import Iterator
from pathlib import Path

from guard.config import ServeConfig
from guard.errors import GuardError
from guard.serve.admin_access import check_admin, is_local
from guard.serve.doctor.finding import Finding
from guard.serve.doctor.setup import Setup
from guard.serve.grpc.unix_socket import PRIVATE_CODE, make_room
from guard.serve.neighbours import neighbour_of, port_error
from guard.target import socket_path, split_address

LISTENERS = ("listen", "rest_listen", "metrics_listen", "admin_listen", "authz_listen")
MAX_METRICS_BYTES = 2**22


def ports(setup: Setup) -> Iterator[Finding]:
    """Whether each address that the guard listens on is free, or a guard's already."""
    config = setup.given.config
    taken = {name: fault for name, address in addresses(config) if (fault := bind_fault(address)) is not None}
    yield from duplicates(config)
    held = {name for name, fault in taken.items() if fault.errno == errno.EADDRINUSE}
    if held and is_running(setup):
        taken = {name: fault for name, fault in taken.items() if name not in held}
        if not taken:
            yield Finding("ports", "ok", f"a guard serves on {listed(config)} already")
    elif not taken:
        yield Finding("ports", "ok", f"free: {listed(config)}")
    for name, fault in taken.items():
        yield Finding("ports", "wrong", f"{name}: {complaint(setup, getattr(config, name), fault)}")


def addresses(config: ServeConfig) -> Iterator[tuple[str, str]]:
    """Yield each listener's setting with its address, where it has one."""
    yield from ((name, address) for name in LISTENERS if (address := getattr(config, name)))


def listed(config: ServeConfig) -> str:
    return ", ".join(f"{name} {address}" for name, address in addresses(config))


def duplicates(config: ServeConfig) -> Iterator[Finding]:
    """Yield a finding for each two listeners that would take one port from each other."""
    seen: dict[int, tuple[str, str]] = {}
    for name, address in addresses(config):
        host, port = split_address(address) or ("", 0)
        if not port:
            continue
        if port in seen and (seen[port][1] == host or any_host(host) or any_host(seen[port][1])):
            said = f"{name} and {seen[port][0]} are both on port {port}; give each a port of its own"
            yield Finding("ports", "wrong", said)
        seen.setdefault(port, (name, host))


def any_host(host: str) -> bool:
    return host in ("0.0.0.0", "[::]", "::")


def bind_fault(address: str) -> OSError | None:
    """Why an address cannot be listened on; None where it can."""
    path = socket_path(address)
    try:
        if path is not None:
            if not Path(path).exists():
                make_room(Path(path))
            elif not stat.S_ISSOCK(Path(path).lstat().st_mode):
                raise OSError(errno.EEXIST, "there is a file that is no socket")
            elif answers(path):
                raise OSError(errno.EADDRINUSE, "another server listens on it")
            return None
        host, port = split_address(address) or ("", 0)
        host = host.strip("[]")
        with socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET) as taking:
            taking.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            taking.bind((host, port))
    except OSError as error:
        return error
    return None


def answers(path: str) -> bool:
    """Whether a server listens on a unix socket."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as client:
        return client.connect_ex(path) == 0


def complaint(setup: Setup, address: str, fault: OSError) -> str:
    """The line of an address that cannot be listened on, with the process that has it where that can be seen."""
    _, port = split_address(address) or ("", 0)
    owner = setup.machine.owner(port) if fault.errno == errno.EADDRINUSE and port else None
    if owner is None:
        return str(port_error(address, fault))
    likely = neighbour_of(address)
    by_default = "" if likely is None else f" (by default it is the port of {likely})"
    return f"cannot listen on {address}: {owner} has it{by_default}; stop it, or name another port"


def is_running(setup: Setup) -> bool:
    """Whether a guard with these settings serves already: its metrics are there, and all its addresses are taken."""
    config = setup.given.config
    fixed = [address for _, address in addresses(config) if (split_address(address) or ("", 1))[1] != 0]
    faults = [bind_fault(address) for address in fixed]
    if any(fault is None or fault.errno != errno.EADDRINUSE for fault in faults):
        return False
    return "guard_build_info" in page(config.metrics_listen, "/metrics", setup.timeout_s)[1]


def page(address: str, path: str, timeout_s: float) -> tuple[int, str]:
    """The status and the text of a page of the metrics listener; 0 and nothing where none answers."""
    host, port = split_address(address) or ("", 0)
    host = {"0.0.0.0": "127.0.0.1", "[::]": "::1", "::": "::1"}.get(host, host.strip("[]"))
    if not port:
        return 0, ""
    connection = http.client.HTTPConnection(host, port, timeout=timeout_s)
    try:
        connection.request("GET", path)
        response = connection.getresponse()
        return response.status, response.read(MAX_METRICS_BYTES).decode("utf-8", "replace")
    except (OSError, http.client.HTTPException, ValueError):
        return 0, ""
    finally:
        connection.close()


def running(setup: Setup) -> Iterator[Finding]:
    """Whether the guard that serves here already is ready, and if not why."""
    if not is_running(setup):
        return
    status, said = page(setup.given.config.metrics_listen, "/readyz", setup.timeout_s)
    if status == http.client.OK:
        yield Finding("running", "ok", "the guard that serves here is ready")
    else:
        yield Finding("running", "wrong", f"the guard that serves here is not ready: {said.strip() or 'no answer'}")


def admin(setup: Setup) -> Iterator[Finding]:
    """Whether strangers can ask the admin listener, which tells p-values."""
    config = setup.given.config
    try:
        check_admin(config)
    except GuardError as error:
        yield Finding("admin", "wrong", str(error))
        return
    path = socket_path(config.admin_listen)
    if path is None:
        where = "on loopback" if is_local(config.admin_listen) else "by TLS, with a token"
        yield Finding("admin", "ok", f"{config.admin_listen}, {where}")
        return
    folder = Path(path).absolute().parent
    if os.path.lexists(path):
        found = Path(path).lstat()
        if stat.S_ISSOCK(found.st_mode) and stat.S_IMODE(found.st_mode) & ~PRIVATE_CODE:
            mode = stat.S_IMODE(found.st_mode)
            yield Finding("admin", "wrong", f"{path} has mode {mode:04o}, so that others may ask; chmod 0600 {path}")
            return
        if found.st_uid != os.geteuid():
            said = f"{path} belongs to user {found.st_uid}, and this is user {os.geteuid()}; remove it, or run as that"
            yield Finding("admin", "wrong", said)
            return
    elif folder.is_dir() and folder.stat().st_mode & (stat.S_IWOTH | stat.S_ISVTX) == stat.S_IWOTH:
        said = f"{folder} can be written to by everybody, who could put a socket of their own at {path}; chmod o-w"
        yield Finding("admin", "wrong", f"{said} {folder}")
        return
    yield Finding("admin", "ok", f"unix:{path}, for its owner alone")
