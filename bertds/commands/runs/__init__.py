"""The commands that read what a run has saved; none of them trains.

``status``, ``watch`` and ``report`` say how it goes. ``checkpoint`` lists, verifies and converts
what it saved. ``inspect_rows`` (``bertds inspect``) prints the rows that it trained on.

They may import what the other commands may. Read first: ``report.py``, a short one.
"""
