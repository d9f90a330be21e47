"""What people look at: one page of a store and its answers, or of several side by side."""
