"""Reward models trained on rankings of several responses."""
