"""Fine-tuning: task files, features, a small training loop, scores, predictions.

``tasks.py`` lists the tasks and ``task_kinds.py`` their kinds. ``load.py`` finds the files of a
task, and ``readers/`` reads them. ``trials.py`` tries each learning rate and seed with ``loop.py``.
``predictor.py`` is ``bertds predict``. It may import training and what is to its left.

Read first: ``tasks.py``.
"""
