"""Files to slices, in processes that can be killed."""
