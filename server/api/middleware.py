"""Pure ASGI around every request: its id, its size, its time, and the last catch."""

from __future__ import annotations

import logging
import re
import secrets
import time

from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from server.api.responses import error_response
from server.errors import BodyTooLarge, InternalError, RequestError

log = logging.getLogger(__name__)

# Visible ASCII: a caller's id goes into headers and logs as it is.
_CALLERS_ID = re.compile(r"[!-~]{1,128}")


class RequestFrame:
    """Gives each request its `X-Request-Id` and `Server-Timing`, and bounds its body.

    An exception that nobody translated becomes a 500 in the error envelope, and a traceback in
    the log under the request's id. No text of a prompt is ever logged.
    """

    def __init__(self, app: ASGIApp, *, max_body_bytes: int) -> None:
        self._app = app
        self._max_body_bytes = max_body_bytes

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one HTTP request; other scopes pass through."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        started = time.perf_counter()
        headers = Headers(scope=scope)
        request_id = _request_id(headers)
        scope.setdefault("state", {})["request_id"] = request_id
        answering = False

        async def framed_send(message: Message) -> None:
            nonlocal answering
            if message["type"] == "http.response.start":
                answering = True
                out = MutableHeaders(scope=message)
                out["X-Request-Id"] = request_id
                total = f"total;dur={(time.perf_counter() - started) * 1000:.2f}"
                stages = out.get("Server-Timing")
                out["Server-Timing"] = f"{stages}, {total}" if stages else total
            await send(message)

        try:
            await self._app(scope, self._bounded(headers, receive), framed_send)
        except Exception as error:
            if not isinstance(error, RequestError):
                log.exception("request %s failed in the gateway", request_id)
            if answering:
                raise  # too late for a status: the server cuts the connection
            await error_response(_presentable(error), request_id)(scope, receive, framed_send)

    def _bounded(self, headers: Headers, receive: Receive) -> Receive:
        limit = self._max_body_bytes
        declared = headers.get("content-length", "0")
        too_large = BodyTooLarge(f"the body may have {limit} bytes at most: send fewer inputs")
        received = 0

        async def bounded_receive() -> Message:
            nonlocal received
            if declared.isdigit() and int(declared) > limit:
                raise too_large
            message = await receive()
            if message["type"] == "http.request":
                received += len(message.get("body", b""))
                if received > limit:
                    raise too_large
            return message

        return bounded_receive


def _request_id(headers: Headers) -> str:
    given = headers.get("x-request-id", "")
    return given if _CALLERS_ID.fullmatch(given) else f"req_{secrets.token_hex(12)}"


def _presentable(error: Exception) -> RequestError:
    if isinstance(error, RequestError):
        return error
    return InternalError("the gateway failed; its log says why, under this request's id")
