"""The reward of this recipe: how positive a story sounds, by VADER's word list and rules."""

try:
    from vaderSentiment.vaderSentiment import SentimentIntensityAnalyzer
except ImportError as error:
    raise ImportError("this reward needs the package vaderSentiment: `pip install vaderSentiment`.") from error

ANALYZER = SentimentIntensityAnalyzer()  # reads its word list once


def sentiment(completions: list[str], **_) -> list[float]:
    """VADER's compound score of each response, from -1 to 1 (Hutto and Gilbert 2014)."""
    return [ANALYZER.polarity_scores(text)["compound"] for text in completions]
