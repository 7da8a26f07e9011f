"""``bertds pipeline``: prepare, train both phases, export, evaluate.

``stages.py`` has the stages, ``launch.py`` starts the ranks and waits, ``summary.py`` prints the
closing table. It alone, beside commands, may import both data_prep and bertds' tools.

Read first: ``stages.py``.
"""
