"""The stack of encoder layers.

Sizes: T tokens, H width.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from bertds.config.recipe import ModelConfig
from bertds.model.attention import Attention, Joined, SublayerOutput
from bertds.model.attention_kernels import kernel_of_pass
from bertds.model.row_layout import RowLayout

GELU_FORMS = {"gelu": "none", "gelu_new": "tanh"}
"""``model.hidden_act`` -> torch's name of the form: exact (erf), or the tanh approximation."""


class Gelu(nn.Module):
    """GELU, in the form that ``model.hidden_act`` names."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        self.approximate = GELU_FORMS[kind]

    def forward(self, values: Tensor) -> Tensor:
        """Apply it to each element."""
        return F.gelu(values, approximate=self.approximate)


class Intermediate(nn.Module):
    """The widening linear layer and its GELU."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.dense = nn.Linear(config.hidden_size, config.intermediate_size)
        self.activation = Gelu(config.hidden_act)

    def forward(self, hidden_TH: Tensor) -> Tensor:
        """Return [T, intermediate size]."""
        return self.activation(self.dense(hidden_TH))


class EncoderLayer(nn.Module):
    """Attention and feed-forward, each with LayerNorm after the residual sum (post-LN)."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.attention = Attention(config)
        self.intermediate = Intermediate(config)
        self.output = SublayerOutput(config.intermediate_size, config)

    def forward(self, hidden_TH: Tensor, layout: RowLayout, read: Tensor | None = None) -> Tensor:
        """Return [T, H], or [R, H] for the tokens in ``read``, int64 [R]."""
        output_TH = self.compute(hidden_TH, layout, self.attention.self.joined())
        return output_TH if read is None else output_TH.index_select(0, read)

    def compute(self, hidden_TH: Tensor, layout: RowLayout, joined: Joined | None) -> Tensor:
        """Return both halves' output, [T, H]; ``joined``: see ``SelfAttention.forward``."""
        return self.feed_forward(self.attention(hidden_TH, layout, joined))

    def feed_forward(self, attended_TH: Tensor) -> Tensor:
        """Return the second half's output, [T, H]."""
        return self.output(self.intermediate(attended_TH), attended_TH)


class Encoder(nn.Module):
    """All layers; each is recomputed in the backward pass if the configuration asks for it."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.recompute = config.activation_checkpointing == "full"
        self.head_width = config.hidden_size // config.num_attention_heads
        self.attention_kernel: str = config.attention_kernel
        self.layer = nn.ModuleList(EncoderLayer(config) for _ in range(config.num_hidden_layers))
        self.draw_keys: Callable[[torch.device], tuple[Tensor, ...]] | None = None
        """Draws the dropout keys of all layers at once; None = each layer draws its own masks."""

    def kernel(self) -> str:
        """Return the attention kernel of this forward pass; called once per pass."""
        return kernel_of_pass(self.attention_kernel, next(self.parameters()), self.head_width)

    def forward(self, hidden_TH: Tensor, layout: RowLayout, read: Tensor | None = None) -> Tensor:
        """Return the last layer's output.

        Args:
            hidden_TH: the embeddings' output.
            layout: the position of each row.
            read: int64 [R], the tokens whose output is needed; None = all.

        Returns:
            [R, H] in the order of ``read``, or [T, H].
        """
        if self.draw_keys is not None and self.training:
            layout = dataclasses.replace(layout, keys=self.draw_keys(hidden_TH.device))
        last = len(self.layer) - 1
        for number, layer in enumerate(self.layer):
            # Attention needs all tokens of every layer's input, so only the last layer can skip
            # some.
            wanted = read if number == last else None
            if self.recompute and self.training:
                hidden_TH = checkpoint(layer, hidden_TH, layout, wanted, use_reentrant=False)
            else:
                hidden_TH = layer(hidden_TH, layout, wanted)
        return hidden_TH
