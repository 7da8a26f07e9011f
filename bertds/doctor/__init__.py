"""``bertds doctor``: is this machine, or each node of a job, fit to train?

``machine.py`` checks this machine, ``node.py`` reports from each node of a job, ``verdict.py``
compares the reports and names bad nodes.

Read first: ``machine.py``.
"""
