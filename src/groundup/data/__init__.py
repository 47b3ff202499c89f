"""Data on its way to a model: sources, corpora, shards, packing, order, loading."""
