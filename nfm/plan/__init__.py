"""The planner: parameters, FLOPs, bytes and hours of a params file before anything runs."""
