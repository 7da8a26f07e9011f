"""The pieces that ``bertds/train.py`` is made of.

``build.py`` makes them, ``run.py`` is what the loop calls, ``run_folder.py`` what a run writes,
``starting_point.py`` where it starts or resumes, ``bad_step_guard.py`` skips bad gradients,
``auto_micro_batch.py`` finds the largest micro batch that fits, ``nemo/`` translates NeMo's
files. It may import everything to its left.

Read first: ``bertds/train.py``, then ``build.py``.
"""
