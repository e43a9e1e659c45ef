"""What kills cost: rounds of the tiny pipeline on the real stack, killed at random moments until they have finished."""
