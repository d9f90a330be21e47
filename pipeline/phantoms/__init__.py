"""Synthetic patients for the demo."""
