"""The OpenAI-compatible endpoint over the chat's engines, for programs of this machine:
`/v1/chat/completions`, `/v1/completions` and `/v1/models`. What the fields mean is `protocol.py`'s.
`local_only.py` says who may talk to it.
"""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import uvicorn
from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, Response, StreamingResponse
from starlette.exceptions import HTTPException

from gpt_model.errors import UserError
from pipelines.chat.engine import Engine, EngineFailed
from pipelines.chat.protocol import (
    ChatBody,
    ChatReply,
    CompletionBody,
    CompletionReply,
    Refused,
    Reply,
    invalid,
)
from pipelines.local_only import HOST, LocalOnly

ROUTES = ("/v1/chat/completions", "/v1/completions", "/v1/models")


def build_app(engines: Sequence[Engine]) -> FastAPI:
    """The endpoint's routes over these engines, each under its artifact's name."""
    app = FastAPI(title="gpt-lineage", docs_url=None, redoc_url=None, openapi_url=None)
    app.add_middleware(LocalOnly)
    by_name = {engine.partner.ref: engine for engine in engines}
    started = int(time.time())

    def model(name: str) -> dict[str, Any]:
        partner = find(name).partner
        head = {"id": partner.ref, "object": "model", "created": started}
        return {**head, "owned_by": "gpt-lineage", "fingerprint": partner.fingerprint}

    def find(name: str) -> Engine:
        if name not in by_name:
            raise Refused(
                f"There is no model {name!r} here: there are {', '.join(by_name)}.",
                "model",
                "model_not_found",
                404,
            )
        return by_name[name]

    @app.get("/health")
    async def health() -> dict[str, str]:
        return {"status": "ok"}

    @app.get("/v1/models")
    async def models() -> dict[str, Any]:
        return {"object": "list", "data": [model(name) for name in by_name]}

    @app.get("/v1/models/{name:path}")
    async def retrieve_model(name: str) -> dict[str, Any]:
        return model(name)

    @app.post("/v1/chat/completions")
    async def chat_completions(body: ChatBody, http: Request) -> Response:
        return await _respond(ChatReply(find(body.model), body), body.stream, http)

    @app.post("/v1/completions")
    async def completions(body: CompletionBody, http: Request) -> Response:
        return await _respond(CompletionReply(find(body.model), body), body.stream, http)

    _handle_errors(app)
    return app


async def _respond(reply: Reply, stream: bool, http: Request) -> Response:
    if stream:
        return StreamingResponse(reply.events(), media_type="text/event-stream")
    answer, left = asyncio.ensure_future(reply.whole()), asyncio.ensure_future(_disconnect(http))
    try:
        await asyncio.wait({answer, left}, return_when=asyncio.FIRST_COMPLETED)
        if answer.done():
            return JSONResponse(answer.result())
        return Response(status_code=499)  # nobody reads it
    finally:
        answer.cancel()  # a caller who has left waits for no tokens
        left.cancel()


async def _disconnect(http: Request) -> None:
    """Returns when the client has left."""
    while (await http.receive())["type"] != "http.disconnect":
        pass


def _handle_errors(app: FastAPI) -> None:
    """Every error is answered by OpenAI's error object."""

    def answer(refused: Refused) -> Response:
        return JSONResponse(refused.body, refused.status)

    @app.exception_handler(Refused)
    async def refused(_: Request, error: Refused) -> Response:
        return answer(error)

    @app.exception_handler(UserError)
    async def user_error(_: Request, error: UserError) -> Response:
        return answer(Refused(str(error), error.field, "invalid_value"))

    @app.exception_handler(RequestValidationError)
    async def validation_error(_: Request, error: RequestValidationError) -> Response:
        return answer(invalid(error.errors()))

    @app.exception_handler(HTTPException)
    async def no_route(http: Request, error: HTTPException) -> Response:
        message = f"{http.method} {http.url.path}: {error.detail}. There are {', '.join(ROUTES)}."
        return answer(Refused(message, status=error.status_code))

    @app.exception_handler(EngineFailed)
    @app.exception_handler(Exception)
    async def failed(_: Request, error: Exception) -> Response:
        return answer(Refused(str(error), status=500))


@contextmanager
def serving(engines: Sequence[Engine], port: int) -> Iterator[str]:
    """The endpoint's address, while a thread of this process serves it: so it ends with the
    process, however that ends. Raises UserError where it does not start.
    """
    config = uvicorn.Config(
        build_app(engines),
        host=HOST,
        port=port,
        lifespan="off",
        log_level="warning",
        timeout_graceful_shutdown=2,
    )
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run, name="chat endpoint", daemon=True)
    thread.start()
    while not server.started:
        if not thread.is_alive():
            raise UserError(f"The endpoint did not start at port {port} of {HOST}.")
        time.sleep(0.01)
    try:
        yield f"http://{HOST}:{port}/v1"
    finally:
        server.should_exit = True
        thread.join()
