"""Variables that Kubernetes puts into a container for each Service of its namespace, and that look like settings.

A Service called `guard` or `guard-metrics` gives every pod GUARD_PORT=tcp://10.0.0.1:8081, GUARD_SERVICE_HOST and more,
unless its template says `enableServiceLinks: false`, which is not always the operator's to write.

Rule 1: a variable is a link by its name and its value both; all else that begins like a setting has to be one.
"""

from __future__ import annotations

import ipaddress
import re

NAME = re.compile(
    r"GUARD(?:_[A-Z0-9]+)*?_"
    r"(?:(?P<url>PORT(?:_\d+_(?:TCP|UDP|SCTP))?)"
    r"|(?P<address>PORT_\d+_(?:TCP|UDP|SCTP)_ADDR|SERVICE_HOST)"
    r"|(?P<protocol>PORT_\d+_(?:TCP|UDP|SCTP)_PROTO)"
    r"|(?P<port>PORT_\d+_(?:TCP|UDP|SCTP)_PORT|SERVICE_PORT(?:_[A-Z0-9_]+)?))"
)
URL = re.compile(r"(?:tcp|udp|sctp)://(?P<host>.+):(?P<port>\d{1,5})")
PORT = re.compile(r"\d{1,5}")


def is_service_link(variable: str, value: str) -> bool:
    """Whether a variable of the environment is one that Kubernetes made of a Service."""
    name = NAME.fullmatch(variable)
    if name is None:
        return False
    match name.lastgroup:
        case "url":
            url = URL.fullmatch(value)
            return url is not None and is_ip_address(url["host"].strip("[]"))
        case "address":
            return is_ip_address(value)
        case "protocol":
            return value in ("tcp", "udp", "sctp")
        case _:
            return PORT.fullmatch(value) is not None


def is_ip_address(text: str) -> bool:
    try:
        ipaddress.ip_address(text)
    except ValueError:
        return False
    return True
