"""Processes that read files and can be killed."""
