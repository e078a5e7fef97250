"""Who may talk to a server of ours: programs and browsers of this machine, and no page of the web
that is open in one.

A browser lets any page send requests to 127.0.0.1, and one whose name resolves to it (DNS
rebinding) reads the answers too. A browser names the server it means and the page it asks for, so
both are checked: `Host`, and `Origin` where there is one. A page in another one's frame is not
shown, or a click meant for that one would reach it.
"""

from __future__ import annotations

import socket
from collections.abc import Collection
from urllib.parse import urlsplit

from starlette.datastructures import Headers, MutableHeaders
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from gpt_model.errors import UserError

HOST = "127.0.0.1"
NAMES = (HOST, "localhost", "::1")


class LocalOnly:
    """ASGI middleware: requests and sockets that are not of and for this machine get 403 and a
    sentence. `names`: what it may be called by.
    """

    def __init__(self, app: ASGIApp, names: Collection[str] = NAMES) -> None:
        self.app, self.names = app, names

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        checked = scope["type"] in ("http", "websocket")
        refusal = self._refusal(Headers(scope=scope)) if checked else ""

        async def unframed(message: Message) -> None:
            if message["type"] == "http.response.start":
                MutableHeaders(scope=message)["X-Frame-Options"] = "SAMEORIGIN"
            await send(message)

        if not refusal:
            await self.app(scope, receive, unframed)
        elif scope["type"] == "websocket":
            await send({"type": "websocket.close", "code": 1008, "reason": refusal})
        else:
            error = {"message": refusal, "type": "permission_error", "param": None, "code": None}
            await JSONResponse({"error": error}, status_code=403)(scope, receive, send)

    def _refusal(self, headers: Headers) -> str:
        """Why the request is refused, in a sentence; empty where it is not."""
        host, origin = headers.get("host", ""), headers.get("origin")
        if _name(f"//{host}") not in self.names:
            return f"This serves {', '.join(self.names)} only, and was asked for as {host!r}."
        if origin is not None and _name(origin) not in self.names:
            return f"This answers pages of this machine only, and was asked by one of {origin!r}."
        return ""


def _name(address: str) -> str | None:
    try:
        return urlsplit(address).hostname
    except ValueError:  # a bracket that is not closed
        return None


def check_free(port: int, option: str, host: str = HOST) -> None:
    """Raises UserError, naming the option, where something listens on the port already."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError as error:
            raise UserError(
                f"Port {port} of {host} is taken ({error.strerror}): give another with {option}."
            ) from None
