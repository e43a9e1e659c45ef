"""Couplings: how a pair of data and noise is drawn."""
