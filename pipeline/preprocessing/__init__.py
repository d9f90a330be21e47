"""Pixels to what a network sees, one pure function a step."""
