"""What is known about a run, during and after training: metrics, MFU, health, time left.

``metrics.py`` writes ``metrics.jsonl``, ``run_files.py`` reads what run folders hold,
``health.py`` makes warnings, ``status.py`` summarizes a run, ``trackers.py`` feeds wandb and
TensorBoard. It may import checkpoint and what is to its left.

Read first: ``metrics.py``.
"""
