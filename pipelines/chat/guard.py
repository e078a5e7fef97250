"""Who may talk to the page and the endpoint: programs and browsers of this machine, and no page of
the web that is open in one.

A browser lets any page send requests to 127.0.0.1, and one whose own name is made to resolve to it
(DNS rebinding) reads the answers too. A browser names the server it means and the page it asks for,
so both are checked: `Host`, and `Origin` where there is one.
"""

from __future__ import annotations

import socket
from urllib.parse import urlsplit

from starlette.datastructures import Headers
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Receive, Scope, Send

from gpt_model.errors import UserError

HOST = "127.0.0.1"
NAMES = (HOST, "localhost", "::1")


class LocalOnly:
    """ASGI middleware: requests and sockets that are not of and for this machine get 403 and a
    sentence.
    """

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        refusal = _refusal(Headers(scope=scope)) if scope["type"] in ("http", "websocket") else ""
        if not refusal:
            await self.app(scope, receive, send)
        elif scope["type"] == "websocket":
            await send({"type": "websocket.close", "code": 1008, "reason": refusal})
        else:
            error = {"message": refusal, "type": "permission_error", "param": None, "code": None}
            await JSONResponse({"error": error}, status_code=403)(scope, receive, send)


def _refusal(headers: Headers) -> str:
    """Why the request is refused, in a sentence; empty where it is not."""
    host, origin = headers.get("host", ""), headers.get("origin")
    if _name(f"//{host}") not in NAMES:
        return f"This serves 127.0.0.1 and localhost only, and was asked for as {host!r}."
    if origin is not None and _name(origin) not in NAMES:
        return f"This answers pages of this machine only, and was asked by one of {origin!r}."
    return ""


def _name(address: str) -> str | None:
    try:
        return urlsplit(address).hostname
    except ValueError:  # a bracket that is not closed
        return None


def check_free(port: int, option: str) -> None:
    """Raises UserError, naming the option, where something listens on the port already."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((HOST, port))
        except OSError as error:
            raise UserError(
                f"Port {port} of {HOST} is taken ({error.strerror}): give another with {option}."
            ) from None
