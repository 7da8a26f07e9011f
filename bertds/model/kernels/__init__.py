"""Triton kernels of the model on a GPU: what is computed between the matrix products.

``add_norm.py`` has dropout, residual sum and LayerNorm, and the hash behind dropout.
``column_sums.py`` has GELU's gradient and the sums over tokens, ``short_rows.py`` attention within
rows of at most 128 tokens (on GPUs with enough shared memory), ``long_rows.py`` attention within
other rows, ``cross_entropy.py`` the masked-LM loss. ``launch.py`` starts them. They are called by
``fused_layer.py`` and ``losses.py``.

May import: each other. The modules need Triton, so nothing imports one before
:func:`kernels_run_on` has allowed it.

Read first: ``add_norm.py``.
"""

from __future__ import annotations

import torch


def kernels_run_on(device_type: str) -> bool:
    """Return whether these kernels run on devices of this type: NVIDIA GPUs with Triton."""
    if device_type != "cuda" or torch.version.cuda is None:
        return False
    from torch.utils._triton import has_triton

    return has_triton()
