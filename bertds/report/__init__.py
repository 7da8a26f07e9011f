"""``bertds report``: a self-contained HTML page on one or more runs.

``run_view.py`` reads the runs, ``curves.py`` draws, ``page.py`` builds the page, ``write.py``
writes it, and ``live.py`` serves it.

Read first: ``write.py``.
"""
