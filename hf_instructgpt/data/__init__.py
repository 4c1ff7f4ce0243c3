"""Sample data sets, their judge and the checks of user data. Importing this imports neither torch nor datasets."""

from .loading import SAMPLE_DATASETS, load_sample_dataset
from .rule_judge import Judgement, gold_reward, gold_rewards, judge

__all__ = ["SAMPLE_DATASETS", "Judgement", "gold_reward", "gold_rewards", "judge", "load_sample_dataset"]
