"""PPO for any causal language model: the maths, the configuration, the rollout and the trainer."""
