"""The student: a flow-matching velocity network, its path and its loss."""
