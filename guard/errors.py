"""Every way this program fails on purpose.

    GuardError
    ├── UserError                what somebody typed, wrote or handed over; the command line prints it on one line
    │   ├── ConfigError          a setting that is unknown, missing or out of range
    │   ├── DataError            inputs or labels that cannot be used
    │   ├── ModelError           a model that cannot be opened or differentiated
    │   ├── BundleError          a bundle that is damaged, foreign or unfinished
    │   ├── PromiseError         a false-alarm rate that this much clean data cannot promise
    │   ├── ParityError          ONNX Runtime and torch disagree: nothing was written
    │   ├── DeviceError          the accelerator that was asked for is not there, or too small
    │   ├── PortError            an address that cannot be listened on
    │   ├── NotReadyError        the server that was probed or called is not ready
    │   └── GateError            the demo's guard does no better than chance
    └── RequestError             one client's request; its batch mates never notice
        ├── MalformedRequest     it contradicts the protocol or the model's input
        ├── TooLarge             it is larger, unpacked, than any request may be
        ├── Uninspectable        its pixels do not travel with it, so nobody can look at them
        ├── UnknownModel         no bundle guards the model it names
        ├── UnknownService       no health is known for the service it names
        ├── NotAllowed           a remote procedure that the operator has not opened
        ├── Rejected             inspected, and refused
        ├── Unchecked            it could not be inspected, and the guard fails closed
        ├── Overloaded           the queue is full
        ├── Expired              its deadline passed before the program ran
        └── UpstreamDown         the model server cannot be reached

Each class owns its gRPC status and its exit code; the README lists both.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import cache
from typing import ClassVar


class GuardError(Exception):
    """A failure with a name: it says what came, what was wanted and what to do."""

    status: ClassVar[str] = "INTERNAL"  # name of a grpc.StatusCode; this floor does not import grpc
    exit_code: ClassVar[int] = 1

    @property
    def reason(self) -> str:
        """The stable machine-readable name, e.g. MALFORMED_REQUEST, for ErrorInfo and metric labels."""
        return reason_of(type(self).__name__)


@cache
def reason_of(name: str) -> str:
    """MalformedRequest -> MALFORMED_REQUEST."""
    return "".join("_" + c if c.isupper() and i else c for i, c in enumerate(name)).upper()


class UserError(GuardError):
    """Somebody can mend this by changing what they typed or handed over."""

    status = "FAILED_PRECONDITION"
    exit_code = 2


class ConfigError(UserError):
    status = "FAILED_PRECONDITION"
    exit_code = 2


class DataError(UserError):
    status = "INVALID_ARGUMENT"
    exit_code = 3


class ModelError(UserError):
    status = "FAILED_PRECONDITION"
    exit_code = 4


class BundleError(UserError):
    status = "FAILED_PRECONDITION"
    exit_code = 5


class PromiseError(UserError):
    status = "FAILED_PRECONDITION"
    exit_code = 6


class ParityError(UserError):
    status = "INTERNAL"
    exit_code = 7


class DeviceError(UserError):
    status = "FAILED_PRECONDITION"
    exit_code = 8


class PortError(UserError):
    status = "UNAVAILABLE"
    exit_code = 9


class NotReadyError(UserError):
    status = "UNAVAILABLE"
    exit_code = 10


class GateError(UserError):
    status = "FAILED_PRECONDITION"
    exit_code = 11


class RequestError(GuardError):
    """What happened to one request; never to the process."""

    status = "INTERNAL"
    exit_code = 1


class MalformedRequest(RequestError):
    status = "INVALID_ARGUMENT"
    exit_code = 3


class TooLarge(RequestError):
    status = "RESOURCE_EXHAUSTED"
    exit_code = 3


class Uninspectable(RequestError):
    status = "FAILED_PRECONDITION"
    exit_code = 3


class UnknownModel(RequestError):
    status = "NOT_FOUND"
    exit_code = 3


class UnknownService(RequestError):
    status = "NOT_FOUND"
    exit_code = 3


class NotAllowed(RequestError):
    status = "UNIMPLEMENTED"
    exit_code = 3


class Rejected(RequestError):
    status = "PERMISSION_DENIED"
    exit_code = 3


class Unchecked(RequestError):
    status = "UNAVAILABLE"
    exit_code = 10


class Overloaded(RequestError):
    status = "RESOURCE_EXHAUSTED"
    exit_code = 10


class Expired(RequestError):
    status = "DEADLINE_EXCEEDED"
    exit_code = 10


class UpstreamDown(RequestError):
    status = "UNAVAILABLE"
    exit_code = 10


def leaves(root: type[GuardError] = GuardError) -> Iterator[type[GuardError]]:
    """The classes that are raised: the tree's leaves, in the order in which they are written."""
    below = root.__subclasses__()
    if not below:
        yield root
    for child in below:
        yield from leaves(child)


def first_line(error: BaseException) -> str:
    """What an error says, in one line; its type's name where it says nothing."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
