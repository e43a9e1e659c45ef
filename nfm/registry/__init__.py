"""Published students: versions of registered models in MLflow, with aliases that say which one is served."""
