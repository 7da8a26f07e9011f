"""What is known of a run while it continues and after: metrics, MFU, health, time left.

``metrics.py`` writes ``metrics.jsonl``, ``run_files.py`` reads what run folders hold,
``health.py`` says what looks wrong, ``status.py`` sums a run up, ``trackers.py`` feeds wandb and
TensorBoard. It may import checkpoint and what is to its left.

Read first: ``metrics.py``.
"""
