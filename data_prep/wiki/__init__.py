"""Wikitext to prose: the names of each wiki, its templates, and what the passes need to know.

``names.json`` is written by ``generate_names.py``; ``templates.yaml`` and ``sections.yaml`` are
kept by hand, and are where a language is added.
"""
