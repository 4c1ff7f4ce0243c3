"""InstructGPT on the Hugging Face stack: supervised fine-tuning, a reward model and PPO for any causal LM.

The public names are loaded at first use: importing the package imports neither torch nor transformers. The first use
of any of them registers the tiny model with the Auto classes, as `import hf_instructgpt.char_gpt` does.
"""

import importlib
import warnings
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .char_gpt import (
        CharGPTConfig,
        CharGPTForCausalLM,
        CharGPTForSequenceClassification,
        CharGPTModel,
        CharGPTTokenizer,
        convert_document_state_dict,
    )
    from .data import gold_reward, judge, load_sample_dataset
    from .ppo.config import PPOConfig
    from .ppo.critic import load_value_model
    from .ppo.trainer import PPOTrainer
    from .reward.averaging import average_models
    from .reward.config import RankingRewardConfig
    from .reward.ranking_trainer import RankingRewardTrainer
    from .sampling.generate import Generator
    from .sampling.recorded import RecordedRollouts
    from .sampling.server import ServerGenerator
    from .scoring.token_scores import RewardSpan

__version__ = "0.1.0"

_MODULES = {
    "CharGPTConfig": "char_gpt",
    "CharGPTForCausalLM": "char_gpt",
    "CharGPTForSequenceClassification": "char_gpt",
    "CharGPTModel": "char_gpt",
    "CharGPTTokenizer": "char_gpt",
    "Generator": "sampling.generate",
    "PPOConfig": "ppo.config",
    "PPOTrainer": "ppo.trainer",
    "RankingRewardConfig": "reward.config",
    "RankingRewardTrainer": "reward.ranking_trainer",
    "RecordedRollouts": "sampling.recorded",
    "RewardSpan": "scoring.token_scores",
    "ServerGenerator": "sampling.server",
    "average_models": "reward.averaging",
    "convert_document_state_dict": "char_gpt",
    "gold_reward": "data",
    "judge": "data",
    "load_sample_dataset": "data",
    "load_value_model": "ppo.critic",
}

__all__ = [
    "CharGPTConfig",
    "CharGPTForCausalLM",
    "CharGPTForSequenceClassification",
    "CharGPTModel",
    "CharGPTTokenizer",
    "Generator",
    "PPOConfig",
    "PPOTrainer",
    "RankingRewardConfig",
    "RankingRewardTrainer",
    "RecordedRollouts",
    "RewardSpan",
    "ServerGenerator",
    "average_models",
    "convert_document_state_dict",
    "gold_reward",
    "judge",
    "load_sample_dataset",
    "load_value_model",
]


def __getattr__(name: str):
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(importlib.import_module(f"{__name__}.{_MODULES[name]}"), name)
    try:
        importlib.import_module(f"{__name__}.char_gpt")
    except ImportError as error:  # a transformers that it was not made for must not take PPO for other models down
        warnings.warn(f"CharGPT cannot be loaded with this version of transformers: {error}", stacklevel=2)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *_MODULES})
