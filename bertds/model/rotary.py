"""Rotary positions (RoFormer, arXiv:2104.09864): queries and keys are turned by where they are.

Sizes: T tokens, N heads, D width of a head.
"""

from __future__ import annotations

import torch
from torch import Tensor

Rotation = tuple[Tensor, Tensor]
"""Cosine and sine of each token's angles, float32 [T, 1, D]."""


def rotation(position_ids_T: Tensor, width: int, theta: float) -> Rotation:
    """Return what turns queries and keys at each position.

    Computed from the positions, so no table bounds the length. In float32 whatever autocast
    says: in bfloat16 neighbouring positions beyond 256 would get the same angle.

    Args:
        position_ids_T: int64 [T], from 0 in each row.
        width: of a head, even.
        theta: base of the wavelengths.
    """
    exponents = torch.arange(0, width, 2, dtype=torch.float32, device=position_ids_T.device)
    inverse = 1.0 / (theta ** (exponents / width))
    half_TD = position_ids_T[:, None].float() * inverse
    angles_T1D = torch.cat((half_TD, half_TD), dim=-1)[:, None, :]
    return angles_T1D.cos(), angles_T1D.sin()


def rotate(values_TND: Tensor, turn: Rotation) -> Tensor:
    """Turn queries or keys; the first half of a head's numbers pairs with the second."""
    cos_T1D, sin_T1D = turn
    wide_TND = values_TND.float()
    first, second = wide_TND.chunk(2, dim=-1)
    turned_TND = wide_TND * cos_T1D + torch.cat((-second, first), dim=-1) * sin_T1D
    return turned_TND.to(values_TND.dtype)
