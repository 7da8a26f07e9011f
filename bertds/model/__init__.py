"""The model: BERT for pre-training on a flat row of real tokens (see ``bert.py``)."""
