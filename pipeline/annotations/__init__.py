"""Labels and masks joined to slices: what extraction, evaluation, segmentation and tuning read."""
