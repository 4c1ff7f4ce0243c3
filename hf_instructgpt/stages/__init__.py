"""The three stages of the paper as functions and commands: sft, reward, ppo, and all of them as one pipeline."""
