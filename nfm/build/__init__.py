"""Config sections to objects: the one place that matches on `kind`.

Below this package nothing knows params.yaml. One file a family, so that a stage depends on just those that it uses.
"""
