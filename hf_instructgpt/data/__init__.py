"""Sample data, its judge, and the reading and checking of users' data. Importing this imports no torch or datasets."""

from .lab_judge import LABS, Judgement, gold_reward, gold_rewards, judge
from .loading import SAMPLE_DATASETS, load_sample_dataset

__all__ = ["LABS", "SAMPLE_DATASETS", "Judgement", "gold_reward", "gold_rewards", "judge", "load_sample_dataset"]
