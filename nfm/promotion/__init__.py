"""Whether a retrained student becomes champion: watched data, drift, judging, guards, records."""
