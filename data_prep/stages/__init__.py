"""The stages of preparation, each a task for worker processes with a marker when it is done.

``vocabulary.py`` trains a vocabulary, ``tokenise.py`` writes part files, ``near_duplicates.py``
links documents, ``shuffle.py`` gathers shards by hash, ``instances.py`` writes NVIDIA's rows. A
killed run does again what has no valid marker (``markers.py``).

Read first: ``tokenise.py``.
"""
