"""Scoring: responses to numbers, by reward models and reward functions."""
