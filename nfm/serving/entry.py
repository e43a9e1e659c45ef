"""MLflow runs this file, under a name of its own, when it loads a published model."""

import sys
from pathlib import Path

if __name__ != "nfm.serving.entry":  # a plain import must work without mlflow
    # Where a model was logged its code lies beside this file, packed; in our own package it does not.
    if (code := Path(__file__).parent / "code" / "nfm.zip").is_file():
        sys.path.insert(0, str(code))

    from nfm.registry.pyfunc import set_model
    from nfm.serving.answer import answer
    from nfm.serving.sampler import load_published

    set_model(load_published, answer)
