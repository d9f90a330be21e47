"""What a file of each format says and holds; `pipeline.io.decode` is the one door."""
