"""One thin file per ``bertds NAME``: arguments, ``main(argv) -> int``, printing.

What a command does lives in the package that it is about. ``bertds/cli.py`` lists the names.
The commands that only read a run are in ``runs/``; ``inspect_rows.py`` there is ``bertds inspect``,
since a module may not be called like one of Python's own. ``bertds prep`` is
``data_prep/build_wiki_books.py``.
Commands may import everything but ``cli``.

Read first: ``export.py``, a short one.
"""
