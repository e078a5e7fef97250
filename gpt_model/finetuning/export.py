"""A fine-tuned model as a classifier of `transformers`: its decoder's …ForSequenceClassification,
the labels in the config, and a tokenizer that writes Start, Delim and Extract.

That class reads the state of the last token, which is Extract, by a head without a bias. Ours goes
into the bias of the last norm: the smallest δ with W·δ = bias makes the logits equal. Where a pair
of texts exceeds the context, GPT-1's inputs are cut at halves of it, and theirs at the longer text.
"""

from __future__ import annotations

from pathlib import Path

import tokenizers
import torch
from tokenizers.processors import TemplateProcessing

from gpt_model.convert.dialects import PREFIX, of_family
from gpt_model.convert.folder import copy_readable, write
from gpt_model.convert.network import theirs
from gpt_model.finetuning.heads import HEAD_FILE, LAYOUT_FILE, load
from gpt_model.finetuning.input_forms import SPECIAL_TOKENS
from gpt_model.io import CONFIG, described
from gpt_model.tokenizer.exported import complete

# One row an example. A similarity has two, a question one for each option.
FORMS = ("classification", "entailment")
CAUSAL_ONLY = (HEAD_FILE, LAYOUT_FILE, "generation_config.json")


def export_classifier(source: Path, target: Path) -> bool:
    """Write the fine-tuned model in `source` to `target` for the pipeline "text-classification".

    False, with nothing written, where its form is none of FORMS. Raises UserError where no class of
    `transformers` is its decoder.
    """
    model, labels = load(source)
    if model.input_format.form not in FORMS:
        return False
    dialect, shape, stored = of_family(model.gpt.config.family), model.gpt.config, described(source)
    end_of_text = stored.get("eos_token_id", stored.get("end_of_text"))
    config = {
        **dialect.config(shape, end_of_text),
        "architectures": [dialect.classifier],
        "id2label": {str(number): label for number, label in enumerate(labels)},
        "label2id": {label: number for number, label in enumerate(labels)},
        "problem_type": "single_label_classification",
    }
    weights = theirs(model.gpt, dialect)
    head, bias = model.head.weight.detach(), model.head.bias.detach()  # [classes, width], [classes]
    shift = torch.linalg.lstsq(head.double(), bias.double()[:, None]).solution[:, 0]  # [width]
    last_norm = f"h.{shape.layers - 1}.ln_2.bias" if shape.family == "gpt1" else "ln_f.bias"
    weights[last_norm] = (weights[last_norm].double() + shift).float()
    copy_readable(source, target)
    for name in CAUSAL_ONLY:
        (target / name).unlink(missing_ok=True)
    named = {f"{PREFIX}{name}": tensor for name, tensor in weights.items()}
    write(target, {CONFIG: config}, {**named, "score.weight": head})
    _write_tokenizer(target)
    complete(target, shape.context, "right", {"tokenizer_class": "PreTrainedTokenizerFast"})
    return True


def _write_tokenizer(folder: Path) -> None:
    """A tokenizer.json whose post-processor lays out one text, or two, as training did."""
    path = str(folder / "tokenizer.json")
    rust = tokenizers.Tokenizer.from_file(path)
    rust.add_special_tokens(
        [tokenizers.AddedToken(token, special=True, normalized=False) for token in SPECIAL_TOKENS]
    )
    start, delim, extract = SPECIAL_TOKENS
    rust.post_processor = TemplateProcessing(
        single=f"{start} $A {extract}",
        pair=f"{start} $A {delim} $B {extract}",
        special_tokens=[(token, rust.token_to_id(token)) for token in SPECIAL_TOKENS],
    )
    rust.save(path)
