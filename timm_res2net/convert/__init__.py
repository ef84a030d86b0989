"""Checkpoints of other projects: state dict in, state dict out. Nothing here knows a model.

`files` reads a file, `find` finds the Res2Net in it, `engine` applies the key rules of `sources`
and undoes them, and `infer` reads a network's arguments off its shapes. See README.md.
"""
