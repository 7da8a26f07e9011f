"""How a program behaves on a machine: files, locks, processes, memory, logs, exit codes.

Nothing here knows of models or training. data_prep uses it too. It imports ``bertds.errors``
alone.

Read first: ``atomic_files.py`` (a file is whole or not there) and ``run_command.py`` (an error is
one line and an exit code). ``folder_lock.py`` lets one process at a time write into a folder,
``shipped_files.py`` knows where recipes and JSONs are in a clone and in a wheel.
"""
