"""An exported folder in the hands of other programs: `transformers`' own classes and pipelines with
nothing of ours, and plain Jinja.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import jinja2
import pytest
import torch
from safetensors.torch import load_file

from gpt_model import GPT, ModelConfig, convert
from gpt_model.config import Family
from gpt_model.finetuning.batches import collate
from gpt_model.finetuning.examples import Example
from gpt_model.finetuning.export import export_classifier
from gpt_model.finetuning.heads import TaskModel, save, with_special_tokens
from gpt_model.finetuning.input_forms import InputFormat, truncation_of
from gpt_model.generation import generate
from gpt_model.rlhf.chat_template import ChatTemplate, chat_tokenizer
from gpt_model.rlhf.dialogue import Turn
from gpt_model.tokenizer import END_OF_TEXT, Tokenizer

CONTEXT = 24
TEXTS = ["the king sees a tree. ", "a tree sees the king, and the rain sees it\n"] * 40


def tokenizer_of(style: str) -> Tokenizer:
    return Tokenizer.train(TEXTS, vocab_size=40 if style == "gpt1" else 264, style=style)


def network(family: Family, vocab_size: int) -> GPT:
    """Weights far from their symmetric start, biases and norms too."""
    shape: dict[str, Any] = {"layers": 2, "width": 32, "heads": 2, "context": CONTEXT}
    if family == "gpt3":
        shape |= {"attention_bias": False}
    model = GPT(ModelConfig(family=family, vocab_size=vocab_size, **shape), seed=1)
    generator = torch.Generator().manual_seed(2)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.2 * torch.randn(parameter.shape, generator=generator)
    return model.eval()


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> tuple[GPT, Tokenizer, Path]:
    """A chat model, its tokenizer, and its folder as it leaves the store."""
    folder = tmp_path_factory.mktemp("chat")
    tokenizer = chat_tokenizer(tokenizer_of("gpt2"))
    model = network("gpt2", tokenizer.vocab_size)
    convert.save(model, folder / "stored", tokenizer.end_of_text)
    tokenizer.save(folder / "stored")
    convert.export_folder(folder / "stored", folder / "exported")
    return model, tokenizer, folder / "exported"


@pytest.mark.slow
def test_tokenizer_cuts_to_the_context_and_pads_on_the_left(
    exported: tuple[GPT, Tokenizer, Path],
) -> None:
    from transformers import AutoTokenizer

    _, ours, folder = exported
    tokenizer = AutoTokenizer.from_pretrained(folder)
    cut = tokenizer("the king sees " * 99, truncation=True)["input_ids"]
    assert cut == ours.encode("the king sees " * 99)[:CONTEXT]
    batch = tokenizer(["the king", "a tree sees the king"], padding=True)
    short, long = (ours.encode(text) for text in ("the king", "a tree sees the king"))
    padding = len(long) - len(short)
    assert batch["input_ids"] == [[ours.end_of_text] * padding + short, long]
    assert batch["attention_mask"] == [[0] * padding + [1] * len(short), [1] * len(long)]


@pytest.mark.slow
def test_padded_batch_of_a_pipeline_writes_what_each_prompt_alone_does(
    exported: tuple[GPT, Tokenizer, Path],
) -> None:
    from transformers import pipeline

    model, tokenizer, folder = exported
    prompts = ["the king", "a tree sees the king, and", "rain"]
    write = pipeline("text-generation", model=str(folder))
    options = {"do_sample": False, "max_new_tokens": 4, "return_full_text": False}
    batch = write(prompts, batch_size=3, **options)
    for prompt, [answer] in zip(prompts, batch, strict=True):
        [expected] = generate(
            model, [tokenizer.encode(prompt)], 4, temperature=0.0, stop=[tokenizer.end_of_text]
        )
        text = tokenizer.decode([token for token in expected if token < tokenizer.end_of_text])
        assert answer["generated_text"] == text
        assert write(prompt, **options)[0]["generated_text"] == text


@pytest.mark.slow
def test_chat_template_is_plain_jinja_and_gives_our_tokens(
    exported: tuple[GPT, Tokenizer, Path],
) -> None:
    from transformers import AutoTokenizer

    _, ours, folder = exported
    source = (folder / "chat_template.jinja").read_text()
    template = jinja2.Environment(autoescape=False).from_string(source)  # noqa: S701 - no HTML
    messages = [
        {"role": "user", "content": "who sees the king"},
        {"role": "assistant", "content": " a tree "},
        {"role": "user", "content": "the rain"},
    ]
    text = template.render(messages=messages, eos_token=END_OF_TEXT, add_generation_prompt=True)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    applied = tokenizer.apply_chat_template(messages, add_generation_prompt=True)["input_ids"]
    turns = [Turn(message["role"], message["content"].strip()) for message in messages]
    assert tokenizer(text)["input_ids"] == applied == ChatTemplate(ours).encode_prompt(turns)


@pytest.mark.slow
@pytest.mark.parametrize("form", ["classification", "entailment"])
@pytest.mark.parametrize("family", ["gpt1", "gpt2", "gpt3"])
def test_fine_tuned_model_gives_our_logits_and_labels_as_a_classifier(
    family: Family, form: str, tmp_path: Path
) -> None:
    from transformers import AutoModelForSequenceClassification, AutoTokenizer, pipeline

    tokenizer = tokenizer_of("gpt1" if family == "gpt1" else "gpt2")
    layout = InputFormat(form, tokenizer.vocab_size, CONTEXT, truncation_of(family))  # type: ignore[arg-type]
    gpt = with_special_tokens(network(family, tokenizer.vocab_size), dropout=0.1, seed=3)
    model = TaskModel(gpt, layout, classes=3, dropout=0.1, seed=4).eval()
    with torch.no_grad():
        model.head.bias.copy_(torch.tensor([1.0, -2.0, 0.5]))
    save(model, ["no", "maybe", "yes"], tmp_path / "stored", tokenizer.end_of_text)
    tokenizer.save(tmp_path / "stored")
    assert export_classifier(tmp_path / "stored", tmp_path / "exported")
    rows = [("the king", "a tree"), ("a tree sees it", "rain")]
    if form == "classification":
        rows = [(first,) for first, _ in [*rows, ("a tree sees " * 20, "")]]  # type: ignore[misc]
    encoded = layout.encode(tokenizer, [Example("", "", row, (), 0) for row in rows])
    ours = model(collate(encoded))[0].detach()

    elsewhere = AutoTokenizer.from_pretrained(tmp_path / "exported")
    batch = elsewhere(
        *map(list, zip(*rows, strict=True)), truncation=True, padding=True, return_tensors="pt"
    )
    for ids, mask, example in zip(
        batch["input_ids"], batch["attention_mask"], encoded, strict=True
    ):
        assert tuple(ids[mask.bool()].tolist()) == example.rows[0]
    theirs = AutoModelForSequenceClassification.from_pretrained(tmp_path / "exported").eval()
    inputs = {name: batch[name] for name in ("input_ids", "attention_mask")}
    assert (theirs(**inputs).logits.detach() - ours).abs().max() < 1e-4
    answer = pipeline("text-classification", model=str(tmp_path / "exported"))
    asked = [{"text": row[0], **({"text_pair": row[1]} if len(row) > 1 else {})} for row in rows]
    labels = [result["label"] for result in answer(asked, truncation=True)]
    assert labels == [["no", "maybe", "yes"][index] for index in ours.argmax(1)]


def test_model_of_two_orders_or_of_options_is_no_classifier_elsewhere(tmp_path: Path) -> None:
    tokenizer = tokenizer_of("gpt2")
    layout = InputFormat("similarity", tokenizer.vocab_size, CONTEXT)
    gpt = with_special_tokens(network("gpt2", tokenizer.vocab_size), dropout=0.0, seed=1)
    model = TaskModel(gpt, layout, 2, 0.0, seed=1).eval()
    save(model, ["a", "b"], tmp_path / "s", tokenizer.end_of_text)
    tokenizer.save(tmp_path / "s")
    assert not export_classifier(tmp_path / "s", tmp_path / "out")
    assert not (tmp_path / "out").exists()

    # What the card says of decoder and head is so.
    from transformers import AutoModelForCausalLM

    convert.export_folder(tmp_path / "s", tmp_path / "out")
    described = json.loads((tmp_path / "out" / "task_layout.json").read_text())
    start, delim, extract = range(*(described["layout"]["vocab_size"] + n for n in (0, 3)))
    [example] = layout.encode(tokenizer, [Example("", "", ("the king", "a tree"), (), 0)])
    first, second = (tokenizer.encode(text) for text in ("the king", "a tree"))
    orders = ((first, second), (second, first))
    rows = [[start, *one, delim, *other, extract] for one, other in orders]
    assert [tuple(row) for row in rows] == list(example.rows)
    decoder = AutoModelForCausalLM.from_pretrained(tmp_path / "out").base_model.eval()
    head = load_file(tmp_path / "out" / "head.safetensors")
    states = decoder(torch.tensor(rows)).last_hidden_state[:, -1].sum(0)
    theirs = states @ head["weight"].T + head["bias"]
    assert (theirs - model(collate([example]))[0][0]).abs().max() < 1e-4
