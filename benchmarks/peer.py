"""``transformers.BertForPreTraining`` behind the same engine as ours, on the same rows.

Rows are padded to the longest of the batch, as transformers' own collator does. Attention is SDPA.
Losses are computed as in transformers: over all positions, with the label -100 where there is
nothing to predict.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from bertds.config.recipe import ModelConfig
from bertds.data.loader import MicroBatch
from bertds.model.bert import PreTrainingOutput
from bertds.pretrained.hf_config import config_to_transformers


class PaddedBatch(NamedTuple):
    """A micro-batch as transformers takes it; also what the engine passes to the model."""

    input_ids: Tensor
    attention_mask: Tensor
    token_type_ids: Tensor
    labels: Tensor
    next_sentence_label: Tensor

    def to(self, device: torch.device) -> PaddedBatch:
        """Copy to a device."""
        return PaddedBatch(*(tensor.to(device, non_blocking=True) for tensor in self))

    def model_inputs(self) -> dict[str, Tensor]:
        """Return the arguments of the model's ``forward``, by name."""
        return self._asdict()


def pad_batch(batch: MicroBatch) -> PaddedBatch:
    """Return the same rows with padding; outside of what is timed."""
    assert batch.next_sentence_labels is not None
    lengths = batch.cu_seqlens.diff().long()
    real = torch.arange(batch.max_seqlen) < lengths[:, None]
    zeros = torch.zeros(real.shape, dtype=torch.int64)
    flat_labels = torch.full_like(batch.input_ids, -100)
    flat_labels[batch.masked_lm_positions] = batch.masked_lm_ids
    labels = torch.full_like(zeros, -100).masked_scatter_(real, flat_labels)
    return PaddedBatch(
        zeros.masked_scatter(real, batch.input_ids),
        real.long(),
        zeros.masked_scatter(real, batch.segment_ids),
        labels,
        batch.next_sentence_labels,
    )


class Peer(nn.Module):
    """transformers' model with our output: its loss is one number, the sum of both means."""

    def __init__(self, config: ModelConfig, vocab_size: int) -> None:
        super().__init__()
        import transformers

        values = config_to_transformers(config, vocab_size)
        settings = transformers.BertConfig(**values, attn_implementation="sdpa")
        self.model = transformers.BertForPreTraining(settings)

    def forward(self, **padded: Any) -> PreTrainingOutput:
        """Return the loss where the engine looks for it."""
        loss = self.model(**padded).loss.float()
        nothing = torch.zeros((), dtype=torch.int64, device=loss.device)
        return PreTrainingOutput(loss, torch.zeros_like(loss), nothing, nothing)
