"""The commands that read what a run has saved; none of them trains.

``status``, ``watch`` and ``report`` show the progress of a run. ``checkpoint`` lists, verifies and
converts its checkpoints. ``inspect_rows`` (``bertds inspect``) prints the rows it was trained on.

They may import what the other commands may. Read first: ``report.py``, which is short.
"""
