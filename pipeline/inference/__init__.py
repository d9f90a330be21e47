"""Batches through a network on a device."""
