"""Data sets by backbones by settings by seeds: a plan, its cells run in any order, one page."""
