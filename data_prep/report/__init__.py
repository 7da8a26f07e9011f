"""What preparation tells: ``report.html``, the manifest's counts, single rows.

``statistics.py`` reads the shards, ``svg_charts.py`` draws, ``page.py`` writes, ``counts.py``
sums up, ``show_rows.py`` prints rows.

Read first: ``page.py``.
"""
