"""Pages, charts and numbers for people.

``html_page.py`` renders the Jinja2 templates in ``templates/``, ``charts.py`` draws curves with
matplotlib and bars with a template, ``theme.py`` has the colours of both, ``words.py`` writes
counts and times. Both reports use them: bertds' and data_prep's. A page holds everything inside it
and fetches nothing.

May import: errors, system.

Read first: ``html_page.py``.
"""
