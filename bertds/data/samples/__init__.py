"""From documents to rows: pairs of segments, truncation, masks.

``pairing.py`` chooses the sentences of segments A and B, ``masking.py`` the masked positions, and
``flat_rows.py`` makes rows of both. Their loops are compiled by numba in ``kernels.py``.

Read first: ``pairing.py``.
"""
