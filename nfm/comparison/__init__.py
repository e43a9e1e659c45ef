"""Runs and revisions side by side: their figures in one table, and which differences exceed the noise of seeds."""
