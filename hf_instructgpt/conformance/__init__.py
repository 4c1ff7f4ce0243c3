"""Check anybody's PPO functions against numbers worked by hand: `python -m hf_instructgpt.conformance MODULE`."""

from .cases import CASES as CASES
from .cases import FUNCTIONS as FUNCTIONS
from .cases import Case as Case
from .cases import check as check
