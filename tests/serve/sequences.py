"""Every kind of sequence that a frames fuzz sends, and how it is sent: seed and number say all of it.

Scripts of bytes are by hand (`odd_frames`, `odd_calls`, `odd_messages`, and any of them mutated); sessions that mind
HTTP/2's laws are of a library (`odd_clients`).
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from random import Random
from typing import Protocol

from tests.serve.frames import Answer, Wire
from tests.serve.odd_calls import CALLS, START, Script
from tests.serve.odd_clients import CLIENTS
from tests.serve.odd_frames import FRAMES
from tests.serve.odd_messages import MESSAGES

PATIENCE_S = 0.25  # for what comes of a script; most of it comes at once or never
SILENCE_S = 0.02  # after which nothing more is expected
SEND_S = 2.0  # for a script to be sent


class Client(Protocol):
    """One connection, when its sequence is over."""

    answers: dict[int, Answer]
    goaway: int | None
    closed: bool

    def close(self) -> None: ...


Session = Callable[[str, Random], Client]

SCRIPTS: dict[str, Script] = {**FRAMES, **CALLS, **MESSAGES}
RARE = {"sub-message flood": 0.2, "gzip bomb": 0.3, "large bodies": 0.3, "many calls": 0.3, "half open": 0.5}
COSTLY = ("gzip bomb", "gzip bomb", "half open", "lying prefix", "rapid reset", "huge metadata")
HERDS = (4, 16)  # connections
OFTEN = {"mutated": 8.0, "odd path": 2.0, "odd header": 2.0}


def mutated(rng: Random) -> list[bytes]:
    """Any script with bytes changed, dropped or added, its pieces in another order, or cut off."""
    pieces = rng.choice(list(SCRIPTS.values()))(rng)
    if rng.random() < 0.3:
        pieces.insert(rng.randrange(1, len(pieces) + 1), rng.choice(pieces))
    if rng.random() < 0.2:
        tail = pieces[1:]
        rng.shuffle(tail)
        pieces = [pieces[0], *tail]
    sent = bytearray(b"".join(pieces))
    for _ in range(rng.choice([0, 1, 1, 2, 5, 30])):
        change_byte(sent, rng)
    if rng.random() < 0.3:
        del sent[rng.randrange(len(sent) + 1) :]
    return [bytes(sent)]


def change_byte(sent: bytearray, rng: Random) -> None:
    """One change in place, mostly behind the preface: without it nothing else is read."""
    begin = len(START) if len(sent) > len(START) and rng.random() < 0.95 else 0
    at, few = rng.randint(begin, len(sent)), rng.choice([1, 1, 4, 50])
    change = rng.randrange(3)
    if change == 0:
        sent[at : at + 1] = rng.randbytes(1)
    elif change == 1:
        del sent[at : at + few]
    else:
        sent[at:at] = rng.randbytes(few)


def by_hand(script: Script) -> Session:
    """The session that sends a script, piece by piece, and looks what comes."""

    def session(address: str, rng: Random) -> Client:
        polite, abort = rng.random() < 0.9, rng.random() < 0.2
        first, *pieces = script(rng)
        wire = Wire(address, greeting=first, polite=polite, patience_s=SEND_S)
        for piece in pieces:
            wire.send(piece)
        deadline = time.monotonic() + PATIENCE_S
        while wire.receives(min(SILENCE_S, deadline - time.monotonic())):
            pass
        wire.close(abort=abort)
        return wire

    return session


def herd(address: str, rng: Random) -> Client:
    """The same costly script on many connections at once; the first stands for all."""
    script = SCRIPTS[rng.choice(COSTLY)]
    pieces = script(rng)
    wires = [Wire(address, greeting=pieces[0], patience_s=SEND_S) for _ in range(rng.choice(HERDS))]
    for piece in pieces[1:]:
        for wire in wires:
            wire.send(piece)
    deadline = time.monotonic() + PATIENCE_S
    while time.monotonic() < deadline and sum(wire.receives(SILENCE_S / len(wires)) for wire in wires):
        pass
    for wire in wires:
        wire.close(abort=rng.random() < 0.2)
    return wires[0]


SESSIONS: dict[str, Session] = {
    "herd": herd,
    **{name: by_hand(script) for name, script in {**SCRIPTS, "mutated": mutated}.items()},
    **CLIENTS,
}


@dataclass(frozen=True)
class Ending:
    """What the client of a sequence saw: one word for each stream and for the connection."""

    words: tuple[str, ...]
    details: tuple[str, ...]  # grpc-message of each answer that is UNKNOWN or INTERNAL

    @staticmethod
    def of(client: Client) -> Ending:
        answers = [answer for stream, answer in sorted(client.answers.items()) if stream]
        words = [word(answer) for answer in answers]
        if client.goaway is not None:
            words.append(f"goaway {client.goaway}")
        return Ending(
            tuple(words) or ("silence",), tuple(answer.details for answer in answers if answer.status in (2, 13))
        )


def word(answer: Answer) -> str:
    if answer.status is not None:
        return f"status {answer.status}"
    if answer.reset is not None:
        return f"reset {answer.reset}"
    return "unfinished" if answer.headers or answer.body else "unanswered"


def kind(number: int, rng: Random) -> str:
    """The kind of sequence `number`: one of each first, then by weight."""
    if number < len(SESSIONS):
        return list(SESSIONS)[number]
    return rng.choices(list(SESSIONS), [OFTEN.get(name, RARE.get(name, 1.0)) for name in SESSIONS])[0]


def play(address: str, name: str, rng: Random) -> Ending:
    """Send a sequence of that kind, and say how it ended. Raises OSError where nobody listens."""
    client = SESSIONS[name](address, rng)
    client.close()
    return Ending.of(client)
