"""From units and cached features to scores: splits, leakage, heads, metrics, results on file."""
