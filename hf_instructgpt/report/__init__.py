"""What a run shows a person: plots, samples and the card of the run."""
