"""Which documents enter: quality rules, languages, test sets, near-duplicates, mixing.

``filters.py`` asks the rules in turn; each rule is a function of one text. ``drop_log.py`` keeps
what was dropped and why. It may import sources and what is to its left.

Read first: ``filters.py``.
"""
