"""Models: one family, one file; the file's name is the recipe's name.

A file exports `Config` (with `from_hugging_face` and `to_hugging_face`), `VERSION`, `PREFIX` (the
backbone's published name), `build(config)`, `HEADS` (kind of head to a callable of config and backbone
that returns the head's published module), `ARCHITECTURES` (kind of head to transformers' class),
`MODEL_TYPES` (what it opens), `parameters`, `flops_per_token` and `TINY` (sizes for the contract
tests). A model of images or rows of features has `flops_per_example` instead, and its backbone a method
`read` (see `nn/network.py`). Where published tensors are not the module's own, it may export `TRANSPOSED`,
`RENAMED` (beginnings of our names and what is published), `OLD_NAMES`, `NOT_WEIGHTS`, `TIED` and `OPTIONAL`;
`checkpoints/hugging_face.py` reads them.

A family without a published layout writes a config.json whose model_type begins with `groundup_`, which
transformers refuses by that name.

Names that begin with an underscore are no recipe names: `_bridge.py` opens checkpoints of families that
have no file here through transformers.
"""
