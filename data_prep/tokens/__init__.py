"""From text to sentences and tokens.

``sentences.py`` splits paragraphs. ``wordpiece.py`` makes ids with the compiled loops in
``wordpiece_kernels.py``, whose tables are in ``wordpiece_tables.py``.

Read first: ``wordpiece.py``.
"""
