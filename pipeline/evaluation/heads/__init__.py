"""What learns from features: neighbours, linear probes, few-shot episodes."""
