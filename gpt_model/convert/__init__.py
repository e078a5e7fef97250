"""To and from `transformers`, and to and from the folders of decoders. Safetensors only.

- gpt1, `OpenAIGPTLMHeadModel`: the same bits. In training it drops out the sum of the embeddings,
  ours the matrix, as GPT-1's code does.
- gpt2, `GPT2LMHeadModel`: the same bits.
- gpt3, `GPTNeoForCausalLM`: the class with local attention. It does not divide scores by sqrt(head
  width), so that is folded into the query weights: exact both ways where it is a power of two (head
  widths 16, 64, 256), rounded once each way elsewhere. It has no biases of query, key and value: a
  model with them is refused.

- `save` and `load`: the store's own folder. For gpt1 and gpt2 it is a folder that `transformers`
  loads; for gpt3 it is native, since one with those biases fits no class of theirs, as is an LSTM's
  (`load_decoder`). `load` reads theirs too, sharded ones among them. `load_elements` and `weights`
  read the store's own folder in parts, `save_again` copies it; `stream_tensors` and `read_elements`
  do with any file of tensors.
- `export` (a model) and `export_folder` (a stored folder, tokenizer and all): what `transformers`
  loads with nothing of ours.

How each class calls things is `dialects.py`'s, files are `folder.py`'s. Tokenizers are
`gpt_model.tokenizer`'s.
"""

from gpt_model.convert.folder import (
    check_exportable,
    export,
    export_folder,
    load,
    load_decoder,
    load_elements,
    read_elements,
    require_gpt,
    save,
    save_again,
    shape,
    stream_tensors,
    weights,
)
from gpt_model.convert.network import from_transformers, to_transformers, with_vocabulary

__all__ = [
    "check_exportable",
    "export",
    "export_folder",
    "from_transformers",
    "load",
    "load_decoder",
    "load_elements",
    "read_elements",
    "require_gpt",
    "save",
    "save_again",
    "shape",
    "stream_tensors",
    "to_transformers",
    "weights",
    "with_vocabulary",
]
