"""MLflow runs this file, under a name of its own, when it loads a published model."""

if __name__ != "nfm.serving.entry":  # a plain import must work without mlflow
    from nfm.registry.pyfunc import set_model
    from nfm.serving.answer import answer
    from nfm.serving.sampler import load_published

    set_model(load_published, answer)
