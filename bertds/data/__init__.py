"""From shards on disk to the micro batches of a step.

``formats/`` reads and writes files, ``samples/`` cuts pairs and draws masks, ``sources/`` joins
both into something with numbered samples. ``order.py``, ``batches.py`` and ``loader.py`` decide
which sample comes when. Order and masks are pure functions of the seed, so nothing about them is
saved. It may import errors, system, display and config; it knows neither model nor optim, and only
``batches.py`` imports torch.

Read first: ``loader.py``.
"""
