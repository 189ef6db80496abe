"""Paired comparisons of ways to train, from a file that says what to compare."""
