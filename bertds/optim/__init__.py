"""Optimizers on pieces of tensors, as ZeRO leaves them, and what goes with them.

- ``partition.py``: where the pieces of named tensors are in one flat vector.
- ``lamb.py``: LAMB and its all-reduce; ``lamb_cpu.py`` and ``lamb_triton.py`` are its two passes
  over memory, as compiled loops and as GPU kernels.
- ``muon.py``: Muon for hidden matrices, AdamW for the rest.
- ``gradient_norm.py``: the norm of a gradient, exact on a CPU too, and clipping.
- ``settings.py``: what the DeepSpeed JSON may ask for.
- ``moments.py``, ``state_kinds.py``: the state that all keep; ``weight_decay.py``: what is decayed;
  ``lr_schedule.py``.

May import ``bertds.config``, ``system`` and ``errors``; knows neither models, data nor DeepSpeed.

Read first: ``partition.py``.
"""
