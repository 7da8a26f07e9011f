"""NeMo's BERT pre-training configurations, translated.

``keys.py`` takes each key of the foreign file once, ``data_keys.py`` maps its data and tokenizer,
``translate.py`` the rest, ``write.py`` writes the recipe and the DeepSpeed JSON.

May import: what training may.

Read first: ``translate.py``.
"""
