"""Experiments that run stages many times: over-optimisation, the arena and rounds."""
