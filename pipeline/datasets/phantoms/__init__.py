"""Synthetic patients for the demo."""

MAX_PATIENTS = 9_999  # as many as there are ids of the form RP-0042
