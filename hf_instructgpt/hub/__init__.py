"""At home on the Hub: model cards, and the way a folder gets there."""
