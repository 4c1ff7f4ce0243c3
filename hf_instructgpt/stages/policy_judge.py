"""The judge of policies: the rules of the sample data, a Python function, a reward model, or an LLM."""

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Literal

from pydantic import BeforeValidator, PositiveFloat, PositiveInt
from transformers import PreTrainedTokenizerBase

from ..data import LABS
from ..data import judge as lab_judge
from ..evaluation.comparison import Ranker, Rewards
from ..rankings.judges import LLMJudge
from ..sampling.generate import Samples
from ..scoring.reward_functions import as_judge
from .config_file import ConfigFile
from .conversation import load_scorer
from .load_models import resolve_reward

LLM_CACHE = "judge.sqlite"  # an LLM's replies, beside what it judged


class LLMOptions(ConfigFile):
    """An LLM as the judge; see [`LLMJudge`]."""

    base_url: str
    model: str
    api_key_env: str | None = None
    criterion: str | None = None
    lang: Literal["en", "zh"] = "en"
    concurrency: PositiveInt = 8
    timeout: PositiveFloat = 120.0


# The value of `judge` in a config file: a name, or a mapping for an LLM.
JudgeOption = Annotated[
    str | LLMOptions,
    BeforeValidator(lambda judge: LLMOptions.parse(judge, source="judge") if isinstance(judge, dict) else judge),
]


@dataclass
class PolicyJudge:
    """One of three: `rules` or `rewards` score each answer, and `rank` compares two answers."""

    name: str
    rules: Callable | None = None  # of the sample data: they also tell which answers are exactly correct
    rewards: Rewards | None = None  # a function or a reward model
    rank: Ranker | None = None  # an LLM, asked about each pair in both orders
    counts: Counter = field(default_factory=Counter)  # what the LLM counted: see its class

    def scores(self, samples: Samples, tokenizer: PreTrainedTokenizerBase) -> list[float | None]:
        """What `rewards` gives each answer; None where it gives no finite number. `tokenizer` is the policy's."""
        with as_judge():
            return self.rewards.score(samples, tokenizer)[0]


def load_policy_judge(
    judge: str | LLMJudge | None, *, dataset_name: str, option: str, trust_remote_code: bool = False
) -> PolicyJudge | None:
    """The judge that `option` names; by default the rules of sample data, and None for other data.

    `judge` is `lab` (or `lab-en`, the same rules), a function (`FILE.py:FUNCTION` or a dotted path), a reward model
    (a folder or a Hub id, which reads texts with its own tokenizer), or an LLM.
    """
    if (judge or dataset_name) in LABS:
        return PolicyJudge(judge or dataset_name, rules=lab_judge)
    if judge is None:
        return None
    if isinstance(judge, LLMJudge):
        return PolicyJudge(judge.name, rank=judge.rank, counts=judge.counts)
    trust = {"trust_remote_code": trust_remote_code}
    func, tokenizer = resolve_reward(judge, option=option, **trust), None
    if isinstance(func, str):
        func, tokenizer = load_scorer(func, option=option, **trust)
    return PolicyJudge(Path(judge).name, rewards=Rewards({"judge": func}, [tokenizer], [1.0]))
