"""The modern encoder (ModernBERT, arXiv:2412.13663) on a flat row of real tokens.

    ids [T] -> embeddings -> layers [T, H] -> LayerNorm -> masked positions [M, H] -> loss (sum)

Differences from ``bert.py``: LayerNorm before each half of a layer instead of after it; rotary
positions instead of position embeddings; no segments; a gated feed-forward layer (GeGLU); no biases
except the vocabulary's; only every third layer attends to the whole row, the others to a window.
There is no next-sentence head.

Parameters are named as in transformers' ``ModernBertForMaskedLM``. As there, the first layer has
no LayerNorm before attention, because it would follow that of the embeddings.

Sizes: T real tokens of the micro batch, B rows, M masked tokens, H width, I feed-forward width,
K vocabulary.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from bertds.config.padded_vocabulary import padded_vocabulary
from bertds.config.recipe import ModelConfig
from bertds.model.attention_kernels import attend, kernel_of_pass
from bertds.model.batch_calls import TakesBatches
from bertds.model.bert import PreTrainingOutput, nothing, score_words
from bertds.model.dropout import dropout, dropout_add
from bertds.model.embeddings import Rotation, rotate, rotation
from bertds.model.encoder import Gelu
from bertds.model.heads import Decoder, WordScores
from bertds.model.row_layout import RowLayout, arrange


def layer_norm(config: ModelConfig) -> nn.LayerNorm:
    """Return a LayerNorm without a bias."""
    return nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps, bias=False)


class ModernEmbeddings(nn.Module):
    """Words, LayerNorm, dropout. transformers' ``model.embeddings``."""

    def __init__(self, config: ModelConfig, vocab_size: int) -> None:
        super().__init__()
        self.dropout_p = config.hidden_dropout_prob
        self.tok_embeddings = nn.Embedding(padded_vocabulary(vocab_size), config.hidden_size)
        self.norm = layer_norm(config)

    def forward(self, input_ids_T: Tensor) -> Tensor:
        """Return [T, H]."""
        return dropout(self.norm(self.tok_embeddings(input_ids_T)), self.dropout_p, self.training)


class ModernAttention(nn.Module):
    """Queries, keys and values in one product, rotated by position, then attention."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.heads = config.num_attention_heads
        self.dropout_p = config.attention_probs_dropout_prob
        self.Wqkv = nn.Linear(config.hidden_size, 3 * config.hidden_size, bias=False)
        self.Wo = nn.Linear(config.hidden_size, config.hidden_size, bias=False)

    def project(self, hidden_TH: Tensor, turn: Rotation) -> tuple[Tensor, Tensor, Tensor]:
        """Return rotated queries and keys, and values: each [T, N, D]."""
        query, key, value = self.Wqkv(hidden_TH).unflatten(-1, (3, self.heads, -1)).unbind(1)
        return rotate(query, turn), rotate(key, turn), value


class ModernMLP(nn.Module):
    """GeGLU (arXiv:2002.05202): one half of the widened values gates the other."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.dropout_p = config.hidden_dropout_prob
        self.Wi = nn.Linear(config.hidden_size, 2 * config.intermediate_size, bias=False)
        self.activation = Gelu(config.hidden_act)
        self.Wo = nn.Linear(config.intermediate_size, config.hidden_size, bias=False)

    def forward(self, hidden_TH: Tensor) -> Tensor:
        """Return [T, H]."""
        values_TI, gate_TI = self.Wi(hidden_TH).chunk(2, dim=-1)
        gated_TI = self.activation(values_TI) * gate_TI
        return self.Wo(dropout(gated_TI, self.dropout_p, self.training))


class ModernLayer(nn.Module):
    """Attention and feed-forward, each with LayerNorm before it and a residual sum (pre-LN).

    Args:
        config: sizes.
        number: from 0; decides whether there is an ``attn_norm``, and the width of the window.
    """

    def __init__(self, config: ModelConfig, number: int) -> None:
        super().__init__()
        self.is_global = number % config.global_attn_every_n_layers == 0
        self.reach = None if self.is_global else config.local_attention // 2
        self.attn_norm = layer_norm(config) if number else nn.Identity()
        self.attn = ModernAttention(config)
        self.mlp_norm = layer_norm(config)
        self.mlp = ModernMLP(config)

    def forward(self, hidden_TH: Tensor, layout: RowLayout, turn: Rotation) -> Tensor:
        """Return [T, H]; ``compile_layers`` replaces this method, and compiles :meth:`compute`."""
        return self.compute(hidden_TH, layout, turn)

    def compute(self, hidden_TH: Tensor, layout: RowLayout, turn: Rotation) -> Tensor:
        """Return both halves' output, [T, H]."""
        dropout_p = self.attn.dropout_p if self.training else 0.0
        parts = self.project(hidden_TH, turn)
        context_TH = attend(*parts, layout, dropout_p, self.reach).flatten(1)
        return self.feed_forward(context_TH, hidden_TH)

    def project(self, hidden_TH: Tensor, turn: Rotation) -> tuple[Tensor, Tensor, Tensor]:
        """Return the inputs of attention: LayerNorm, one product, rotation; each [T, N, D]."""
        return self.attn.project(self.attn_norm(hidden_TH), turn)

    def feed_forward(self, context_TH: Tensor, hidden_TH: Tensor) -> Tensor:
        """Return the rest of the layer, [T, H]: the end of attention and the second half."""
        # transformers applies attention's dropout probability to its output too.
        attended_TH = dropout_add(
            self.attn.Wo(context_TH), hidden_TH, self.attn.dropout_p, self.training
        )
        return attended_TH + self.mlp(self.mlp_norm(attended_TH))


class ModernBertModel(nn.Module):
    """Embeddings, layers, final LayerNorm. transformers' ``model``."""

    def __init__(self, config: ModelConfig, vocab_size: int) -> None:
        super().__init__()
        self.head_width = config.hidden_size // config.num_attention_heads
        self.thetas = {True: config.global_rope_theta, False: config.local_rope_theta}
        self.recompute = config.activation_checkpointing == "full"
        self.attention_kernel: str = config.attention_kernel
        self.embeddings = ModernEmbeddings(config, vocab_size)
        self.layers = nn.ModuleList(
            ModernLayer(config, number) for number in range(config.num_hidden_layers)
        )
        self.final_norm = layer_norm(config)

    def kernel(self) -> str:
        """Return the attention kernel of this forward pass; called once per pass."""
        return kernel_of_pass(self.attention_kernel, next(self.parameters()), self.head_width)

    def forward(self, input_ids_T: Tensor, position_ids_T: Tensor, layout: RowLayout) -> Tensor:
        """Return hidden states [T, H] of tokens in the layout's order."""
        # One rotation for all global layers and one for all local ones.
        turns = {
            is_global: rotation(position_ids_T, self.head_width, theta)
            for is_global, theta in self.thetas.items()
        }
        hidden_TH = self.embeddings(input_ids_T)
        for layer in self.layers:
            turn = turns[bool(layer.is_global)]
            if self.recompute and self.training:
                hidden_TH = checkpoint(layer, hidden_TH, layout, turn, use_reentrant=False)
            else:
                hidden_TH = layer(hidden_TH, layout, turn)
        return self.final_norm(hidden_TH)


class ModernHead(nn.Module):
    """Linear layer, GELU and LayerNorm before the vocabulary. transformers' ``head``."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.dense = nn.Linear(config.hidden_size, config.hidden_size, bias=False)
        self.activation = Gelu(config.hidden_act)
        self.norm = layer_norm(config)

    def forward(self, hidden_MH: Tensor) -> Tensor:
        """Return [M, H]."""
        return self.norm(self.activation(self.dense(hidden_MH)))


class ModernBertForMaskedLM(TakesBatches):
    """The modern encoder with its masked-LM head; same arguments and result as BERT.

    The word embeddings and the vocabulary's bias have more rows than the vocabulary, see
    ``padded_vocabulary``; these rows are zero and remain zero.
    """

    def __init__(self, config: ModelConfig, vocab_size: int) -> None:
        super().__init__()
        self.config = config
        self.vocab_size = vocab_size
        self.model = ModernBertModel(config, vocab_size)
        self.head = ModernHead(config)
        word_table = self.model.embeddings.tok_embeddings.weight
        assert isinstance(word_table, nn.Parameter)
        bias = nn.Parameter(torch.zeros(padded_vocabulary(vocab_size)))
        self.decoder = Decoder(word_table, bias, vocab_size, config.z_loss)
        self.initialise()

    @torch.no_grad()
    def initialise(self) -> None:
        """Initialize all weights as transformers does: N(0, deviation) truncated at 2 deviations.

        Layers that write to the residual stream, and the head, start smaller by sqrt(2 L), so that
        the variance of the stream does not grow with the number of layers L.
        """
        base = self.config.initializer_range
        small = base / math.sqrt(2.0 * self.config.num_hidden_layers)
        table = self.model.embeddings.tok_embeddings.weight
        table[self.vocab_size :].zero_()
        self.decoder.bias.zero_()
        # Only the rows of real words: the random numbers must not depend on the padding.
        nn.init.trunc_normal_(table[: self.vocab_size], std=base, a=-2 * base, b=2 * base)
        for name, module in self.named_modules():
            if isinstance(module, nn.Linear):
                deviation = small if name.endswith((".Wo", "head.dense")) else base
                nn.init.trunc_normal_(
                    module.weight, std=deviation, a=-2 * deviation, b=2 * deviation
                )
            if isinstance(module, nn.LayerNorm):
                module.weight.fill_(1.0)

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
        """Score one micro batch; arguments and result as in ``BertForPreTraining.forward``.

        ``segment_ids`` and ``next_sentence_labels`` are accepted, because the loader passes them,
        but not used.
        """
        masked_MH = self.hidden_at(
            input_ids, position_ids, cu_seqlens, max_seqlen, masked_lm_positions
        )
        loss_sum, correct, predictions = score_words(
            self.score, masked_MH, masked_lm_ids, predict=predict
        )
        no_loss, no_rows = nothing(masked_MH)
        return PreTrainingOutput(loss_sum, no_loss, correct, no_rows, predictions)

    def score(self, hidden_MH: Tensor, labels_M: Tensor | None = None) -> WordScores:
        """Return logits [M, K], or with labels the summed loss and the number of correct ones."""
        return self.decoder(self.head(hidden_MH), labels_M)

    def encoder_layers(self) -> nn.ModuleList:
        """Return the layers of the encoder."""
        return self.model.layers

    def hidden_at(
        self,
        input_ids: Tensor,
        position_ids: Tensor,
        cu_seqlens: Tensor,
        max_seqlen: int,
        positions: Tensor,
    ) -> Tensor:
        """Return the encoder's output [M, H] at ``positions``, indices into T."""
        arrangement = arrange(cu_seqlens, max_seqlen, self.model.kernel())
        ids, places = (arrangement.take_tokens(t) for t in (input_ids, position_ids))
        hidden_TH = self.model(ids, places, arrangement.layout)
        return hidden_TH.index_select(0, arrangement.find_tokens(positions))

    def logits(
        self,
        input_ids: Tensor,
        segment_ids: Tensor,
        position_ids: Tensor,
        cu_seqlens: Tensor,
        max_seqlen: int,
        positions: Tensor,
    ) -> tuple[Tensor, Tensor | None]:
        """Return masked-LM logits [M, K] at ``positions``; the second is always None."""
        hidden_MH = self.hidden_at(input_ids, position_ids, cu_seqlens, max_seqlen, positions)
        return self.decoder(self.head(hidden_MH)), None
