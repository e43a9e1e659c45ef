"""The servers around the pipeline: their credentials, the stack without containers, checks, backups.

Talks to servers over HTTP or by their own commands; knows neither prefect nor mlflow as libraries.
"""
