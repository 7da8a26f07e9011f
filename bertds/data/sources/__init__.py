"""Sources of training rows: numbered samples, whatever ``data.path`` contains.

``base.py`` is the interface, ``open.py`` chooses a source. ``token_source.py`` makes new pairs and
masks in every epoch, ``instance_source.py`` reads those that NVIDIA's files contain.

Read first: ``base.py``.
"""
