"""Pages, charts, numbers and times for display.

``html_page.py`` renders the Jinja2 templates in ``templates/``. ``charts.py`` draws curves with
matplotlib, ``bar_charts.py`` bars with a template. ``theme.py`` has the colours of both.
``words.py`` formats counts and times. The reports of bertds and of data_prep use them. A page
contains everything that it shows and loads nothing.

May import: errors, system.

Read first: ``html_page.py``.
"""
