"""A copy of a pre-trained decoder with only its lower layers kept: what each is worth to a task
(GPT-1, section 5, figure 2 left).
"""

from __future__ import annotations

from gpt_model.networks import build
from gpt_model.transformer import GPT


def transferred(gpt: GPT, layers: int, seed: int) -> GPT:
    """`gpt` with its embeddings and its lower `layers` blocks, and fresh weights in all above,
    drawn from `seed`.

    As the released code counts (train.py, `n_transfer`): 0 keeps the embeddings of tokens and
    positions alone, -1 keeps nothing. The final norm, where there is one, stands above the last
    block and is kept with it.
    """
    fresh = build(gpt.config, seed)
    assert isinstance(fresh, GPT)
    kept = ["wte.", "wpe."] if layers >= 0 else []
    kept += [f"h.{layer}." for layer in range(layers)]
    kept += ["ln_f."] if layers == gpt.config.layers else []
    weights = gpt.state_dict()
    fresh.load_state_dict(
        {
            name: weights[name] if name.startswith(tuple(kept)) else own
            for name, own in fresh.state_dict().items()
        }
    )
    return fresh
