"""Orchestration with Prefect: when and where the stages of dvc.yaml run. No maths, no cache."""

import gc
import os

# Both must come before prefect is imported. No usage reports unless asked for; and a garbage
# collector that does not walk prefect's many classes over and over: a sixth of a cached run's time.
os.environ.setdefault("DO_NOT_TRACK", "true")
gc.set_threshold(100_000, 50, 50)
