"""Who does the work: a pool of processes, and several tasks that share one output folder.

``pool.py`` is this task's processes, ``joint_lock.py`` lets tasks of any hosts join and notices
dead ones, ``team.py`` hides which of both is the case.

Read first: ``pool.py``, then ``team.py``.
"""
