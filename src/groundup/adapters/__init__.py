"""Adapters: small trained changes to a frozen model; one method, one file, its name the recipe's name.

A file exports `Config`, `VERSION`, `wrap(network, config, …) -> network`, `merge(network) -> network`,
`trainable(network)` and `check_merge(before, after)`. What the methods have in common is in `_low_rank.py`;
the layer itself is `groundup.nn.adapted`, and `checkpoints/peft.py` writes and reads the published layout.
"""
