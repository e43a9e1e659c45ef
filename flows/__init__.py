"""Orchestration with Prefect: when and where the stages of dvc.yaml run. No maths, no cache."""

import os

# Read by prefect as it is imported, so this must come first: no usage reports unless asked for.
os.environ.setdefault("DO_NOT_TRACK", "true")
