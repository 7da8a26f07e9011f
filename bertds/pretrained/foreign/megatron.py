"""Converts Megatron's BERT (Megatron-LM, NeMo, BioMegatron) to transformers' ``megatron-bert``."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from bertds.data.tokenizer_folder import tokenizer_files
from bertds.data.vocabulary import vocabulary_size
from bertds.data.wordpiece_rules import WordPieceRules
from bertds.errors import CheckpointError
from bertds.pretrained.foreign import parameter_names
from bertds.pretrained.hf_folder import write_hf_folder
from bertds.pretrained.output_folder import fresh_folder


class MegatronBert:
    """A Megatron BERT: transformers' ``megatron-bert``, whose LayerNorms precede the blocks."""

    def __init__(
        self, weights: dict[str, Tensor], config: dict[str, Any], vocab: Path | None
    ) -> None:
        self.weights, self.config, self.vocab = weights, config, vocab

    @classmethod
    def from_state_dict(
        cls,
        state_dict: Mapping[str, Tensor],
        values: dict[str, Any],
        extra: dict[str, Any],
        path: Path,
        vocab: Path | None,
    ) -> MegatronBert:
        """Rename and reshape a Megatron state dict; see ``parameter_names.from_megatron``.

        Raises:
            CheckpointError: the architecture is not supported, or a setting is missing.
        """
        if values.get("transformer_block_type", "pre_ln") != "pre_ln":
            raise CheckpointError(f"{path}: only transformer_block_type pre_ln is supported")
        heads = values.get("num_attention_heads")
        if not isinstance(heads, int) or heads < 1:
            raise CheckpointError(f"{path}: num_attention_heads is missing from its configuration")
        version = float(extra.get("checkpoint_version", 3.0))
        weights = parameter_names.from_megatron(state_dict, heads, version=version)
        table = weights["bert.embeddings.word_embeddings.weight"]
        vocab_size = int(values.get("vocab_size") or 0)
        if not vocab_size and vocab is not None:
            vocab_size = vocabulary_size(vocab.parent)
        vocab_size = vocab_size or table.shape[0]
        # Megatron pads the vocabulary to a multiple of 128 per device.
        for name in ("bert.embeddings.word_embeddings.weight", "cls.predictions.bias"):
            if name in weights:
                weights[name] = weights[name][:vocab_size].contiguous()
        # The sizes come from the weights, since a Megatron file may lack its settings.
        layers = {int(m[1]) for m in (re.search(r"layer\.(\d+)\.", n) for n in weights) if m}
        intermediate = weights["bert.encoder.layer.0.intermediate.dense.weight"].shape[0]
        config = {
            "model_type": "megatron-bert",
            "architectures": ["MegatronBertForPreTraining"],
            "vocab_size": vocab_size,
            "hidden_size": table.shape[1],
            "num_hidden_layers": len(layers),
            "num_attention_heads": heads,
            "intermediate_size": intermediate,
            "max_position_embeddings": weights["bert.embeddings.position_embeddings.weight"].shape[
                0
            ],
            "type_vocab_size": 2,
            "hidden_act": "gelu_new",
            "hidden_dropout_prob": 0.1,
            "attention_probs_dropout_prob": 0.1,
            "layer_norm_eps": float(values.get("layer_norm_eps", 1e-5)),
            "pad_token_id": 0,
            "tie_word_embeddings": True,
        }
        return cls({n: t.float().contiguous() for n, t in weights.items()}, config, vocab)

    def write(self, out: Path, *, cased: bool, overwrite: bool) -> None:
        """Write a Hugging Face folder; ``overwrite`` replaces an earlier conversion."""
        if self.vocab is None:
            raise CheckpointError("vocab.txt is missing next to the checkpoint; give --vocab FILE")
        with fresh_folder(out, overwrite=overwrite) as folder:
            write_hf_folder(
                folder,
                self.config,
                self.weights,
                tokenizer_files(self.vocab.parent),
                WordPieceRules.of(lower_case=False) if cased else None,
            )
