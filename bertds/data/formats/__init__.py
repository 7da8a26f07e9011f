"""Files of training data: token shards, NVIDIA's HDF5, plain text, and the manifest.

``token_shards.py`` writes and maps token shards, ``manifest.py`` describes a prepared folder.
``nvidia_hdf5.py`` and ``padded_columns.py`` have NVIDIA's layout, ``plain_text.py`` tokenizes a
text file in memory. ``hdf5_files.py`` opens HDF5 files of unknown origin safely.

Read first: ``token_shards.py``.
"""
