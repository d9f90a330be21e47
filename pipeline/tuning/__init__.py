"""A network trained further on the images of a task. Part of `tune`."""
