"""One thin file per ``bertds NAME``: arguments, ``main(argv) -> int``, printing.

What a command does lives in the package that it is about. ``bertds/cli.py`` lists the names.
``inspect_rows.py`` is ``bertds inspect``: a module may not be called like one of Python's own.
Commands may import everything but ``cli``.

Read first: ``export.py``, a short one.
"""
