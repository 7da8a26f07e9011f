"""Selection of documents: quality rules, languages, test sets, near-duplicates, mixing.

``filters.py`` applies the rules in turn; each rule is a function of one text. ``drop_log.py``
records what was dropped and why. The package may import sources and the packages before them.

Read first: ``filters.py``.
"""
