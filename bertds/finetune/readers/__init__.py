"""Readers of task files: GLUE, CoNLL, SQuAD, users' own files, and datasets on the Hub.

``text.py`` reads TSV, CSV and JSONL, ``conll.py`` tagged words, ``squad.py`` SQuAD's JSON, and
``hub.py`` datasets. ``columns.py`` chooses the columns of a user's own data. Malformed rows are
handled in ``bertds/finetune/records.py``.

Read first: ``text.py``.
"""
