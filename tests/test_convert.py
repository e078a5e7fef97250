"""Both ways to `transformers`, for the three families, and the folders a decoder is kept in."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import textwrap
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
import transformers
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import AutoModelForCausalLM

from gpt_model import GPT, ModelConfig, convert
from gpt_model.errors import CorruptFile, UserError
from gpt_model.generation import generate
from gpt_model.lstm import build
from gpt_model.tokenizer import Tokenizer

# Head width 16, whose root is a power of two: GPT-Neo's missing scale is folded in and out again
# without rounding.
SHAPE: dict[str, Any] = {"layers": 3, "width": 64, "heads": 4, "context": 96, "vocab_size": 311}
FAMILIES: dict[str, dict[str, Any]] = {
    "gpt1": {"family": "gpt1"},
    "gpt2": {"family": "gpt2"},
    "gpt3": {"family": "gpt3", "band": 17, "attention_bias": False},
}
CLASSES = {"gpt1": "OpenAIGPTLMHeadModel", "gpt2": "GPT2LMHeadModel", "gpt3": "GPTNeoForCausalLM"}


def perturbed(family: str = "gpt2", seed: int = 3, **changes: Any) -> GPT:
    """A model whose norms and biases are not the trivial ones of a fresh one."""
    model = GPT(ModelConfig(**(SHAPE | FAMILIES[family] | changes)), seed=seed)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=generator), alpha=0.1)
    return model.eval()


def random_of_theirs(family: str, **changes: Any) -> Any:
    """A model of theirs with its own random weights, as their config has it where ours says
    nothing.
    """
    kind = getattr(transformers, CLASSES[family])
    shape: dict[str, Any] = {"n_layer": 3, "n_embd": 64, "n_head": 4, "n_positions": 96}
    if family == "gpt3":
        shape = {
            "num_layers": 3,
            "hidden_size": 64,
            "num_heads": 4,
            "max_position_embeddings": 96,
            "window_size": 17,
        }
        shape["attention_types"] = [[["global", "local"], 1], [["global"], 1]]
    ends = {"bos_token_id": 0, "eos_token_id": 0}
    torch.manual_seed(4)
    return kind(kind.config_class(vocab_size=311, **(shape | ends | changes))).eval()


def tokens(time: int = 96, rows: int = 3) -> Tensor:
    return torch.randint(0, 311, (rows, time), generator=torch.Generator().manual_seed(time))


@pytest.mark.parametrize("family", FAMILIES)
def test_logits_are_those_of_transformers_in_both_directions(family: str) -> None:
    ours, read = perturbed(family), tokens()
    theirs: Any = convert.to_transformers(ours)
    assert type(theirs).__name__ == CLASSES[family]
    assert (ours(read) - theirs(read).logits).abs().max() < 1e-5
    other = random_of_theirs(family)
    assert (convert.from_transformers(other).eval()(read) - other(read).logits).abs().max() < 1e-5


@pytest.mark.parametrize("side", ["right", "left"])
@pytest.mark.parametrize("family", FAMILIES)
def test_logits_are_those_of_transformers_in_a_padded_batch(family: str, side: str) -> None:
    ours, rows = perturbed(family), [tokens(n, 1)[0] for n in (96, 61, 20)]
    theirs: Any = convert.to_transformers(ours)
    pads = [(0, 96 - len(row)) if side == "right" else (96 - len(row), 0) for row in rows]
    batch = torch.stack([F.pad(row, pad, value=7) for row, pad in zip(rows, pads, strict=True)])
    mask = torch.stack(
        [F.pad(torch.ones_like(row), pad) for row, pad in zip(rows, pads, strict=True)]
    )
    logits = theirs(
        batch, attention_mask=mask, position_ids=(mask.cumsum(1) - 1).clamp(min=0)
    ).logits
    at_once = ours(
        torch.stack([F.pad(row, (0, 96 - len(row)), value=5) for row in rows])
    )  # ours pads on the right, without a mask
    for number, row in enumerate(rows):
        assert (logits[number][mask[number] == 1] - at_once[number, : len(row)]).abs().max() < 1e-5


@pytest.mark.parametrize("family", ["gpt2", "gpt3"])  # OpenAIGPTLMHeadModel has no cache
def test_logits_are_those_of_transformers_token_by_token_with_both_caches(family: str) -> None:
    ours, read = perturbed(family), tokens(40, 2)
    theirs: Any = convert.to_transformers(ours)
    cache, past = ours.new_cache(2), None
    for part in read.split([20, *[1] * 20], dim=1):  # the prompt, then past the band's end
        answer = theirs(part, past_key_values=past, use_cache=True)
        past = answer.past_key_values
        assert (
            F.linear(ours.hidden(part, cache), ours.wte.weight) - answer.logits
        ).abs().max() < 1e-5


@pytest.mark.parametrize("family", FAMILIES)
def test_a_round_trip_is_exact_to_the_bit_where_no_factor_is_rounded(
    family: str, tmp_path: Path
) -> None:
    ours = perturbed(family)
    convert.export(ours, tmp_path / "exported")
    convert.save(ours, tmp_path / "saved")
    for again in (
        convert.from_transformers(convert.to_transformers(ours)),
        convert.load(tmp_path / "exported"),
        convert.load(tmp_path / "saved"),
    ):
        assert again.config == ours.config
        assert all(
            torch.equal(tensor, again.state_dict()[name])
            for name, tensor in ours.state_dict().items()
        )


def test_a_head_width_without_a_whole_root_is_rounded_once_each_way_and_kept_exactly_by_the_store(
    tmp_path: Path,
) -> None:
    ours = perturbed("gpt3", width=48)  # heads of 12
    convert.save(ours, tmp_path)
    stored, through = (
        convert.load(tmp_path).state_dict(),
        convert.from_transformers(convert.to_transformers(ours)).state_dict(),
    )
    assert all(torch.equal(tensor, stored[name]) for name, tensor in ours.state_dict().items())
    changed = {
        name for name, tensor in ours.state_dict().items() if not torch.equal(tensor, through[name])
    }
    assert changed == {f"h.{layer}.attn.c_attn.weight" for layer in range(3)}
    before, after = ours.get_parameter("h.0.attn.c_attn.weight"), through["h.0.attn.c_attn.weight"]
    assert ((before - after) / before).abs().max() < 2**-22 and torch.equal(
        before[:, 48:], after[:, 48:]
    )


@pytest.mark.parametrize("family", ["gpt1", "gpt2", "gpt3", "lstm"])
def test_a_model_is_written_and_read_a_parameter_at_a_time(tmp_path: Path, family: Any) -> None:
    model = build(ModelConfig(family=family, layers=2, width=24, heads=2, context=8, vocab_size=77))
    convert.save(model, tmp_path)
    file = tmp_path / "model.safetensors"
    save_file(load_file(file), tmp_path / "at_once.safetensors", metadata={"format": "pt"})
    assert file.read_bytes() == (tmp_path / "at_once.safetensors").read_bytes()
    for name, weight in convert.weights(tmp_path):
        assert torch.equal(weight, model.weight(name)), name
    parts = {
        name: (3, torch.zeros(weight.numel() - 5)) for name, weight in convert.weights(tmp_path)
    }
    convert.load_elements(tmp_path, parts)
    for name, (_, part) in parts.items():
        assert torch.equal(part, model.weight(name).flatten()[3:-2]), name
    flipped = bytearray(file.read_bytes())
    flipped[9] ^= 1
    file.write_bytes(flipped)
    with pytest.raises(CorruptFile, match="not a whole safetensors file"):
        list(convert.weights(tmp_path))


@pytest.mark.parametrize("family", ["gpt1", "gpt2", "gpt3", "lstm"])
def test_a_model_saved_again_has_the_bytes_of_one_that_was_read_for_it(
    tmp_path: Path, family: Any
) -> None:
    shape = ModelConfig(family=family, layers=2, width=24, heads=2, context=8, vocab_size=77)
    model = build(shape.model_copy(update={"dropout": 0.1}))
    convert.save(model, tmp_path / "stored")
    model.config = shape.model_copy(update={"dropout": 0.0})
    convert.save(model, tmp_path / "read", 5)
    convert.save_again(tmp_path / "stored", tmp_path / "again", model.config, 5)
    read, again = ({p.name: p for p in (tmp_path / name).iterdir()} for name in ("read", "again"))
    assert read.keys() == again.keys() and "model.safetensors" in read
    for name, path in read.items():
        assert path.read_bytes() == again[name].read_bytes()
        assert path.stat().st_mode == again[name].stat().st_mode


def test_a_gpt3_with_attention_biases_is_kept_by_the_store_and_refused_by_name_to_transformers(
    tmp_path: Path,
) -> None:
    ours = perturbed("gpt3", attention_bias=True)
    convert.save(ours, tmp_path / "saved")
    assert torch.equal(convert.load(tmp_path / "saved")(tokens()), ours(tokens()))
    exported = tmp_path / "exported"
    ways = (
        convert.to_transformers,
        lambda ours: convert.export(ours, exported),
        lambda _: convert.export_folder(tmp_path / "saved", exported),
    )
    for refused in ways:
        with pytest.raises(
            UserError,
            match=r"GPTNeoForCausalLM, has no biases of query, key and value.*`attention_bias: "
            r"false`",
        ):
            refused(ours)
    assert not exported.exists()


@pytest.mark.parametrize("family", FAMILIES)
def test_an_exported_folder_loads_in_both_libraries(family: str, tmp_path: Path) -> None:
    model, read = perturbed(family), tokens()
    convert.export(model, tmp_path, end_of_text=7)
    assert sorted(file.name for file in tmp_path.iterdir()) == [
        "config.json",
        "generation_config.json",
        "model.safetensors",
    ]
    theirs = AutoModelForCausalLM.from_pretrained(tmp_path)
    assert type(theirs).__name__ == CLASSES[family]
    assert (
        theirs.config.to_diff_dict()
        == convert.to_transformers(model, end_of_text=7).config.to_diff_dict()
    )
    assert (
        theirs.config.eos_token_id
        == theirs.generation_config.eos_token_id
        == theirs.generation_config.pad_token_id
        == 7
    )
    assert (theirs(read).logits - model(read)).abs().max() < 1e-5
    again = convert.load(tmp_path)
    assert again.config == model.config and torch.equal(again(read), model(read))
    assert all(parameter.requires_grad for parameter in again.parameters())


@pytest.mark.parametrize("family", FAMILIES)
def test_an_exported_folder_writes_no_further_than_its_context_unless_asked(
    family: str, tmp_path: Path
) -> None:
    convert.export(perturbed(family), tmp_path)
    theirs = AutoModelForCausalLM.from_pretrained(tmp_path)
    prompt = torch.full((1, 80), 5)
    assert theirs.generate(prompt, do_sample=False).shape[1] == SHAPE["context"]
    assert theirs.generate(prompt, do_sample=False, max_new_tokens=3).shape[1] == 83
    assert theirs.generate(prompt, do_sample=False, max_length=82).shape[1] == 82


@pytest.mark.parametrize("family", FAMILIES)
def test_a_folder_in_several_files_loads_as_in_one(family: str, tmp_path: Path) -> None:
    other = random_of_theirs(family)
    other.save_pretrained(tmp_path, max_shard_size="100KB")
    assert (tmp_path / "model.safetensors.index.json").is_file() and not (
        tmp_path / "model.safetensors"
    ).exists()
    assert (convert.load(tmp_path).eval()(tokens()) - other(tokens()).logits).abs().max() < 1e-5
    shard = sorted(tmp_path.glob("model-*.safetensors"))[1]
    shard.unlink()
    with pytest.raises(
        UserError, match=rf"index\.json names the file '{shard.name}', which is not beside it"
    ):
        convert.load(tmp_path)


def test_a_pickled_folder_is_refused_by_name(tmp_path: Path) -> None:
    random_of_theirs("gpt2").save_pretrained(tmp_path)
    (tmp_path / "model.safetensors").rename(tmp_path / "pytorch_model.bin")
    with pytest.raises(
        UserError,
        match=r"pytorch_model\.bin is pickled, .* save_pretrained writes model\.safetensors",
    ):
        convert.load(tmp_path)


def test_weights_as_the_hub_keeps_them_are_read(tmp_path: Path) -> None:
    """The hub's gpt2: no prefix, causal masks among the weights, and halves where the model is
    large.
    """
    convert.export(model := perturbed(), tmp_path)
    whole = load_file(tmp_path / "model.safetensors")
    bare = {name.removeprefix("transformer."): tensor.half() for name, tensor in whole.items()}
    bare["h.0.attn.bias"] = torch.ones(1, 1, 96, 96).tril()
    save_file(bare, tmp_path / "model.safetensors")
    again = convert.load(tmp_path)
    assert {parameter.dtype for parameter in again.parameters()} == {torch.float32}
    assert torch.equal(again.wte.weight, model.wte.weight.half().float())


USED_ELSEWHERE = """
    import json, sys
    sys.modules["gpt_model"] = None  # nothing of ours
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer, pipeline
    told = {}
    for folder in sys.argv[1:]:
        model, tokenizer = AutoModelForCausalLM.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)
        ids = tokenizer("the king sees a tree", return_tensors="pt").input_ids
        write = pipeline("text-generation", model=folder, device="cpu")
        written = write("the king sees", do_sample=False, return_tensors=True)[0]["generated_token_ids"]
        text = write("the king sees", do_sample=False)[0]["generated_text"]
        told[folder] = {
            "class": type(model).__name__, "ids": ids[0].tolist(), "logits": model(ids).logits[0, -1].tolist(), "text": text,
            "written": written, "longest": model.generation_config.max_length, "end": model.generation_config.eos_token_id,
        }
    print(json.dumps(told))
"""


@pytest.mark.slow
def test_exported_folders_work_in_transformers_with_nothing_of_ours(tmp_path: Path) -> None:
    texts = ["the king sees a tree. ", "a tree sees the king, and the rain sees it\n"] * 40
    models = {}
    for family in FAMILIES:
        tokenizer = Tokenizer.train(
            texts,
            vocab_size=40 if family == "gpt1" else 264,
            style="gpt1" if family == "gpt1" else "gpt2",
        )
        models[family] = perturbed(family, vocab_size=tokenizer.vocab_size, context=24), tokenizer
        convert.save(models[family][0], tmp_path / family, tokenizer.end_of_text)
        tokenizer.save(tmp_path / family)
        convert.export_folder(tmp_path / family, tmp_path / f"{family}-exported")
    command = [
        sys.executable,
        "-c",
        textwrap.dedent(USED_ELSEWHERE),
        *(str(tmp_path / f"{family}-exported") for family in FAMILIES),
    ]
    elsewhere = subprocess.run(
        command,
        capture_output=True,
        text=True,
        cwd=tmp_path,
        env=os.environ | {"HF_HUB_OFFLINE": "1"},
        check=False,
    )
    assert elsewhere.returncode == 0, elsewhere.stderr
    for folder, record in json.loads(elsewhere.stdout.splitlines()[-1]).items():
        family = Path(folder).name.removesuffix("-exported")
        model, tokenizer = models[family]
        ids = tokenizer.encode("the king sees a tree")
        assert (record["class"], record["ids"]) == (CLASSES[family], ids)
        assert (
            torch.tensor(record["logits"]) - model(torch.tensor([ids]))[0, -1]
        ).abs().max() < 1e-5
        assert (record["longest"], record["end"]) == (24, tokenizer.end_of_text)
        prompt = tokenizer.encode("the king sees")
        [written] = generate(
            model, [prompt], 24 - len(prompt), temperature=0.0, stop=[tokenizer.end_of_text]
        )
        ended = [tokenizer.end_of_text] * (len(prompt) + len(written) < 24)  # theirs keeps it
        assert record["written"] == [*prompt, *written, *ended] and written
        assert record["text"].startswith("the king sees")


@pytest.mark.slow
def test_saving_and_loading_a_model_imports_neither_transformers_nor_a_compiler(
    tmp_path: Path,
) -> None:
    code = (
        "import sys; from gpt_model import GPT, ModelConfig, convert; "
        "convert.save(GPT(ModelConfig(layers=1, width=8, heads=1, context=8, vocab_size=300)), "
        f"{str(tmp_path)!r}); "
        f"convert.load({str(tmp_path)!r}); "
        "print([m for m in ('transformers', 'torch._dynamo') if m in sys.modules])"
    )
    assert (
        subprocess.run(
            [sys.executable, "-c", code], capture_output=True, text=True, check=True
        ).stdout.strip()
        == "[]"
    )


@pytest.mark.parametrize(
    ("family", "field", "value"),
    [
        ("gpt2", "model_type", "llama"),
        ("gpt2", "activation_function", "relu"),
        ("gpt2", "n_inner", 100),
        ("gpt2", "attn_pdrop", 0.5),
        ("gpt2", "n_embd", "wide"),
        ("gpt2", "n_head", 7),
        ("gpt2", "tie_word_embeddings", False),
        ("gpt2", "scale_attn_by_inverse_layer_idx", True),
        ("gpt1", "afn", "relu"),
        ("gpt1", "layer_norm_epsilon", 1e-6),
        ("gpt3", "attention_types", [[["global"], 3]]),
        ("gpt3", "attention_types", [[["local", "global"], 1], [["local"], 1]]),
        ("gpt3", "activation_function", "gelu"),
        ("gpt3", "intermediate_size", 100),
        ("gpt3", "window_size", 0),
    ],
)
def test_an_unfit_config_is_refused_by_name(
    tmp_path: Path, family: str, field: str, value: object
) -> None:
    convert.export(perturbed(family), tmp_path)
    stored = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(stored | {field: value}))
    with pytest.raises(UserError, match=r"config\.json.*(" + field + "|width|heads|band)"):
        convert.load(tmp_path)


def test_unfit_weights_are_refused_by_name(tmp_path: Path) -> None:
    convert.save(perturbed(), tmp_path)
    file = tmp_path / "model.safetensors"
    whole = load_file(file)
    changes: tuple[tuple[dict[str, Tensor | None], str], ...] = (
        ({"transformer.h.1.ln_2.bias": None}, "has no tensor h.1.ln_2.bias"),
        ({"x": torch.ones(1)}, "a tensor x"),
        ({"lm_head.weight": torch.ones(311, 64)}, "lm_head.weight differs from wte.weight"),
    )
    for change, word in changes:
        save_file(
            {name: tensor for name, tensor in (whole | change).items() if tensor is not None}, file
        )
        with pytest.raises(UserError, match=word):
            convert.load(tmp_path)
    file.write_bytes(file.read_bytes()[:-5])
    with pytest.raises(CorruptFile, match=r"model\.safetensors"):
        convert.load(tmp_path)
    file.unlink()
    with pytest.raises(UserError, match=r"no model\.safetensors"):
        convert.load(tmp_path)
