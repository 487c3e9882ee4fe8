"""Checks of certificates and tokens: readable, a pair, a whole chain, with names, and neither over nor still to come.

How it works. The standard library reads a certificate's facts from a handshake alone, so a certificate and its key
shake hands in memory, as they do before the guard uses them; trusted is the last certificate of the file, to which the
first must lead through those between.
"""

from __future__ import annotations

import ssl
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from guard.config import ServeConfig
from guard.errors import GuardError
from guard.serve.certificates import BEGIN, END, Purpose, as_file, pem_text, tried
from guard.serve.doctor.remark import Remark, Result
from guard.serve.doctor.setup import Setup
from guard.serve.identities import listener_identity, upstream_identity
from guard.serve.rotation import NamedFile
from guard.serve.security import DAY_S, Security, tokens_in

SOON_S = 7 * DAY_S
SIDES: tuple[tuple[str, str, str, Purpose], ...] = (
    ("tls_certificate", "tls_key", "tls_client_ca", "server"),
    ("upstream_certificate", "upstream_key", "upstream_ca", "client"),
)


@dataclass(frozen=True)
class Validity:
    """The time in which a certificate may be used, in seconds since 1970."""

    begins: float
    ends: float

    @staticmethod
    def of(facts: Mapping[str, Any]) -> Validity:
        """Read the two ends as the standard library writes them."""
        return Validity(*(ssl.cert_time_to_seconds(str(facts[name])) for name in ("notBefore", "notAfter")))

    def judged(self, now: float) -> tuple[Result, str]:
        """Whether it may be used now and for a week, in words."""
        if self.begins > now:
            return "wrong", f"begins {day(self.begins)}, and the clock says {day(now)}; is one of them wrong?"
        if self.ends <= now:
            return "wrong", f"ended {day(self.ends)}; replace the file's content"
        left = f"ends {day(self.ends)}, in {(self.ends - now) / DAY_S:.1f} days"
        return ("warn", f"{left}; replace the file's content") if self.ends - now < SOON_S else ("ok", left)


def certificates(setup: Setup) -> Iterator[Remark]:
    """Whether the certificates of both sides can be used, and until when."""
    config = setup.given.config
    for names in SIDES:
        if not any(getattr(config, name) for name in names[:3]):
            continue
        try:
            (listener_identity if names[3] == "server" else upstream_identity)(config)
        except GuardError as error:
            yield Remark("certificates", "wrong", str(error))
            continue
        yield from of_side(config, *names)


def of_side(config: ServeConfig, certificate: str, key: str, authorities: str, purpose: Purpose) -> Iterator[Remark]:
    """What is to be said of the certificate and the authorities of one side, which can both be read."""
    now = time.time()
    if path := getattr(config, certificate):
        chain, pem_key = (NamedFile(name, getattr(config, name)).content() for name in (certificate, key))
        facts = leaf_facts(chain, pem_key, purpose)
        named = f"{certificate} = {path!r}"
        if facts is None:
            said = f"{named}: its first certificate does not lead to its last; wanted the own one first, then"
            yield Remark("certificates", "wrong", f"{said} each one's issuer")
        else:
            result, when = Validity.of(facts).judged(now)
            names = [name for kind, name in facts.get("subjectAltName", ()) if kind in ("DNS", "IP Address", "URI")]
            bearing = f" for {', '.join(names)}" if names else ""
            if purpose == "server" and not names:
                said = (
                    f"{named} has no subjectAltName, and clients accept no other name; have one issued with its names"
                )
                yield Remark("certificates", "wrong", said)
            else:
                yield Remark("certificates", result, f"{named}{bearing} {when}")
    if path := getattr(config, authorities):
        file = NamedFile(authorities, path)
        found = list(authority_facts(file.content()))
        lasting = any(validity.judged(now)[0] == "ok" for _, validity in found)
        for subject, validity in found:
            result, when = validity.judged(now)
            if lasting and validity.ends <= now:  # as in any bundle that was added to: the others count
                result, when = "warn", f"ended {day(validity.ends)}, beside others that are valid; take it out"
            yield Remark("certificates", result, f"{file}: {subject} {when}")


def leaf_facts(chain: bytes, key: bytes, purpose: Purpose) -> dict[str, Any] | None:
    """The facts of the first certificate of a file; None where it does not lead to the last one."""
    ends = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER), ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    with as_file(chain) as chain_file, as_file(key) as key_file:
        for end in ends:
            end.load_cert_chain(chain_file, key_file)
    try:
        return tried(*ends, last_certificate(chain), purpose)
    except ssl.SSLError:
        return None


def last_certificate(chain: bytes) -> str:
    """The last certificate of a PEM file, as text."""
    return chain[chain.rfind(BEGIN) : chain.rfind(END) + len(END)].decode("ascii") + "\n"


def authority_facts(pem: bytes) -> Iterator[tuple[str, Validity]]:
    """Yield the subject of each authority in a file, and when it may be used."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.load_verify_locations(cadata=pem_text(pem))
    for facts in context.get_ca_certs():
        subject: Any = facts.get("subject", ())
        words = ", ".join(str(value) for part in subject for _, value in part)
        yield words or "an authority without a name", Validity.of(facts)


def day(seconds: float) -> str:
    """A moment as it stands in remarks."""
    return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%d %H:%M UTC")


def tokens(setup: Setup) -> Iterator[Remark]:
    """Whether the files of tokens can be used, and whether tokens travel where others can read them."""
    config = setup.given.config
    for name in ("client_tokens", "admin_tokens"):
        if getattr(config, name) is None:
            continue
        try:
            known = tokens_in(config, name)
        except GuardError as error:
            yield Remark("tokens", "wrong", str(error))
            continue
        yield Remark("tokens", "ok", f"{name} = {getattr(config, name)!r}: {len(known.value) if known else 0} tokens")
    try:
        in_the_clear = Security.open(config).tokens_in_the_clear
    except GuardError:  # told above, or by another check
        return
    if in_the_clear:
        said = f"tokens travel in the clear to listen = {config.listen!r}; set tls_certificate and tls_key, or end TLS"
        yield Remark("tokens", "warn", f"{said} in front of it")
