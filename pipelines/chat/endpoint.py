"""The endpoint's process: `transformers serve`, for this machine, answers kept within the context.
A script that `chat_server.py` starts.

* The server gives an answer 1,024 tokens at least where a request does not say how many, whatever
  the model can read. Past its last position a model fails, and on a GPU that ends the use of the
  device for the whole process.
* A marker that a message spells out would be read as the token, and the message end there and go on
  as another's: it is refused.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator
from typing import Any, cast

from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse
from transformers.cli.serve import Serve
from transformers.cli.serving import server, utils

from gpt_model.errors import UserError
from gpt_model.rlhf.chat_template import check_spells_none
from gpt_model.rlhf.dialogue import ROLES, Role, Turn
from pipelines.chat.guard import LocalOnly

Resolved = tuple[str, Any, Any]  # the model's name, the model, its tokenizer

# What a model here can answer. Others answer nothing, fetch scripts from the web (docs), or take
# the models out of memory (reset).
ROUTES = (
    "/v1/chat/completions",
    "/v1/completions",
    "/v1/responses",
    "/v1/models",
    "/health",
    "/load_model",
)


class WithinContext(utils.GenerateManager):
    """Every answer of every route comes from one of these two."""

    def generate_streaming(
        self, model: Any, processor: Any, inputs: Any, gen_config: Any, *rest: Any, **named: Any
    ) -> Any:
        return super().generate_streaming(
            model, processor, inputs, _fitted(model, inputs, gen_config), *rest, **named
        )

    async def generate_non_streaming(
        self, model: Any, processor: Any, inputs: Any, gen_config: Any, *rest: Any, **named: Any
    ) -> Any:
        return await super().generate_non_streaming(
            model, processor, inputs, _fitted(model, inputs, gen_config), *rest, **named
        )


def _fitted(model: Any, inputs: Any, gen_config: Any) -> Any:
    """`gen_config` with as many new tokens as there is room for. Raises UserError where there is
    none.
    """
    context, asked = model.config.max_position_embeddings, inputs["input_ids"].shape[-1]
    if asked >= context:
        raise UserError(
            f"The messages are {asked:,} tokens with their markers, and the model reads {context:,}, its answer included: shorten them."
        )
    room, wanted = context - asked, gen_config.max_new_tokens
    if wanted is not None and wanted < 1:
        raise UserError(f"max_tokens is {wanted}, and should be 1 or more.")
    gen_config.max_new_tokens = (
        room if wanted is None else min(wanted, room)
    )  # none in a configuration that a request brings with it
    return gen_config


def _with_messages_checked(
    resolve: Callable[[Any, dict[str, Any]], Resolved],
) -> Callable[[Any, dict[str, Any]], Resolved]:
    """What every route calls for its model. Raises UserError where a message has no role, or could
    end itself and speak as another.
    """

    def resolved(handler: Any, body: dict[str, Any]) -> Resolved:
        found = resolve(handler, body)
        reserved = [token.content for token in found[2].added_tokens_decoder.values()]
        for part in (
            "instructions",
            "input",
            "messages",
        ):  # the whole of a dialogue; not `prompt`, which is laid out by who sends it
            check_spells_none(
                tuple(_turns(body.get(part), "system" if part == "instructions" else "user")),
                reserved,
            )
        return found

    return resolved


def _turns(given: Any, role: str) -> Iterator[Turn]:
    """Every text in it, under the role that stands nearest."""
    if isinstance(given, str):
        yield Turn(cast(Role, role), given)
    elif isinstance(given, dict):
        role = given.get("role", role)
        if role not in ROLES:
            raise UserError(f"A message is of role {role!r}, and there are {', '.join(ROLES)}.")
        for one in given.values():
            yield from _turns(one, role)
    elif isinstance(given, list):
        for one in given:
            yield from _turns(one, role)


def _refused(_: Request, error: Exception) -> JSONResponse:
    """In the shape that OpenAI's client reads an error's words from."""
    return JSONResponse(
        {"error": {"message": str(error), "type": "invalid_request_error"}}, status_code=400
    )


def _serve(host: str, port: int) -> None:
    build = server.build_server

    def built(*given: Any, **named: Any) -> FastAPI:
        app = build(*given, **named)
        app.router.routes[:] = [
            route for route in app.router.routes if getattr(route, "path", "") in ROUTES
        ]
        app.add_exception_handler(UserError, _refused)
        app.add_middleware(LocalOnly)
        return app

    # Serve takes these from their modules when it is made; it makes one manager a model.
    server.build_server = built
    utils.BaseHandler._resolve_model = _with_messages_checked(utils.BaseHandler._resolve_model)  # type: ignore[assignment]
    utils.GenerateManager = WithinContext  # type: ignore[misc]
    Serve(host=host, port=port, model_timeout=-1)


if __name__ == "__main__":
    arguments = argparse.ArgumentParser()
    arguments.add_argument("--host", required=True)
    arguments.add_argument("--port", type=int, required=True)
    given = arguments.parse_args()
    _serve(given.host, given.port)
