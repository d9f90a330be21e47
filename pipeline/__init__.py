"""radprobe's two flows: extract features once, then answer questions from the cache."""
