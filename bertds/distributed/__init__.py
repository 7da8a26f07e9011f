"""Communication among ranks: who they are, how they connect, which are alive, when all stop.

``rank_info.py`` reads the launcher's variables, ``rendezvous.py`` names ranks that do not connect,
``heartbeat.py`` notices dead and frozen ones, ``step_sync.py`` is the small all-reduce of each
step, ``stop_requests.py`` turns signals, time limits and the file ``STOP`` into one decision. It
may import what is to the left of engine.

Read first: ``step_sync.py``.
"""
