"""The stages of the pipeline, one file each: read artifacts, call the library, write artifacts.

A stage is a function of the project's root and its params. It writes only the outputs that dvc.yaml names for it, each
atomically, and can be run by DVC, by the command line or from Python.
"""
