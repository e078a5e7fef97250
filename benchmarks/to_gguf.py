"""An exported GPT-2 as GGUF, by llama.cpp's own converter, set against the exported folder: its
weights and tokens, and what llama.cpp writes with it.

    pip install gguf xllamacpp     # the second runs llama.cpp: left out, no text is compared
    python benchmarks/to_gguf.py LLAMA_CPP EXPORT OUT.gguf

LLAMA_CPP is a checkout of llama.cpp, or vendor/llama.cpp of the sdist of llama-cpp-python. The
converter knows a tokenizer by a hash of what it makes of a fixed text, and so knows no vocabulary
that was trained here. What that hash is to find out is known: the pre-tokenizer is GPT-2's.
"""

from __future__ import annotations

import importlib
import importlib.util
import json
import sys
from pathlib import Path
from typing import Any

import numpy
from safetensors.numpy import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer


def convert(llama_cpp: Path, folder: Path, target: Path) -> None:
    """Run `convert_hf_to_gguf.py`, told the pre-tokenizer, in this process."""
    sys.path[:0] = [str(llama_cpp), str(llama_cpp / "gguf-py")]
    importlib.import_module("conversion.base").TextModel.get_vocab_base_pre = lambda *_: "gpt-2"
    sys.argv = ["convert_hf_to_gguf.py", str(folder), "--outfile", str(target), "--outtype", "f32"]
    importlib.import_module("convert_hf_to_gguf").main()


def differences(folder: Path, target: Path) -> list[str]:
    """What the GGUF file has otherwise than the exported folder: weights, tokens, sizes."""
    reader = importlib.import_module("gguf").GGUFReader(target)
    config: dict[str, Any] = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    fields = {name: field.contents() for name, field in reader.fields.items()}
    expected: dict[str, Any] = {
        "general.architecture": "gpt2",
        "gpt2.context_length": config["n_positions"],
        "gpt2.block_count": config["n_layer"],
        "gpt2.embedding_length": config["n_embd"],
        "gpt2.attention.head_count": config["n_head"],
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": "gpt-2",
        "tokenizer.ggml.eos_token_id": config["eos_token_id"],
    }
    wrong = [f"{name}: {fields.get(name)}" for name in expected if fields[name] != expected[name]]
    vocabulary = json.loads((folder / "vocab.json").read_text(encoding="utf-8"))
    tokens = fields["tokenizer.ggml.tokens"]
    wrong += [f"token {token!r}" for token, number in vocabulary.items() if tokens[number] != token]
    exported = sorted(array.astype("f4").tobytes() for array in _weights(folder).values())
    converted = sorted(
        tensor.data.astype("f4").tobytes()
        for tensor in reader.tensors
        if tensor.name != "output.weight"  # the tied embedding, which GGUF may have twice
    )
    if exported != converted:
        wrong.append(f"{len(exported)} weights exported, {len(converted)} converted, not all alike")
    return wrong


PROMPTS = (
    "In the beginning God created",
    "KING HENRY:\n Now is the",
    "The film is a 2004 American",
    "It's been years; we've 3 dogs and 12,345 cats —",
)
NEW = 48  # tokens, greedy


def texts_that_differ(folder: Path, target: Path) -> list[str]:
    """The prompts that llama.cpp reads as another number of tokens than `transformers`, or goes on
    from with other text.
    """
    xllamacpp = importlib.import_module("xllamacpp")
    model = AutoModelForCausalLM.from_pretrained(folder)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    parameters = xllamacpp.CommonParams()
    parameters.model.path, parameters.n_ctx = str(target), model.config.n_positions
    server = xllamacpp.Server(parameters)
    different = []
    for prompt in PROMPTS:
        ids = tokenizer(prompt, return_tensors="pt").input_ids
        written = model.generate(ids, max_new_tokens=NEW, max_length=None, do_sample=False)[0]
        text = tokenizer.decode(written[ids.shape[1] :], skip_special_tokens=True)
        answer = server.handle_completions(
            {"prompt": prompt, "max_tokens": NEW, "temperature": 0.0}
        )
        read, theirs = answer["usage"]["prompt_tokens"], answer["choices"][0]["text"]
        if (read, theirs) != (ids.shape[1], text):
            different.append(f"{prompt!r}: {theirs!r}, by transformers {text!r}")
    return different


def _weights(folder: Path) -> dict[str, numpy.ndarray]:
    """By name, as GGUF has them: matrices of Conv1D are transposed."""
    weights = load_file(folder / "model.safetensors")
    matrices = ("c_attn.weight", "c_proj.weight", "c_fc.weight")
    return {
        name: numpy.ascontiguousarray(array.T) if name.endswith(matrices) else array
        for name, array in weights.items()
        if name != "lm_head.weight"
    }


def main() -> int:
    if len(sys.argv) != 4:
        print(__doc__)
        return 2
    llama_cpp, folder, target = (Path(argument).resolve() for argument in sys.argv[1:])
    convert(llama_cpp, folder, target)
    wrong = differences(folder, target)
    print("\n".join(wrong) or f"{target}: every weight, token and size as in {folder}")
    if importlib.util.find_spec("xllamacpp"):
        different = texts_that_differ(folder, target)
        print("\n".join(different) or f"{len(PROMPTS)} of {len(PROMPTS)} prompts: the same text")
        wrong += different
    return bool(wrong)


if __name__ == "__main__":
    sys.exit(main())
