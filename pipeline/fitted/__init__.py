"""From an answer to a model: fitted, filed, asked about new images, tried on other collections."""
