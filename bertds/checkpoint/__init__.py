"""The format of checkpoints: written, found, verified, merged.

A checkpoint holds weights and moments by parameter name and flat position, so another number of
ranks or another ZeRO stage may read it. ``format.py`` is the format, ``save.py`` writes them and
removes old ones, ``find.py`` finds the newest intact one, ``background.py`` saves while training
continues. It may import engine and what is to its left.

Read first: ``format.py``.
"""
