"""From wikitext to prose: the names of each wiki, its templates, and a pass for each markup.

``extract.py`` calls the passes in order. ``names.json`` is written by ``generate_names.py``;
``templates.yaml`` and ``sections.yaml`` are kept by hand, and are where a language is added.

Read first: ``extract.py``.
"""
