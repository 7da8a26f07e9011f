"""Every setting of a recipe, once: its type, default, meaning, bounds, and how it is read.

``recipe.py`` and ``run_settings.py`` declare the keys. ``load.py`` turns YAML and ``--set`` into a
checked ``Config``, ``checks.py`` refuses values that cannot work (``ranges.py`` has the range of
each number), ``locate.py`` finds recipes and DeepSpeed JSONs by name or path. ``describe.py`` and
``json_schema.py`` write what ``bertds config`` shows. It may import errors, system and display.

Read first: ``recipe.py``.
"""
