"""A saved tokenizer's files as other programs want them: the longest input, a padding token, and a
chat template in plain Jinja. JSON and text only.

Artifacts keep the files as `Tokenizer.save` writes them. What leaves the store has these on top.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any, Literal

from gpt_model.tokenizer.base import CHAT_TEMPLATE

CONFIG_FILE, SPECIAL_FILE = "tokenizer_config.json", "special_tokens_map.json"
# a tag of `transformers` alone, which marks the assistant's tokens in training
GENERATION_TAGS = ("{%- generation -%}", "{%- endgeneration -%}")


def complete(
    folder: Path,
    context: int,
    padding: Literal["left", "right"],
    others: Mapping[str, str] = MappingProxyType({}),
) -> None:
    """Complete the files in `folder`. `padding`: left where a model goes on from the last token,
    right where a classifier has absolute positions. End-of-text pads: its loss is masked, and no
    row of the embedding is new. `others`: what the configuration has besides.

    GPT-1's `<unk>`, which WikiText spells out, stays text as it is here. A chat model's roles have
    to be read as tokens, so its configuration names no unknown token at all.
    """
    config, special = _read(folder / CONFIG_FILE), _read(folder / SPECIAL_FILE)
    template = folder / CHAT_TEMPLATE
    if config["unk_token"] != config["eos_token"]:
        if template.is_file():
            del config["unk_token"], special["unk_token"]
        else:
            config["split_special_tokens"] = True
    pad = {"pad_token": config["eos_token"]}
    _write(
        folder / CONFIG_FILE,
        {**config, **pad, "model_max_length": context, "padding_side": padding, **others},
    )
    _write(folder / SPECIAL_FILE, {**special, **pad})
    if template.is_file():
        text = template.read_text(encoding="utf-8")
        for tag in GENERATION_TAGS:
            text = text.replace(tag, "")
        template.write_text(text, encoding="utf-8", newline="\n")


def _read(path: Path) -> dict[str, Any]:
    content: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return content


def _write(path: Path, content: dict[str, Any]) -> None:
    path.write_text(json.dumps(content, indent=2, sort_keys=True) + "\n", encoding="utf-8")
