"""Who does the work: a pool of processes, and several tasks that share one output folder.

``pool.py`` is this task's processes, ``joint_lock.py`` lets tasks of any hosts join and notices
dead ones, ``team.py`` is the same interface to both.

Read first: ``pool.py``, then ``team.py``.
"""
