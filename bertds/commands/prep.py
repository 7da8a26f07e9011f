"""``bertds prep``: the same as ``python data_prep/build_wiki_books.py``."""

from __future__ import annotations

from data_prep.build_wiki_books import main

__all__ = ["main"]
