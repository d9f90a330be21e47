"""From a folder to a store: discover, read, preprocess, embed, write."""
