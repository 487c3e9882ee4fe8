"""HPACK (RFC 7541), as much as a client by hand needs: literals are written, everything is read.

How it works: a header block is a row of instructions. Most name an entry of a table, whose first 61 entries are fixed
and whose others are the fields that the sender asked to remember, the newest first. Text is plain or in a Huffman code.
The code is canonical: codes of one length count upwards in the order of their symbols, and the next length goes on
from there, so that the symbols of each length say everything.

    literal(b"te", b"trailers")            10 02 74 65 08 74 72 61 69 6c 65 72 73
    Decoder().fields(bytes.fromhex("88"))  [(b":status", b"200")]: entry 8 of the fixed table
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field

Header = tuple[bytes, bytes]

NEVER_INDEXED = 0x10
TABLE_BYTES = 4096  # what a decoder grants before SETTINGS say otherwise
ENTRY_BYTES = 32  # what an entry counts beside its name and value
MAX_HUFFMAN_PADDING_BITS = 7

SYMBOLS = {  # length of the code in bits -> the bytes that have one, ascending
    5: b"012aceiost",
    6: b" %-./3456789=A_bdfghlmnpru",
    7: b":BCDEFGHIJKLMNOPQRSTUVWYjkqvwxyz",
    8: b"&*,;XZ",
    10: b'!"()?',
    11: b"'+|",
    12: b"#>",
    13: b"\0$@[]~",
    14: b"^}",
    15: b"<`{",
    19: bytes.fromhex("5cc3d0"),
    20: bytes.fromhex("808283a2b8c2e0e2"),
    21: bytes.fromhex("99a1a7acb0b1b3d1d8d9e3e5e6"),
    22: bytes.fromhex("8184858688929a9ca0a3a4a9aaadb2b5b9babbbdbec4c6e4e8e9"),
    23: bytes.fromhex("0187898a8b8c8d8f93959697989b9d9ea5a6a8aeafb4b6b7bcbfc5e7ef"),
    24: bytes.fromhex("098e9091949fabced7e1eced"),
    25: bytes.fromhex("c7cfeaeb"),
    26: bytes.fromhex("c0c1c8c9cacdd2d5dadbeef0f2f3ff"),
    27: bytes.fromhex("cbccd3d4d6dddedff1f4f5f6f7f8fafbfcfdfe"),
    28: bytes.fromhex("020304050607080b0c0e0f1011121314151718191a1b1c1d1e1f7fdcf9"),
    30: bytes.fromhex("0a0d16"),  # and the end of text, all ones, which may not be sent
}

FIXED: tuple[Header, ...] = (
    (b":authority", b""),
    *((b":method", value) for value in (b"GET", b"POST")),
    *((b":path", value) for value in (b"/", b"/index.html")),
    *((b":scheme", value) for value in (b"http", b"https")),
    *((b":status", value) for value in (b"200", b"204", b"206", b"304", b"400", b"404", b"500")),
    (b"accept-charset", b""),
    (b"accept-encoding", b"gzip, deflate"),
    *(
        (name, b"")
        for name in (
            b"accept-language accept-ranges accept access-control-allow-origin age allow authorization cache-control "
            b"content-disposition content-encoding content-language content-length content-location content-range "
            b"content-type cookie date etag expect expires from host if-match if-modified-since if-none-match if-range "
            b"if-unmodified-since last-modified link location max-forwards proxy-authenticate proxy-authorization "
            b"range referer refresh retry-after server set-cookie strict-transport-security transfer-encoding "
            b"user-agent vary via www-authenticate"
        ).split()
    ),
)


class HpackError(ValueError):
    """The bytes are no header block."""


def codes() -> dict[tuple[int, int], int]:
    """(length in bits, code) -> byte."""
    found: dict[tuple[int, int], int] = {}
    code, last = 0, 0
    for length, symbols in SYMBOLS.items():
        code <<= length - last
        last = length
        for symbol in symbols:
            found[length, code] = symbol
            code += 1
    return found


BYTES = codes()
CODES = {symbol: code for code, symbol in BYTES.items()}


def integer(value: int, prefix_bits: int, first: int = 0) -> bytes:
    """`value` in the low bits of a byte whose others are `first`, and as many more bytes as it takes."""
    most = (1 << prefix_bits) - 1
    if value < most:
        return bytes([first | value])
    out, value = bytearray([first | most]), value - most
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes([*out, value])


def text(value: bytes, *, huffman: bool = False) -> bytes:
    if not huffman:
        return integer(len(value), 7) + value
    bits = "".join(f"{code:0{length}b}" for length, code in (CODES[byte] for byte in value))
    bits += "1" * (-len(bits) % 8)
    coded = int(bits, 2).to_bytes(len(bits) // 8, "big") if bits else b""
    return integer(len(coded), 7, 0x80) + coded


def literal(name: bytes, value: bytes, *, huffman: bool = False) -> bytes:
    """A field that no table remembers."""
    return bytes([NEVER_INDEXED]) + text(name, huffman=huffman) + text(value, huffman=huffman)


def unhuffman(coded: bytes) -> bytes:
    """Raises HpackError."""
    out, code, length = bytearray(), 0, 0
    for byte in coded:
        for shift in range(7, -1, -1):
            code, length = code << 1 | byte >> shift & 1, length + 1
            if (length, code) in BYTES:
                out.append(BYTES[length, code])
                code, length = 0, 0
    if length > MAX_HUFFMAN_PADDING_BITS or code != (1 << length) - 1:
        raise HpackError("a Huffman text does not end in ones")
    return bytes(out)


@dataclass
class Decoder:
    """The reading end of one connection's header compression."""

    remembered: deque[Header] = field(default_factory=deque)  # newest first
    limit: int = TABLE_BYTES

    def fields(self, block: bytes) -> list[Header]:
        """Raises HpackError."""
        try:
            return self.read(block)
        except IndexError as error:
            raise HpackError("the header block is cut off") from error

    def read(self, block: bytes) -> list[Header]:
        out, at = [], 0
        while at < len(block):
            first = block[at]
            if first & 0x80:  # an entry of the table
                index, at = number(block, at, 7)
                out.append(self.entry(index))
            elif first & 0xE0 == 0x20:  # the table's new size
                self.limit, at = number(block, at, 5)
                self.shrink()
            else:  # a literal: to be remembered, or not, or never
                index, at = number(block, at, 6 if first & 0x40 else 4)
                name, at = (self.entry(index)[0], at) if index else string(block, at)
                value, at = string(block, at)
                out.append((name, value))
                if first & 0x40:
                    self.remembered.appendleft((name, value))
                    self.shrink()
        return out

    def entry(self, index: int) -> Header:
        """Entry of the fixed table from 1 to 61, of the remembered fields from 62 on."""
        if not 1 <= index <= len(FIXED) + len(self.remembered):
            raise HpackError(f"there is no entry {index}")
        return FIXED[index - 1] if index <= len(FIXED) else self.remembered[index - len(FIXED) - 1]

    def shrink(self) -> None:
        while self.remembered and self.size > self.limit:
            self.remembered.pop()

    @property
    def size(self) -> int:
        return sum(len(name) + len(value) + ENTRY_BYTES for name, value in self.remembered)


def number(block: bytes, at: int, prefix_bits: int) -> tuple[int, int]:
    """The integer at `at`, and where the next thing begins."""
    most = (1 << prefix_bits) - 1
    value, at, shift = block[at] & most, at + 1, 0
    if value < most:
        return value, at
    while True:
        value += (block[at] & 0x7F) << shift
        at, shift = at + 1, shift + 7
        if not block[at - 1] & 0x80:
            return value, at


def string(block: bytes, at: int) -> tuple[bytes, int]:
    """The text at `at`, and where the next thing begins."""
    huffman = block[at] & 0x80
    length, at = number(block, at, 7)
    if at + length > len(block):
        raise HpackError("a text is longer than its header block")
    value = block[at : at + length]
    return unhuffman(value) if huffman else value, at + length
