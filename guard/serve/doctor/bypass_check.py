"""The check for ways around the guard: a guarded model that answers on the pod's own address, past the guard.

How it works. A model server that should be reached through the guard alone listens on loopback. Each port on which
something listens for the pod's own addresses, the guard's own aside, is asked for each guarded model, by gRPC and by
HTTP, as a client without a certificate would ask. Ports are taken from the kernel's list, so that a second door of the
same server (Triton's HTTP beside its gRPC) is found whatever its number; where there is no such list, the model
server's ports and those known of model servers are tried.

Rule 1: a port counts only if a guarded model answers there: what else listens on a machine is no way around the guard.
        Without a bundle, in mode off, only the model server's own ports are asked, and any server there counts.
"""

from __future__ import annotations

import asyncio
import http.client
import json
import ssl
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any
from urllib.parse import quote, urlsplit

import grpc
import grpc.aio
from google.protobuf.message import DecodeError

from guard.config import ServeConfig
from guard.errors import GuardError
from guard.serve.certificates import system_roots
from guard.serve.doctor.listeners import addresses
from guard.serve.doctor.machine import ListeningSocket, resolved
from guard.serve.doctor.remark import Remark
from guard.serve.doctor.setup import Setup
from guard.serve.grpc.credentials import channel_credentials
from guard.serve.grpc.upstream import path
from guard.serve.grpc.wire.inference_pb2 import ModelMetadataRequest, ModelMetadataResponse
from guard.serve.identities import Identity, upstream_identity
from guard.serve.neighbours import NEIGHBOURS
from guard.target import hosts_and_ports, split_address

ASK_S = 2.0  # for one port to answer
MAX_ASKED_ENTRIES = 256  # that are asked of one address
MAX_BODY_BYTES = 2**20
MAX_ASKING_THREADS = 64
LOOPBACK = ("127.", "::1")


@dataclass(frozen=True)
class WayAround:
    """An address on which a guarded model answers without the guard."""

    host: str
    port: int
    protocol: str
    model: str  # empty: the server as a whole

    def __str__(self) -> str:
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"{host}:{self.port} ({self.protocol})"


def bypass(setup: Setup) -> Iterator[Remark]:
    """Whether a client can reach a guarded model without the guard, on an address of this machine or pod."""
    config, names = setup.given.config, [spec.name for spec in setup.specs]
    if not config.upstream or (setup.bundles and not names):
        return
    if remote := remote_hosts(config, setup.machine.addresses()):
        yield Remark(
            "bypass",
            "unknown",
            f"the model server is on another machine ({', '.join(remote)}): let a NetworkPolicy or its certificates "
            "admit the guard alone; from here it cannot be tried",
        )
    own = setup.machine.addresses()
    asked = [(host, port) for host in own for port in ports_of(setup, host) if names or port in served_ports(config)]
    found = asyncio.run(ways_around(config, asked, names or [""]))
    for model in dict.fromkeys(way.model for way in found):
        ways, what = ", ".join(str(way) for way in found if way.model == model), f"model {model!r}"
        cure = "let its server listen on 127.0.0.1 alone, and close its other ports"
        said = f"{what if model else 'the model server'} answers on {ways}, past the guard; {cure}"
        yield Remark("bypass", "wrong", said)
    if not found and not remote:
        where = f"ports asked: {len(asked)} of {', '.join(own)}" if own else "this machine has no address but loopback"
        yield Remark("bypass", "ok", f"no guarded model answers past the guard: {where}")


def remote_hosts(config: ServeConfig, own: Sequence[str]) -> list[str]:
    """The hosts of the model server that are not this machine."""
    hosts = dict.fromkeys(host for host, _ in hosts_and_ports(config.upstream))
    return [host for host in hosts if not all(at.startswith(LOOPBACK) or at in own for at in resolved(host))]


def ports_of(setup: Setup, host: str) -> list[int]:
    """The ports of one of this machine's addresses that are to be asked: not those at which the guard itself listens.

    Another address may have the same port: a guard's admin on 127.0.0.1:8083, a model server on 10.0.0.7:8083.
    """
    config = setup.given.config
    own = {
        address[1]
        for _, text in addresses(config)
        if (address := split_address(text))
        and any(ListeningSocket(at, address[1], "").answers_at(host) for at in resolved(address[0]))
    }
    listening = setup.machine.listening()
    if listening is None:
        known = {port for _, ports in NEIGHBOURS for port in ports}
        found = known | served_ports(config)
    else:
        found = {one.port for one in listening if one.answers_at(host)}
    return sorted(found - own)[:MAX_ASKED_ENTRIES]


def served_ports(config: ServeConfig) -> set[int]:
    """The ports of the model server that the settings name."""
    rest = urlsplit(config.rest_upstream).port
    return {port for _, port in hosts_and_ports(config.upstream)} | ({rest} if rest else set())


async def ways_around(config: ServeConfig, asked: Sequence[tuple[str, int]], names: Sequence[str]) -> list[WayAround]:
    """Ask each address for each model, by gRPC and by HTTP, all at once."""
    asyncio.get_running_loop().set_default_executor(ThreadPoolExecutor(MAX_ASKING_THREADS))
    credentials = strangers_credentials(config)
    questions = [
        question
        for host, port in asked
        for name in names
        for question in (
            by_grpc(host, port, name, credentials, config.upstream_authority),
            asyncio.to_thread(by_http, host, port, name),
        )
    ]
    return [way for way in await asyncio.gather(*questions) if way is not None]


def strangers_credentials(config: ServeConfig) -> grpc.ChannelCredentials | None:
    """What a client has that holds no certificate of the guard's; None where the model server speaks no TLS."""
    if not config.upstream_tls:
        return None
    try:
        identity = upstream_identity(config)
    except GuardError:  # told by the check of certificates
        identity = None
    without = None if identity is None else Identity(None, identity.value.authorities, ())
    return channel_credentials(without, system_roots())


async def by_grpc(
    host: str, port: int, name: str, credentials: grpc.ChannelCredentials | None, authority: str | None
) -> WayAround | None:
    """The way around the guard by gRPC at an address; None where there is none."""
    target = f"ipv6:[{host}]:{port}" if ":" in host else f"ipv4:{host}:{port}"
    options: list[tuple[str, Any]] = [("grpc.enable_http_proxy", 0), ("grpc.use_local_subchannel_pool", 1)]
    if authority is not None:
        options.append(("grpc.default_authority", authority))
    made = (
        grpc.aio.insecure_channel(target, options)
        if credentials is None
        else grpc.aio.secure_channel(target, credentials, options)
    )
    async with made as channel:
        ask: Any = channel.unary_unary(path("ModelMetadata" if name else "ServerLive"))
        try:
            body = await ask(ModelMetadataRequest(name=name).SerializeToString() if name else b"", timeout=ASK_S)
            if name and ModelMetadataResponse.FromString(body).name != name:
                return None
        except (grpc.aio.AioRpcError, DecodeError):
            return None
    return WayAround(host, port, "gRPC", name)


def by_http(host: str, port: int, name: str) -> WayAround | None:
    """The way around the guard by HTTP at an address, with or without TLS; None where there is none."""
    unverified = ssl.create_default_context()
    unverified.check_hostname = False
    unverified.verify_mode = ssl.CERT_NONE
    for protocol in ("HTTP", "HTTPS"):
        connection = (
            http.client.HTTPConnection(host, port, timeout=ASK_S)
            if protocol == "HTTP"
            else http.client.HTTPSConnection(host, port, timeout=ASK_S, context=unverified)
        )
        try:
            connection.request("GET", f"/v2/models/{quote(name, safe='')}" if name else "/v2/health/live")
            response = connection.getresponse()
            body = response.read(MAX_BODY_BYTES)
            document = json.loads(body) if name else {"name": ""}
        except (OSError, http.client.HTTPException, ValueError, RecursionError):
            continue
        finally:
            connection.close()
        if response.status == http.client.OK and isinstance(document, dict) and document.get("name") == name:
            return WayAround(host, port, protocol, name)
    return None
