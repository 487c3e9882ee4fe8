"""The tree of errors: the ways in which this program fails on purpose.

    GuardError
    ├── UserError                a mistake in what was typed, written or handed over; the command line prints one line
    │   ├── ConfigError          a setting that is unknown, missing or out of range
    │   ├── DataError            inputs or labels that cannot be used
    │   ├── ModelError           a model that cannot be opened or differentiated
    │   ├── BundleError          a bundle that is damaged, foreign or unfinished
    │   ├── PromiseError         a false-alarm rate that this much clean data cannot promise
    │   ├── ParityError          ONNX Runtime and torch disagree: nothing was written
    │   ├── DeviceError          the accelerator that was asked for is not there, or too small
    │   ├── PortError            an address that cannot be listened on
    │   ├── NotReadyError        the server that was probed or called is not ready
    │   ├── GateError            the demo's guard does no better than chance
    │   └── ConformanceError     a guard changes what clients or the model server get
    └── RequestError             a failure of one client's request; others of its batch are not affected
        ├── MalformedRequest     it contradicts the protocol or the model's input
        ├── TooLarge             it is larger, unpacked, than any request may be
        ├── Uninspectable        its pixels do not travel with it, so they cannot be inspected
        ├── UnknownModel         no bundle guards the model it names
        ├── UnknownService       no health is known for the service it names
        ├── Unauthenticated      it does not say who calls, or not so that it can be believed
        ├── NotAllowed           a remote procedure that the operator has not opened
        ├── Rejected             inspected, and refused
        ├── Unchecked            it could not be inspected, and the guard fails closed
        ├── InspectionTimeout    its inspection took too long, and the guard fails closed
        ├── BreakerOpen          the engine is known to be broken, and the guard fails closed
        ├── Overloaded           the queue is full
        ├── Expired              its deadline passed before the program ran
        └── UpstreamDown         the model server cannot be reached

Each class owns its gRPC status and its exit code, one of a request its HTTP status, too; the README lists them.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import cache
from typing import ClassVar


class GuardError(Exception):
    """An error of this program; its message says what came, what was wanted and what to do."""

    status: ClassVar[str] = "INTERNAL"  # name of a grpc.StatusCode; this floor does not import grpc
    exit_code: ClassVar[int] = 1
    may_retry: bool = True  # whether a client's own retries can help; if not, it is told so

    @property
    def reason(self) -> str:
        """The stable machine-readable name, e.g. MALFORMED_REQUEST, for ErrorInfo and metric labels."""
        return reason_of(type(self).__name__)


@cache
def reason_of(name: str) -> str:
    """Convert a class name into a reason: MalformedRequest -> MALFORMED_REQUEST."""
    return "".join("_" + c if c.isupper() and i else c for i, c in enumerate(name)).upper()


class UserError(GuardError):
    """An error that the user can mend by changing what was typed or handed over."""

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


class ConformanceError(UserError):
    status = "FAILED_PRECONDITION"
    exit_code = 12


class RequestError(GuardError):
    """An error of one request, and never of the process."""

    status = "INTERNAL"
    exit_code = 1
    http_status: ClassVar[int] = 500


class MalformedRequest(RequestError):
    status = "INVALID_ARGUMENT"
    exit_code = 3
    http_status = 400


class TooLarge(RequestError):
    status = "RESOURCE_EXHAUSTED"
    exit_code = 3
    http_status = 413


class Uninspectable(RequestError):
    status = "FAILED_PRECONDITION"
    exit_code = 3
    http_status = 400


class UnknownModel(RequestError):
    status = "NOT_FOUND"
    exit_code = 3
    http_status = 404


class UnknownService(RequestError):
    status = "NOT_FOUND"
    exit_code = 3
    http_status = 404


class Unauthenticated(RequestError):
    status = "UNAUTHENTICATED"
    exit_code = 3
    http_status = 401


class NotAllowed(RequestError):
    status = "UNIMPLEMENTED"
    exit_code = 3
    http_status = 404


class Rejected(RequestError):
    status = "PERMISSION_DENIED"
    exit_code = 3
    http_status = 403


class Unchecked(RequestError):
    status = "UNAVAILABLE"
    exit_code = 10
    http_status = 503

    def __init__(self, message: str = "", *, elsewhere: bool = False) -> None:
        """Create the error; `elsewhere`: another replica may well answer, so clients may retry."""
        super().__init__(message)
        self.may_retry = elsewhere


class InspectionTimeout(RequestError):
    status = "UNAVAILABLE"
    exit_code = 10
    http_status = 503
    may_retry = False


class BreakerOpen(RequestError):
    status = "UNAVAILABLE"
    exit_code = 10
    http_status = 503
    may_retry = False


class Overloaded(RequestError):
    status = "RESOURCE_EXHAUSTED"
    exit_code = 10
    http_status = 429


class Expired(RequestError):
    status = "DEADLINE_EXCEEDED"
    exit_code = 10
    http_status = 408


class UpstreamDown(RequestError):
    status = "UNAVAILABLE"
    exit_code = 10
    http_status = 502


def leaves(root: type[GuardError] = GuardError) -> Iterator[type[GuardError]]:
    """The classes that are raised: the tree's leaves, in the order in which they are written."""
    below = root.__subclasses__()
    if not below:
        yield root
    for child in below:
        yield from leaves(child)


def first_line(error: BaseException) -> str:
    """The first line of an error's message; its type's name where the message is empty."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
