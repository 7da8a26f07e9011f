"""The model: BERT, or the modern encoder, for pre-training on a flat row of real tokens.

``encoder.py`` and ``attention.py`` are BERT's layers; ``build.py`` chooses between BERT and
``modern.py``. How attention is computed, and on what, is in ``attention_kernels.py``.
On a GPU a BERT layer is one function, ``fused_layer.py``, over the Triton kernels in ``kernels``.
These make it faster without changing the result: ``compile_layers.py``, ``cuda_graphs.py``,
``dropout.py`` (CPU), ``losses.py``. ``fp8_layers.py`` changes the result a little.

May import: errors, system, display, config. Knows neither the data nor the optimizer.

Read first: ``bert.py``.
"""
