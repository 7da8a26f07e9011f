"""bertds: BERT pre-training from a raw corpus, at any scale, under DeepSpeed."""

__version__ = "0.1.0"
