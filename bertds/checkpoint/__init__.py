"""The format of checkpoints: written, found, verified, merged.

A checkpoint holds weights and moments by parameter name and flat position, so another number of
ranks or another ZeRO stage may read it. ``format.py`` is the format, ``save.py`` writes and
keeps, ``find.py`` looks for the newest good one, ``background.py`` saves while training continues.
It may import engine and what is to its left.

Read first: ``format.py``.
"""
