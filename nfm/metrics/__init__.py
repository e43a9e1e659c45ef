"""Measures of samples and of the paths to them."""
