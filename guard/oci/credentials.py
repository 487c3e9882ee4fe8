"""The login of docker at a registry: a password in config.json, or with a helper that is named there.

Rule 1: nothing is stored here, and no secret is in a message.
Rule 2: what is there and cannot be used is said: a login that is there is not asked for.
"""

from __future__ import annotations

import base64
import binascii
import json
import os
import re
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

HELPER = "docker-credential-"
HELPER_TIMEOUT_S = 20.0
WORD = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")  # the rest of a helper's name
INDEX = re.compile(r"https://index\.(?P<domain>[^/]+)/v1/")  # under which docker keeps what is for registry-1.DOMAIN
TOKEN_USER = "<token>"  # for which a helper's secret is an identity token


@dataclass(frozen=True)
class Login:
    """What is there for a registry: user and secret, or why it cannot be used."""

    user: str = ""
    secret: str = field(default="", repr=False)
    why_not: str = ""


def login_for(host: str) -> Login | None:
    """Find what `docker login` left for a registry; None where there is nothing."""
    file = config_file()
    try:
        config = json.loads(file.read_bytes())
    except OSError:
        return None
    except ValueError:
        return Login(why_not=f"{file} is no JSON")
    if not isinstance(config, Mapping):
        return Login(why_not=f"{file} is no object of JSON")
    auths, helpers = table(config, "auths"), table(config, "credHelpers")
    key = next((key for key in (*auths, *helpers) if is_for(key, host)), host)
    entry = table(auths, key)
    if text := entry.get("auth"):
        return plain(str(text), file)
    helper = helpers.get(key, config.get("credsStore"))
    if helper:
        found = asked(str(helper), key)
        if found is not None:
            return found
    if entry.get("identitytoken"):
        return Login(why_not=f"{file} has an identity token for it, which docker alone can exchange")
    return None


def config_file() -> Path:
    """The file of `docker login`: in DOCKER_CONFIG, or in ~/.docker."""
    folder = os.environ.get("DOCKER_CONFIG")
    return (Path(folder) if folder else Path("~/.docker").expanduser()) / "config.json"


def table(found: Mapping[str, Any], key: str) -> Mapping[str, Any]:
    value = found.get(key)
    return value if isinstance(value, Mapping) else {}


def is_for(key: str, host: str) -> bool:
    """Whether an entry is for a registry. Docker writes a host, or as before it the address of an index."""
    if (index := INDEX.fullmatch(key)) is not None:
        return host in (f"registry-1.{index['domain']}", f"index.{index['domain']}")
    return key.partition("://")[2].partition("/")[0] == host if "://" in key else key.partition("/")[0] == host


def plain(text: str, file: Path) -> Login:
    """Read an `auth`: user and password in base64."""
    try:
        user, colon, secret = base64.b64decode(text, validate=True).decode().partition(":")
    except (binascii.Error, UnicodeDecodeError):
        user, colon, secret = "", "", ""
    return (
        Login(user, secret) if colon else Login(why_not=f"{file} has an auth for it that is no USER:PASSWORD in base64")
    )


def asked(helper: str, key: str) -> Login | None:
    """Ask a helper; None where it knows nothing of this registry."""
    program = f"{HELPER}{helper}"
    if not WORD.fullmatch(helper):
        return Login(why_not=f"its helper {helper!r} has no name that a program can have")
    try:
        done = subprocess.run(
            [program, "get"], input=key, capture_output=True, text=True, check=False, timeout=HELPER_TIMEOUT_S
        )
    except OSError as error:
        return Login(why_not=f"it is with the helper {program}, which cannot be run here ({error.strerror})")
    except subprocess.TimeoutExpired:
        return Login(why_not=f"it is with the helper {program}, which did not answer within {HELPER_TIMEOUT_S:g} s")
    if done.returncode != 0 and "not found" in done.stdout + done.stderr:
        return None
    try:
        found = json.loads(done.stdout) if done.returncode == 0 else None
        user, secret = str(found["Username"]), str(found["Secret"])  # type: ignore[index]
    except (ValueError, KeyError, TypeError):
        return Login(why_not=f"it is with the helper {program}, which gave none (exit code {done.returncode})")
    if user == TOKEN_USER:
        return Login(why_not=f"the helper {program} has an identity token for it, which docker alone can exchange")
    return Login(user, secret)
