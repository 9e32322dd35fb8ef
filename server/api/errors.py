"""The one table of HTTP statuses, and the body that an error has."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from server import errors
from server.errors import RequestError

STATUS: Mapping[type[RequestError], int] = {
    errors.MalformedRequest: 400,
    errors.UnknownTask: 404,
    errors.UnknownVariant: 404,
    errors.NotFound: 404,
    errors.MethodNotAllowed: 405,
    errors.BodyTooLarge: 413,
    errors.InvalidRequest: 422,
    errors.InputTooLong: 422,
    errors.Overloaded: 429,
    errors.InternalError: 500,
    errors.WorkerError: 502,
    errors.WorkerUnreachable: 502,
    errors.WorkerRefused: 502,
    errors.InvalidOutput: 502,
    errors.NoReadyReplica: 503,
    errors.DeadlineExceeded: 504,
}


def status_of(error: RequestError) -> int:
    """Return the HTTP status of an error."""
    return STATUS[type(error)]


def body_of(error: RequestError, request_id: str) -> dict[str, Any]:
    """Return the contract's error envelope."""
    status = status_of(error)
    return {
        "error": {
            "code": error.code,
            "message": error.message,
            "type": "invalid_request_error" if status < 500 and status != 429 else "server_error",
            "param": error.param,
            "request_id": request_id,
        }
    }


def headers_of(error: RequestError) -> dict[str, str]:
    """Return Retry-After (whole seconds, at least 1) where asking again may help."""
    if error.retry_after_seconds is None:
        return {}
    return {"Retry-After": str(max(1, math.ceil(error.retry_after_seconds)))}
