"""Sampling: prompts to responses, by `generate`, our own sampler or an inference engine."""
