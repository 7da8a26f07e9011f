"""Pages and numbers for people: HTML without anything fetched, counts and times in words.

Both reports use it, bertds' and data_prep's. It may import errors and system.

Read first: ``html_page.py``.
"""
