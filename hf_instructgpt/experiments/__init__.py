"""Experiments that run stages many times: over-optimisation and the arena."""
