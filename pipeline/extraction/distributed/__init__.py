"""Parts over processes, shards, dask and SLURM."""
