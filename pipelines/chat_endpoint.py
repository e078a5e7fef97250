"""The endpoint's process: `transformers serve`, each answer kept within the model's context. A script that `chat_server.py` starts.

The server gives an answer 1,024 tokens at least where a request does not say how many, whatever the model can read. Past its last
position a model fails, and on a GPU that ends the use of the device for the whole process.
"""

from __future__ import annotations

import argparse
from typing import Any

from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse
from transformers.cli.serve import Serve
from transformers.cli.serving import server, utils


class TooLong(Exception):
    """Messages that leave no room for an answer."""


class WithinContext(utils.GenerateManager):
    """Every answer of every route comes from one of these two."""

    def generate_streaming(self, model: Any, processor: Any, inputs: Any, gen_config: Any, *rest: Any, **named: Any) -> Any:
        return super().generate_streaming(model, processor, inputs, _fitted(model, inputs, gen_config), *rest, **named)

    async def generate_non_streaming(self, model: Any, processor: Any, inputs: Any, gen_config: Any, *rest: Any, **named: Any) -> Any:
        return await super().generate_non_streaming(model, processor, inputs, _fitted(model, inputs, gen_config), *rest, **named)


def _fitted(model: Any, inputs: Any, gen_config: Any) -> Any:
    """`gen_config` with as many new tokens as there is room for. Raises TooLong where there is none."""
    context, asked = model.config.max_position_embeddings, inputs["input_ids"].shape[-1]
    if asked >= context:
        raise TooLong(
            f"The messages are {asked:,} tokens with their markers, and the model reads {context:,}, its answer included: shorten them."
        )
    gen_config.max_new_tokens = min(gen_config.max_new_tokens, context - asked)
    return gen_config


def _refused(_: Request, error: Exception) -> JSONResponse:
    """In the shape that OpenAI's client reads an error's words from."""
    return JSONResponse({"error": {"message": str(error), "type": "invalid_request_error"}}, status_code=400)


def _serve(host: str, port: int) -> None:
    build = server.build_server

    def built(*given: Any, **named: Any) -> FastAPI:
        app = build(*given, **named)
        app.add_exception_handler(TooLong, _refused)
        return app

    # Serve takes both from their modules when it is made; it makes one manager a model.
    server.build_server = built
    utils.GenerateManager = WithinContext  # type: ignore[misc]
    Serve(host=host, port=port, model_timeout=-1)


if __name__ == "__main__":
    arguments = argparse.ArgumentParser()
    arguments.add_argument("--host", required=True)
    arguments.add_argument("--port", type=int, required=True)
    given = arguments.parse_args()
    _serve(given.host, given.port)
