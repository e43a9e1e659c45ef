"""What a check of the doctor's raises."""


class Problem(Exception):
    """Something is wrong: the message says what, and how to mend it."""
