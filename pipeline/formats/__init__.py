"""What a file of each format says and holds; `pipeline.read` is the one door."""
