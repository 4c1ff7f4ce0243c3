"""Runs that an accident ends: atomic checkpoints, exact resume, and one run at a time in a folder."""
