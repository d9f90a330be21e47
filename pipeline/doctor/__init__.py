"""What a machine can do: what is missing on it, how fast it is, how far its numbers drift."""
