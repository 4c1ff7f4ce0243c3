"""What runs the stages many times: the over-optimisation lab, the arena."""
