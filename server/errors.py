"""Everything that can go wrong, once.

FleetError
├── ConfigError            a wrong fleet.toml, card or argument: said at start, exit 2
└── RequestError           the answer to one request is an error; `code` goes over the wire
    ├── InvalidRequest     invalid_request     the caller's body breaks the task's contract
    ├── MalformedRequest   invalid_request     the caller's body is not even JSON
    ├── BodyTooLarge       invalid_request     more bytes than the gateway reads
    ├── InputTooLong       input_too_long      more tokens than the specialist reads
    ├── UnknownTask        unknown_task        names near misses
    ├── UnknownVariant     unknown_variant
    ├── NotFound           not_found           no such path
    ├── MethodNotAllowed   method_not_allowed  the path is there, but not for that method
    ├── Overloaded         overloaded          retryable: refused before any work
    ├── NoReadyReplica     no_ready_replica    retryable: nobody can answer just now
    ├── WorkerError        worker_error        retryable: the engine failed
    │   ├── WorkerUnreachable                  the connection failed before a byte came back
    │   └── WorkerRefused                      the engine refuses these prompts: not retryable
    ├── DeadlineExceeded   deadline_exceeded
    ├── InvalidOutput      invalid_output      the specialist broke its schema twice
    └── InternalError      internal_error      a fault of ours

HTTP statuses are decided in `api/errors.py` and nowhere else.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar


class FleetError(Exception):
    """Base of every error that this project raises on purpose."""


class ConfigError(FleetError):
    """A file or argument is wrong; one readable line per fault."""

    def __init__(self, faults: Sequence[str]) -> None:
        self.faults = tuple(faults)
        super().__init__("\n".join(self.faults))


class RequestError(FleetError):
    """A request that ends without an answer."""

    code: ClassVar[str]
    retryable: ClassVar[bool] = False

    def __init__(
        self,
        message: str,
        *,
        param: str | None = None,
        retry_after_seconds: float | None = None,
    ) -> None:
        super().__init__(message)
        self.message = message
        self.param = param
        self.retry_after_seconds = retry_after_seconds


class InvalidRequest(RequestError):
    """The request breaks the task's contract."""

    code = "invalid_request"


class MalformedRequest(RequestError):
    """The body is not JSON, or not text."""

    code = "invalid_request"


class BodyTooLarge(RequestError):
    """The body has more bytes than the gateway reads."""

    code = "invalid_request"


class InputTooLong(RequestError):
    """The prompt has more tokens than the specialist can read."""

    code = "input_too_long"


class UnknownTask(RequestError):
    """No task of that name is in fleet.toml."""

    code = "unknown_task"


class UnknownVariant(RequestError):
    """The task has no variant of that name."""

    code = "unknown_variant"


class NotFound(RequestError):
    """There is nothing at that path."""

    code = "not_found"


class MethodNotAllowed(RequestError):
    """There is something at that path, but not for that method."""

    code = "method_not_allowed"


class Overloaded(RequestError):
    """Too much is waiting already."""

    code = "overloaded"
    retryable = True


class NoReadyReplica(RequestError):
    """No replica has proven that it serves this specialist."""

    code = "no_ready_replica"
    retryable = True


class WorkerError(RequestError):
    """The engine answered with an error, or broke off."""

    code = "worker_error"
    retryable = True


class WorkerUnreachable(WorkerError):
    """The connection to the replica failed before a byte came back."""


class WorkerRefused(WorkerError):
    """The engine refuses the prompts themselves (a 4xx); another replica would, too."""

    retryable = False


class DeadlineExceeded(RequestError):
    """The request's time ran out."""

    code = "deadline_exceeded"


class InvalidOutput(RequestError):
    """The specialist's answer broke its schema, and so did the second one."""

    code = "invalid_output"


class InternalError(RequestError):
    """The gateway itself failed; the log has the traceback under the request's id."""

    code = "internal_error"
