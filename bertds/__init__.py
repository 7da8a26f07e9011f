"""bertds: BERT pre-training from a raw corpus, at any scale, under DeepSpeed."""

__version__ = "0.1.0"

_TRANSFORMERS_API = ("from_pretrained", "load_tokenizer")


def __getattr__(name: str) -> object:
    """Import these functions' module only when one of them is used: it needs torch."""
    if name in _TRANSFORMERS_API:
        from importlib import import_module

        return getattr(import_module("bertds.pretrained.transformers_api"), name)
    raise AttributeError(f"module 'bertds' has no attribute {name!r}")
