"""Who may talk to the page and the endpoint: programs and browsers of this machine, and no page of
the web that is open in one.

A browser lets any page send requests to 127.0.0.1, and one whose own name is made to lead there
reads the answers too. It says whom it means and where it is from, so both are looked at: `Host`,
and `Origin` where there is one.
"""

from __future__ import annotations

from urllib.parse import urlsplit

from starlette.datastructures import Headers
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Receive, Scope, Send

NAMES = ("127.0.0.1", "localhost", "::1")


class LocalOnly:
    """An ASGI app that refuses requests and sockets, with 403 and a sentence, that are not of and
    for this machine.
    """

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        refused = _refused(Headers(scope=scope)) if scope["type"] in ("http", "websocket") else ""
        if not refused:
            await self.app(scope, receive, send)
        elif scope["type"] == "websocket":
            await send({"type": "websocket.close", "code": 1008, "reason": refused})
        else:
            await JSONResponse(
                {"error": {"message": refused, "type": "permission_error"}}, status_code=403
            )(scope, receive, send)


def _refused(headers: Headers) -> str:
    """Why, in a sentence; empty where there is no reason to."""
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
