"""Studies of the features themselves: speed, precision, stability, compression."""
