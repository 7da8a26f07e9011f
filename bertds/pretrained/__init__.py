"""Pre-trained models in other formats: Hugging Face, NVIDIA DLE, TensorFlow, Megatron, NeMo.

``load.py`` opens a run or a folder, ``open_any.py`` any other format, ``hf_config.py`` and
``hf_weights.py`` translate, ``export.py`` writes a Hugging Face folder with its model card,
``foreign/`` has the readers of other frameworks. No code of a model is ever run. It may import
monitor and what is to its left.

Read first: ``load.py``.
"""
