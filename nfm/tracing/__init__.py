"""From a commit, a run, a model or a file to all that it hangs on: git, DVC, Prefect, MLflow, the published model."""
