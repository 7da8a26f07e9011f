"""Triton kernels of the model on a GPU: what is computed between the matrix products.

Read ``add_norm.py`` first: dropout, residual sum and LayerNorm, and the hash behind dropout.
``column_sums.py`` has GELU's gradient and the sums over tokens, ``short_rows.py`` attention within
rows of at most 128 tokens, ``cross_entropy.py`` the masked-LM loss. They are called by
``fused_layer.py`` and ``losses.py``.

May import: each other. Needs Triton, so nothing imports it before a GPU is known to be there.
"""
