"""bertds: BERT pre-training from a raw corpus, at any scale, under DeepSpeed."""

__version__ = "0.1.0"

_FROM_ZOO = ("from_pretrained", "load_tokenizer")


def __getattr__(name: str) -> object:
    """Import :mod:`bertds.zoo` only when one of its functions is used: it needs torch."""
    if name in _FROM_ZOO:
        from importlib import import_module

        return getattr(import_module("bertds.zoo"), name)
    raise AttributeError(f"module 'bertds' has no attribute {name!r}")
