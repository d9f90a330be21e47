"""File formats: what a file of each says and holds.

`registry` has them all; `pipeline.io.decode` is the one door to them.
"""
