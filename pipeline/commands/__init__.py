"""The commands of `radprobe`, a module for each group."""
