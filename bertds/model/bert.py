"""BERT for pre-training on a flat row of real tokens.

    ids [T] -> embeddings -> encoder [T, H] -> masked positions [M, H] -> masked-LM loss (sum)
                                            -> first tokens     [B, H] -> next-sentence loss (sum)

Losses are sums, not means. The engine divides by the counts of the whole global batch, so that the
result depends neither on the micro batch nor on the number of processes.

Sizes: T real tokens of the micro batch, B rows, M masked tokens, H width, K vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bertds.config.recipe import ModelConfig
from bertds.errors import ConfigError
from bertds.model.batch_calls import TakesBatches
from bertds.model.embeddings import Embeddings
from bertds.model.encoder import Encoder
from bertds.model.heads import Pooler, PreTrainingHeads
from bertds.model.row_layout import RowLayout, arrange


class PreTrainingOutput(NamedTuple):
    """Scalars of one micro batch, on the device."""

    mlm_loss_sum: Tensor
    """float32: cross-entropy summed over masked tokens."""
    nsp_loss_sum: Tensor
    """float32: cross-entropy summed over rows; 0 without next-sentence labels."""
    mlm_correct: Tensor
    """int64: masked tokens predicted correctly."""
    nsp_correct: Tensor
    """int64: rows whose next-sentence label was predicted correctly."""
    predictions: Tensor | None = None
    """int64 [M]: the most likely token id at each masked position, if requested; the masked-LM
    scalars are then 0."""


def nothing(like: Tensor) -> tuple[Tensor, Tensor]:
    """Return a float32 and an int64 scalar 0 on the device of ``like``."""
    return like.new_zeros((), dtype=torch.float32), like.new_zeros((), dtype=torch.int64)


def score_words(
    head: Callable[..., Any], masked_MH: Tensor, masked_lm_ids_M: Tensor, *, predict: bool
) -> tuple[Tensor, Tensor, Tensor | None]:
    """Return the summed masked-LM loss and the number of correct words, or the predicted words.

    Both cases call the head's modules in the same order, which ZeRO-3 records.

    Args:
        head: returns logits, or with labels the loss and the number of correct words.
        masked_MH: the encoder's output at the masked positions.
        masked_lm_ids_M: the original token ids.
        predict: return the most likely token ids; loss and number are then 0.
    """
    if predict:
        loss_sum, correct = nothing(masked_MH)
        return loss_sum, correct, head(masked_MH).argmax(1)
    loss_sum, correct = head(masked_MH, masked_lm_ids_M)
    return loss_sum, correct, None


class BertModel(nn.Module):
    """Embeddings, encoder and, if requested, the pooler. transformers' ``bert``."""

    def __init__(self, config: ModelConfig, vocab_size: int, *, pooler: bool = True) -> None:
        super().__init__()
        self.embeddings = Embeddings(config, vocab_size)
        self.encoder = Encoder(config)
        self.pooler = Pooler(config) if pooler else None

    def forward(
        self,
        input_ids_T: Tensor,
        segment_ids_T: Tensor,
        position_ids_T: Tensor,
        layout: RowLayout,
        read: Tensor | None = None,
    ) -> Tensor:
        """Return hidden states [T, H] of tokens in the layout's order; see ``Encoder.forward``."""
        hidden_TH = self.embeddings(input_ids_T, segment_ids_T, position_ids_T)
        return self.encoder(hidden_TH, layout, read)

    def encode(
        self,
        input_ids: Tensor,
        segment_ids: Tensor,
        position_ids: Tensor,
        cu_seqlens: Tensor,
        max_seqlen: int,
    ) -> tuple[Tensor, Tensor | None]:
        """Return hidden states [T, H] and pooled rows [B, H] (None without a pooler).

        Args:
            input_ids: int64 [T], the real tokens of all rows, one row after the other.
            segment_ids: int64 [T].
            position_ids: int64 [T].
            cu_seqlens: int32 [B + 1], where each row starts; ends with T.
            max_seqlen: length of the longest row.
        """
        # Rows may be computed in another order; the result is returned in the caller's order.
        arrangement = arrange(cu_seqlens, max_seqlen, self.encoder.kernel())
        ids = (arrangement.take_tokens(t) for t in (input_ids, segment_ids, position_ids))
        hidden_TH = self(*ids, arrangement.layout)
        hidden_TH = arrangement.restore_tokens(hidden_TH)
        if self.pooler is None:
            return hidden_TH, None
        return hidden_TH, self.pooler(hidden_TH.index_select(0, cu_seqlens[:-1]))


class BertForPreTraining(TakesBatches):
    """Masked LM, and next-sentence prediction if the configuration asks for it.

    Parameters are named as in transformers' ``BertForPreTraining``. Without next-sentence
    prediction they are those of ``BertForMaskedLM``, without pooler and ``cls.seq_relationship``.
    The word embeddings and the masked-LM bias have more rows than the vocabulary, see
    ``padded_vocabulary``; these rows are zero and remain zero.
    """

    def __init__(self, config: ModelConfig, vocab_size: int) -> None:
        super().__init__()
        if config.hidden_size % config.num_attention_heads:
            raise ConfigError(
                f"model.num_attention_heads={config.num_attention_heads} does not divide "
                f"model.hidden_size={config.hidden_size}"
            )
        self.config = config
        self.vocab_size = vocab_size
        self.bert = BertModel(config, vocab_size, pooler=config.next_sentence)
        word_table = self.bert.embeddings.word_embeddings.weight
        assert isinstance(word_table, nn.Parameter)
        self.cls = PreTrainingHeads(config, vocab_size, word_table)
        self.initialise()

    @torch.no_grad()
    def initialise(self) -> None:
        """Initialize all weights: N(0, initializer_range) truncated at 2 deviations, biases 0.

        Like Google's ``truncated_normal_initializer``. Segment and position embeddings too.
        """
        deviation = self.config.initializer_range
        word_table = self.bert.embeddings.word_embeddings.weight
        word_table[self.vocab_size :].zero_()
        self.cls.predictions.bias.zero_()
        for module in self.modules():
            if isinstance(module, nn.Linear | nn.Embedding):
                # Only the rows of real words: the random numbers must not depend on the padding.
                rows = self.vocab_size if module.weight is word_table else None
                nn.init.trunc_normal_(
                    module.weight[:rows], std=deviation, a=-2 * deviation, b=2 * deviation
                )
            if isinstance(module, nn.Linear):
                module.bias.zero_()
            if isinstance(module, nn.LayerNorm):
                module.weight.fill_(1.0)
                module.bias.zero_()

    def forward(
        self,
        input_ids: Tensor,
        segment_ids: Tensor,
        position_ids: Tensor,
        cu_seqlens: Tensor,
        max_seqlen: int,
        masked_lm_positions: Tensor,
        masked_lm_ids: Tensor,
        next_sentence_labels: Tensor | None = None,
        predict: bool = False,
    ) -> PreTrainingOutput:
        """Score one micro batch.

        Args:
            input_ids: int64 [T], the real tokens of all rows, already masked.
            segment_ids: int64 [T].
            position_ids: int64 [T].
            cu_seqlens: int32 [B + 1], where each row starts; ends with T.
            max_seqlen: length of the longest row.
            masked_lm_positions: int64 [M], indices into T; M may be 0.
            masked_lm_ids: int64 [M], the original token ids; -100 = a filler without loss.
            next_sentence_labels: int64 [B], 1 = random; -100 = a filler without loss; None = no
                next-sentence loss.
            predict: return the most likely token ids instead of the masked-LM loss.

        Returns:
            Sums. Every parameter gets a gradient from their sum, even if it is zero.
        """
        arrangement = arrange(cu_seqlens, max_seqlen, self.bert.encoder.kernel())
        ids = (arrangement.take_tokens(t) for t in (input_ids, segment_ids, position_ids))
        masked_M = arrangement.find_tokens(masked_lm_positions)
        # An empty filler row begins after the last token; its label shows that it is not a row.
        starts_B = arrangement.layout.cu_seqlens[:-1].clamp_max(input_ids.shape[0] - 1)
        # The last layer computes only the tokens that a loss reads: masked ones, and the first of
        # each row.
        read = masked_M if self.bert.pooler is None else torch.cat([masked_M, starts_B])
        hidden_RH = self.bert(*ids, arrangement.layout, read)
        masked_MH, first_BH = hidden_RH.tensor_split([masked_M.numel()])
        mlm_loss_sum, mlm_correct, predictions = score_words(
            self.cls.predictions, masked_MH, masked_lm_ids, predict=predict
        )
        pooler, head = self.bert.pooler, self.cls.seq_relationship
        if pooler is None or head is None:
            no_loss, no_rows = nothing(masked_MH)
            return PreTrainingOutput(mlm_loss_sum, no_loss, mlm_correct, no_rows, predictions)
        logits_B2 = head(pooler(first_BH)).float()
        if next_sentence_labels is None:
            # Kept in the graph, because ZeRO expects a gradient of each parameter in each step.
            nsp_loss_sum, nsp_correct = logits_B2.sum() * 0.0, torch.zeros_like(mlm_correct)
        else:
            labels_B = arrangement.take_rows(next_sentence_labels)
            nsp_loss_sum = F.cross_entropy(logits_B2, labels_B, reduction="sum")
            nsp_correct = (logits_B2.argmax(1) == labels_B).sum()
        return PreTrainingOutput(mlm_loss_sum, nsp_loss_sum, mlm_correct, nsp_correct, predictions)

    def encoder_layers(self) -> nn.ModuleList:
        """Return the layers of the encoder."""
        return self.bert.encoder.layer

    def encode(
        self,
        input_ids: Tensor,
        segment_ids: Tensor,
        position_ids: Tensor,
        cu_seqlens: Tensor,
        max_seqlen: int,
    ) -> tuple[Tensor, Tensor | None]:
        """Return hidden states [T, H] and pooled rows [B, H], see ``BertModel.encode``."""
        return self.bert.encode(input_ids, segment_ids, position_ids, cu_seqlens, max_seqlen)

    def logits(
        self,
        input_ids: Tensor,
        segment_ids: Tensor,
        position_ids: Tensor,
        cu_seqlens: Tensor,
        max_seqlen: int,
        positions: Tensor,
    ) -> tuple[Tensor, Tensor | None]:
        """Return masked-LM logits [M, K] at ``positions`` and next-sentence logits [B, 2]."""
        hidden_TH, pooled_BH = self.encode(
            input_ids, segment_ids, position_ids, cu_seqlens, max_seqlen
        )
        mlm_logits_MK = self.cls.predictions(hidden_TH.index_select(0, positions))
        if self.cls.seq_relationship is None:
            return mlm_logits_MK, None
        return mlm_logits_MK, self.cls.seq_relationship(pooled_BH)
