"""Everything that settings say of trust: certificates, tokens, trusted keys; read at the start, followed afterwards.

Rule 1: what cannot be used at the start is an error; later it changes nothing, and is told and counted.
Rule 2: the end of a certificate is told before it comes: a week, a day, and when it has come.
"""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Iterable, Iterator
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from dataclasses import dataclass
from functools import partial
from typing import Any

from prometheus_client import CollectorRegistry, Counter, Gauge

from guard.config import ServeConfig
from guard.serve.admin_access import is_local
from guard.serve.grpc.credentials import Credentials, listener_credentials
from guard.serve.identities import Identity, listener_identity, upstream_identity
from guard.serve.log import Log
from guard.serve.principal import Principals
from guard.serve.rotation import Found, NamedFile, Rotated
from guard.serve.tokens import Tokens, tokens_of
from guard.serve.watching import in_background
from guard.signing import Trust

DAY_S = 86400.0
WARN_BEFORE_S = (7 * DAY_S, DAY_S, 0.0)
EXPIRY_POLL_S = 60.0
RETRY_S = 10.0  # between attempts to use a new certificate that the model server does not take


@dataclass(frozen=True)
class Security:
    """The guard's certificates and the tokens that it knows, each followed while it serves."""

    listener: Rotated[Identity] | None
    upstream: Rotated[Identity] | None
    clients: Rotated[Tokens] | None
    admins: Rotated[Tokens] | None
    principals: Principals  # of clients
    operators: Principals  # of the admin listener
    trust: Trust
    tokens_in_the_clear: bool  # clients send them where others could read them

    @staticmethod
    def open(config: ServeConfig) -> Security:
        """Read every file that the settings name. Raises ConfigError."""
        clients = tokens_in(config, "client_tokens")
        admins = tokens_in(config, "admin_tokens")
        return Security(
            listener_identity(config),
            upstream_identity(config),
            clients,
            admins,
            Principals.of(config, clients),
            Principals() if admins is None else Principals("bearer", admins),
            Trust.of(config.trusted_keys, required=config.require_signature),
            clients is not None and config.tls_certificate is None and not is_local(config.listen),
        )

    @property
    def identities(self) -> tuple[Rotated[Identity], ...]:
        return tuple(one for one in (self.listener, self.upstream) if one is not None)

    @property
    def credentials(self) -> Credentials | None:
        """What makes the credentials of the clients' listener; None where they are spoken to in the clear."""
        return None if self.listener is None else partial(listener_credentials, self.listener)

    def credentials_at(self, address: str) -> Credentials | None:
        """The same for operators and for Envoy: such a listener speaks TLS where it can be reached from elsewhere."""
        return None if is_local(address) else self.credentials

    def upstream_now(self) -> Identity | None:
        """The guard's certificates for the model server at this moment."""
        return None if self.upstream is None else self.upstream.value


def tokens_in(config: ServeConfig, setting: str) -> Rotated[Tokens] | None:
    path = getattr(config, setting)
    if path is None:
        return None
    file = NamedFile(setting, path, "a file with a line NAME TOKEN for each")
    return Rotated((file,), lambda contents: tokens_of(contents[0], named=str(file)))


class Following:
    """The work of following the files of a `Security`: log lines, metrics, and the model server's channel."""

    def __init__(
        self, security: Security, log: Log, registry: CollectorRegistry, renew: Callable[[], Awaitable[str | None]]
    ) -> None:
        """Prepare to follow; `renew` replaces the model server's channel and returns why it could not."""
        self.security, self.log, self.renew = security, log, renew
        self.renewal = asyncio.Event()
        self.told: dict[tuple[str, float], float] = {}  # (setting, end) -> the last threshold that was told
        self.expiry = Gauge(
            "guard_certificate_expiry_timestamp_seconds",
            "When the certificate that is at work ends, of several the first, in seconds since 1970",
            ("setting",),
            registry=registry,
        )
        self.reloads = Counter(
            "guard_credential_reloads_total",
            "Changes of files of certificates and tokens, by what became of them: replaced or refused",
            ("setting", "outcome"),
            registry=registry,
        )
        for rotated in self.rotated:
            for outcome in ("replaced", "refused"):
                self.reloads.labels(rotated.named, outcome)
        if security.tokens_in_the_clear:
            warning = "tokens travel in the clear to listen; set tls_certificate and tls_key, or end TLS in front of it"
            log.warning("tokens in the clear", warning=warning)
        self.look()

    @property
    def rotated(self) -> tuple[Rotated[Any], ...]:
        tokens = (self.security.clients, self.security.admins)
        return (*self.security.identities, *(one for one in tokens if one is not None))

    def work(self) -> Iterator[Coroutine[Any, Any, None]]:
        """What there is to do for as long as the guard serves."""
        for rotated in self.rotated:
            yield rotated.watch(partial(self.tell, rotated))
        if self.security.identities:
            yield self.watch_expiry()
        if self.security.upstream is not None:
            yield self.renewing(self.security.upstream)

    def lost(self, reason: str) -> None:
        self.log.error("credentials not followed", cause=reason)

    def tell(self, rotated: Rotated[Any], found: Found) -> None:
        """Log and count what became of a change."""
        files = [file.path for file in rotated.files]
        if found == "refused":
            self.reloads.labels(rotated.named, "refused").inc()
            self.log.error("credentials kept", setting=rotated.named, files=files, cause=rotated.fault)
            return
        self.look()
        if rotated is self.security.upstream:
            self.renewal.set()  # it is counted once the model server has taken it
            return
        self.reloads.labels(rotated.named, "replaced").inc()
        self.log.info("credentials replaced", setting=rotated.named, files=files)

    async def renewing(self, upstream: Rotated[Identity]) -> None:
        """Open a new channel to the model server whenever its files have changed, again and again until it answers."""
        files = [file.path for file in upstream.files]
        refused = False
        while True:
            with suppress(TimeoutError):
                await asyncio.wait_for(self.renewal.wait(), RETRY_S if refused else None)
            changed = self.renewal.is_set()
            self.renewal.clear()
            fault = await self.renew()
            if fault is None:
                self.reloads.labels(upstream.named, "replaced").inc()
                self.log.info("credentials replaced", setting=upstream.named, files=files)
            elif changed:
                self.reloads.labels(upstream.named, "refused").inc()
                cause = f"the model server does not answer with them: {fault}"
                self.log.error("credentials kept", setting=upstream.named, files=files, cause=cause)
            refused = fault is not None

    def look(self) -> None:
        """Set the metrics to the certificates at work, and warn of those that end soon."""
        now = time.time()
        for setting, ends in self.ends():
            self.expiry.labels(setting).set(ends)
            passed = [limit for limit in WARN_BEFORE_S if ends - now <= limit]
            if not passed or passed[-1] >= self.told.get((setting, ends), math.inf):
                continue
            self.told[setting, ends] = passed[-1]
            left = f"ends in {(ends - now) / DAY_S:.1f} days" if ends > now else "has ended"
            self.log.write(
                "warning" if ends > now else "error",
                "certificate expiry",
                {"setting": setting, "warning": f"the certificate of {setting} {left}; replace the file's content"},
            )

    def ends(self) -> Iterable[tuple[str, float]]:
        """The settings whose certificates have an end, each with it."""
        for identity in self.security.identities:
            yield from ((setting, ends) for setting, ends in identity.value.expires if ends != math.inf)

    async def watch_expiry(self) -> None:
        while True:
            await asyncio.sleep(EXPIRY_POLL_S)
            self.look()


@asynccontextmanager
async def following(
    security: Security, log: Log, registry: CollectorRegistry, renew: Callable[[], Awaitable[str | None]]
) -> AsyncIterator[None]:
    """Follow the files within the block; see `Following`."""
    found = Following(security, log, registry, renew)
    async with AsyncExitStack() as stack:
        for work in found.work():
            await stack.enter_async_context(in_background(work, found.lost))
        yield
