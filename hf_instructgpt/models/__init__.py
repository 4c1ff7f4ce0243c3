"""Models: loading, copies, forward passes, checks. Knows no algorithm."""
