"""``bertds pipeline``: prepare, train, export, evaluate, complete held-out sentences.

``stages.py`` has the stages, ``launch.py`` starts the ranks and waits, ``facts.py`` writes the
demo's text, ``questions.py`` asks the trained model, ``summary.py`` says how it went. It alone,
with commands, may import both data_prep and bertds' tools.

Read first: ``stages.py``.
"""
