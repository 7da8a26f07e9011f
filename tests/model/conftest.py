"""A tiny random transformers BERT, ours with the same weights, and a ragged batch for both."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import pytest
import torch
import transformers
from torch import Tensor

from bertds.config.recipe import ModelConfig
from bertds.model.bert import BertForPreTraining
from bertds.pretrained.hf_config import config_to_transformers
from bertds.pretrained.hf_weights import load_transformers_state_dict
from tests.support.padded_rows import flatten_padded

VOCAB_SIZE = 101  # not a multiple of 64, so that there are padded rows


@dataclass(frozen=True)
class Batch:
    """A padded batch as transformers takes it."""

    input_ids: Tensor
    attention_mask: Tensor
    token_type_ids: Tensor
    labels: Tensor
    next_sentence_label: Tensor

    def ours(self, *, with_nsp: bool = True) -> dict[str, Any]:
        """The same rows as arguments of our forward."""
        flat = flatten_padded(self.input_ids, self.attention_mask, self.token_type_ids)
        labels = self.labels.flatten()[flat.slots]
        positions = (labels != -100).nonzero().squeeze(1)
        arguments = flat._asdict()
        del arguments["slots"]
        return arguments | {
            "masked_lm_positions": positions,
            "masked_lm_ids": labels[positions],
            "next_sentence_labels": self.next_sentence_label if with_nsp else None,
        }

    def rows(self, start: int, stop: int) -> Batch:
        """Some of its rows."""
        return Batch(*(getattr(self, name)[start:stop] for name in self.__dataclass_fields__))

    @property
    def masked_tokens(self) -> int:
        return int((self.labels != -100).sum())


@pytest.fixture
def batch() -> Batch:
    """Six ragged rows, two of them equally long, not sorted, three masked tokens or more each."""
    generator = torch.Generator().manual_seed(7)
    lengths = torch.tensor([9, 24, 5, 17, 24, 12])
    columns = int(lengths.max())
    real = torch.arange(columns) < lengths[:, None]
    shape = (len(lengths), columns)
    ids = torch.randint(1, VOCAB_SIZE, shape, generator=generator) * real
    segments = (torch.arange(columns) >= (lengths // 2)[:, None]).long() * real
    labels = torch.full(shape, -100)
    for row, length in enumerate(lengths.tolist()):
        chosen = torch.randperm(length - 1, generator=generator)[: 3 + row] + 1
        labels[row, chosen] = torch.randint(0, VOCAB_SIZE, (len(chosen),), generator=generator)
    next_sentence_label = torch.tensor([0, 1, 1, 0, 1, 0])
    return Batch(ids, real.long(), segments, labels, next_sentence_label)


@pytest.fixture
def tiny() -> ModelConfig:
    """Small, no dropout, and with weights large enough that nothing is nearly linear."""
    return ModelConfig(
        hidden_size=32,
        num_hidden_layers=3,
        num_attention_heads=4,
        intermediate_size=64,
        max_position_embeddings=40,
        hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0,
        initializer_range=0.2,
    )


def make_pair(
    config: ModelConfig, *, seed: int = 0
) -> tuple[BertForPreTraining, transformers.PreTrainedModel]:
    """Return ours and transformers' with the same random weights, biases and LayerNorms too."""
    torch.manual_seed(seed)
    values = config_to_transformers(config, VOCAB_SIZE)
    reference = getattr(transformers, values["architectures"][0])(transformers.BertConfig(**values))
    with torch.no_grad():
        for name, parameter in reference.named_parameters():
            parameter.normal_(1.0 if name.endswith("LayerNorm.weight") else 0.0, 0.2)
    ours = BertForPreTraining(replace(config, initializer_range=0.02), VOCAB_SIZE)
    report = load_transformers_state_dict(ours, reference.state_dict())
    assert report == ([], [])
    return ours, reference


@pytest.fixture
def pair(tiny: ModelConfig) -> tuple[BertForPreTraining, transformers.PreTrainedModel]:
    return make_pair(tiny)


@pytest.fixture
def pair_of():
    """The function behind ``pair``, for another configuration."""
    return make_pair


@pytest.fixture
def vocab_size() -> int:
    return VOCAB_SIZE
