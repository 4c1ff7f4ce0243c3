"""What a training command shows while it runs: on a terminal a live bar for each stage, elsewhere plain lines."""
