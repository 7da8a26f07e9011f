"""The only package that imports DeepSpeed.

``wrap.py`` starts the processes and wraps a model; ``deepspeed_engine.py`` drives one step;
``updates.py`` makes the update at the end of the step, or skips it; ``ds_config.py`` reads the JSON
and refuses unknown keys; ``zero_layout.py`` finds each parameter in ZeRO's partitions, and
``state_pieces.py`` gives weights and moments by name and flat position. The others see
``interface.py``.

Read first: ``interface.py``.
"""
