"""Corpora in a store: a bounded cache on this machine, filled ahead of the training.

```text
URL/manifest.json --folder.py--> CACHE/corpora/ID/     manifest and tokenizer, read first
URL/train/shard_00007.h5 --fetch_ahead.py--> CACHE/shards/SHA256.h5   verified, evicted, shared
                           source.py: the same rows as from a local folder
```

``cache.py`` keeps the bound and is shared by all processes of the machine; ``outlines.py`` keeps
the lengths of sentences, from which the order of an epoch follows without the tokens. It talks to
stores through ``bertds/system/storage.py`` alone and is imported only where a path is a URL.

Read first: ``source.py``.
"""
