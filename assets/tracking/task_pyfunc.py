"""The loader that fine-tuned models name which an earlier version logged."""

from gpt_model.finetuning.pyfunc import _load_pyfunc

__all__ = ["_load_pyfunc"]
