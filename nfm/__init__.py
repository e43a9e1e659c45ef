"""Normalized Flow Matching: fast image generators distilled from the coupling of a normalizing flow."""

__version__ = "0.1.0"
