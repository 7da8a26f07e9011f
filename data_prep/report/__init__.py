"""The reports of a preparation: ``report.html``, the counts of the manifest, and single rows.

``statistics.py`` reads the shards, ``bins.py`` makes histograms, ``page.py`` writes the page,
``counts.py`` adds up the counts, ``show_rows.py`` prints rows.

Read first: ``page.py``.
"""
