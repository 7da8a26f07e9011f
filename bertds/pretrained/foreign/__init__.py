"""Checkpoints of other frameworks: TensorFlow, NeMo, Megatron.

``parameter_names.py`` maps their names to those of transformers, ``tensorflow_reader.py`` reads
TensorFlow's files without TensorFlow, and ``megatron.py`` converts Megatron's BERT, which has
another architecture.

Read first: ``parameter_names.py``.
"""
