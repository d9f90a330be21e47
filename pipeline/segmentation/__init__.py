"""Segmentation from cached patch tokens: masks, heads, scores. Imports no backbone."""
