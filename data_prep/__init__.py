"""From a corpus to training shards; needs no torch.

``build_wiki_books.py`` is the command, and ``prepare.py`` the function behind it. ``request.py``
has all parameters, ``resolve.py`` checks them, and ``run_stages.py`` runs the stages. The packages
are ``sources``, ``wiki``, ``selection``, ``tokens``, ``stages``, ``workers`` and ``report``. From
bertds it may import errors, system, display, data and the row settings in config.

Read first: ``prepare.py``.
"""
