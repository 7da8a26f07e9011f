"""``bertds report``: one page on one or several runs, with its pictures inside.

``run_view.py`` reads the runs, ``curves.py`` draws, ``page.py`` writes the HTML, ``write.py``
puts all on disk.

Read first: ``write.py``.
"""
