"""The report of a run: its headline, one page of HTML that needs nothing else, and tables for `dvc plots`."""
