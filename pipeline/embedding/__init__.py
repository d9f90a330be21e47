"""The stages of `embed`: parts on their way, batches through the network, the writer."""
