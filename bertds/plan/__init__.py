"""``bertds plan``: memory, time, energy, cost and disk of a run, before it starts.

``forecast.py`` puts the formulas of cost_model together, ``calibration.py`` measures a run to
scale them, ``sweep.py`` compares layouts, ``present.py`` prints. No torch.

Read first: ``forecast.py``.
"""
