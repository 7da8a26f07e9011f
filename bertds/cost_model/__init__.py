"""Formulas: the operations, memory, traffic and time of a step on known hardware.

No run and no torch is needed. ``flops.py`` counts operations, ``memory.py`` bytes,
``step_time.py`` seconds; ``hardware.py`` reads the data sheets in ``gpus.yaml``. It may import
config and what is to its left.

Read first: ``flops.py``.
"""
