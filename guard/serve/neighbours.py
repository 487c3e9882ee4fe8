"""Servers that are likely to stand beside a guard in one pod, by the ports that they take unless told otherwise."""

from __future__ import annotations

import errno

from guard.errors import PortError
from guard.target import split_address

NEIGHBOURS: tuple[tuple[str, tuple[int, ...]], ...] = (
    ("Triton", (8000, 8001, 8002)),
    ("MLServer or KServe's Python server", (8080, 8081)),
    ("MLServer's metrics", (8082,)),
    ("KServe's queue-proxy", (8012, 8013, 8022, 9090, 9091)),
    ("KServe's agent", (9081, 9088)),
    ("OpenVINO Model Server, or Triton as KServe starts it", (9000,)),
    ("Istio's proxy", (15000, 15001, 15004, 15006, 15008, 15009, 15020, 15021, 15053, 15090)),
    ("another guard", (8083,)),
)


def port_error(address: str, error: OSError | RuntimeError) -> PortError:
    """The error of an address that cannot be listened on, with the likely neighbour where the port is taken."""
    why = getattr(error, "strerror", None) or "it is taken or not ours"
    neighbour = neighbour_of(address) if getattr(error, "errno", None) == errno.EADDRINUSE else None
    likely = "" if neighbour is None else f" (by default it is the port of {neighbour})"
    return PortError(f"cannot listen on {address}: {why}{likely}; free it or name another")


def neighbour_of(address: str) -> str | None:
    """The server that is known for the port of an address; None where none is."""
    _, port = split_address(address) or ("", 0)
    return next((name for name, ports in NEIGHBOURS if port in ports), None)
