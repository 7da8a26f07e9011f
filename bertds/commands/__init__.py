"""One short file for each ``bertds NAME``: arguments, ``main(argv) -> int``, printing.

The work of a command is in the package of its subject. ``bertds/cli.py`` lists the names. The
commands that only read a run are in ``runs/``. Its ``inspect_rows.py`` is ``bertds inspect``: a
module must not have the name of one in the standard library. ``bertds prep`` is
``data_prep/build_wiki_books.py``. Commands may import everything except ``cli``.

Read first: ``export.py``, which is short.
"""
