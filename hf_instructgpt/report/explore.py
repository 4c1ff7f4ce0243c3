"""What the page's section "explorable PPO" reads of a token log, besides the tokens' own numbers."""

NUMBERS, WHITENINGS = ("kl_coef", "gamma", "lam", "cliprange"), ("reward_whitening", "advantage_whitening")
# Not in the logs of earlier versions.
LATER = ("cliprange_high", "dual_clip", "group_scale", "critic_lam", "max_completion_length")


def explorable(row: dict) -> dict:
    """The options and numbers from which the page computes PPO anew; nothing for a row of an earlier version.

    The penalised KL is there only where it is not the log-ratio itself, and the scores of tokens only where they are
    not one score on the last token.
    """
    if "options" not in row:
        return {}
    options = row["options"]
    sum((options[name] for name in NUMBERS), row["rewarded_score"])  # fails unless they are numbers
    for mean, scale in (pair for name in WHITENINGS if (pair := options[name]) is not None):
        float(mean) + float(scale)
    sum(x for name in LATER if (x := options.get(name)) is not None)
    found = {"options": {name: options[name] for name in (*NUMBERS, *WHITENINGS, "advantage_estimator")}}
    found["options"] |= {name: options[name] for name in (*LATER, "loss_aggregation") if name in options}
    found["rewarded_score"] = row["rewarded_score"]
    penalties = [token["kl_penalty"] for token in row["tokens"]]
    if penalties != [token["kl"] for token in row["tokens"]]:
        sum(x for x in penalties if x is not None)
        found["kl_penalty"] = penalties
    scores = [token.get("score", 0.0) for token in row["tokens"]]
    if any(scores[:-1]):
        found["token_scores"] = scores
    return found
