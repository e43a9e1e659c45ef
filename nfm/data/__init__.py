"""Data sets by name, and the shards of uint8 images that training and evaluation read."""
