"""What preparation reports: ``report.html``, the manifest's counts, single rows.

``statistics.py`` reads the shards, ``bins.py`` bins them, ``page.py`` writes, ``counts.py``
sums up, ``show_rows.py`` prints rows.

Read first: ``page.py``.
"""
