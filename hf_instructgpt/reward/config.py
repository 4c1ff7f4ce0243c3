"""RankingRewardConfig: the options of [`RankingRewardTrainer`] beside TRL's."""

from dataclasses import dataclass

from trl import RewardConfig

from ..options import documented


@documented
@dataclass
class RankingRewardConfig(RewardConfig):
    """Options of [`RankingRewardTrainer`]: TRL's `RewardConfig` and the fields below.

    Raises:
        ValueError: An option is out of its range; the message names it.
    """

    label_noise: float | str | None = 0.0
    """Share of the labelled pairs that are assumed to be the wrong way round, below 0.5. The likelihood of a pair is
    then `(1 - label_noise) sigmoid(d) + label_noise sigmoid(-d)`, where d is the difference of the two scores
    (Christiano et al. 2017, section 2.2.3), so that no single label can pull far. `auto` estimates the share: from the
    agreement of annotators where several of them ranked the same responses, else from a tenth of the training prompts,
    which is held out, before each epoch from the second on (0 in the first)."""
    lm_coef: float = 0.0
    """Weight of a language-modelling loss on the best-ranked responses (Yang et al. 2024, arXiv 2406.10216): the model
    below the score keeps what predicts the next token. The language-modelling head is the start model's and stays as
    it is; the saved reward model is without it."""
    logprob_coef: float = 0.0
    """Weight of a regression of the start model's log-probs: at each token of all responses, a linear map of the last
    hidden state predicts how likely that token was, `mean (w h_t + b - max(log pi(x_t | x_<t), -6))^2`. The model
    below the score then sees what a language model knows to be unlikely, such as a wrong answer. The map is trained
    along; the saved reward model is without it."""

    def __post_init__(self):
        super().__post_init__()
        self._read_label_noise()
        for name in ("lm_coef", "logprob_coef"):
            if not 0 <= getattr(self, name) < float("inf"):
                raise ValueError(f"`{name}` must be 0 or more, not {getattr(self, name)}.")

    def _read_label_noise(self) -> None:
        if self.label_noise == "auto":
            return
        given = self.label_noise
        try:  # a command line gives text
            self.label_noise = float(given or 0.0)
        except (TypeError, ValueError) as error:
            raise ValueError(f"`label_noise` must be a number or `auto`, not {given!r}.") from error
        if not 0 <= self.label_noise < 0.5:
            raise ValueError(f"`label_noise` must be 0 or more and below 0.5, or `auto`, not {given!r}.")
