"""``bertds doctor``: is this machine, or a job's every node, fit to train?

``machine.py`` checks this one, ``node.py`` reports from each node of a job, ``verdict.py``
compares the reports and names the odd node.

Read first: ``machine.py``.
"""
