"""Rankings by a machine, in the file that people rank into: by a function, a reward model or an LLM."""

import hashlib
import json
import re
from collections import Counter, defaultdict
from collections.abc import Iterator
from functools import partial
from itertools import combinations, islice
from pathlib import Path

from transformers import PreTrainedModel, PreTrainedTokenizerBase
from transformers.utils.logging import tqdm

from ..errors import InputError
from ..language import chosen_language, say, visible
from ..markdown import format_number
from ..models.forward import context_length
from ..rankings.agreement import annotators
from ..rankings.items import Items
from ..rankings.judges import Judge, LLMJudge, ScoreJudge, function_judge
from ..rankings.ranking_file import RankingFile, prompt_key
from ..scoring.reward_models import encode_scored, reward_model_scores
from ..text import Text
from .conversation import load_scorer
from .evaluate import LAB_JUDGE
from .load_items import load_items, read_guidelines
from .user_functions import load_function, locate_function

AT_ONCE = 16  # prompts per call of the judge: what a stop can lose, but for an LLM's replies
BATCH_SIZE = 64  # texts per batch of a reward model

Item = tuple[Text, list[str]]  # a prompt and its different answers


def load_judge(
    name: str,
    *,
    base_url: str | None = None,
    judge_model: str | None = None,
    api_key_env: str | None = None,
    guidelines: str | None = None,
    concurrency: int = 8,
    timeout: float = 120,
    cache: Path | None = None,
    trust_remote_code: bool = False,
) -> Judge:
    """The judge that `name` stands for.

    `lab` (the rule-based judge of the sample data), `llm`, a Python function (a dotted path, or `FILE.py:FUNCTION`),
    or a reward model (folder or Hub id). The other options are for an LLM: see [`LLMJudge`].
    """
    if name == "llm":
        return LLMJudge(
            base_url,
            judge_model,
            api_key_env=api_key_env,
            criterion=None if guidelines is None else read_guidelines(guidelines),
            # Not the locale's language: the same command must ask the same.
            lang=chosen_language() or "en",
            cache=cache,
            concurrency=concurrency,
            timeout=timeout,
        )
    path = LAB_JUDGE if name == "lab" else name
    if ".py:" in path or (not Path(path).is_dir() and re.fullmatch(r"\w+(\.\w+)+", path)):
        return function_judge(
            "lab" if name == "lab" else f"function:{path}", load_function(locate_function(path, ""), option="--judge")
        )
    if not Path(path).is_dir() and "/" not in path:
        raise InputError(f"`--judge`: {path} is neither `lab`, `llm`, a function, a folder, nor a Hub id.")
    scorer = load_scorer(path, trust_remote_code=trust_remote_code, option="--judge")
    return ScoreJudge(f"reward:{path}", partial(reward_scores, *scorer))


def reward_scores(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, prompts: list[Text], completions: list[Text]
) -> list[float | None]:
    """A reward model's scores; None for what is longer than its context."""
    ids = encode_scored(tokenizer, [{"prompt": prompt} for prompt in prompts], completions)
    fits = [len(row) <= (context_length(model) or len(row)) for row in ids]
    read = [row for row, fit in zip(ids, fits, strict=True) if fit]
    scores = iter(reward_model_scores(model, read, batch_size=BATCH_SIZE, by_length=True).tolist() if read else ())
    return [next(scores) if fit else None for fit in fits]


def label(
    *,
    judge: str,
    output: str | None,
    rankings: str | None,
    model: str | None,
    prompts: str | None,
    max_prompts: int | None,
    split: str,
    num_responses: int,
    max_new_tokens: int,
    seed: int,
    trust_remote_code: bool,
    **judge_options,
) -> None:
    """Rank a model's answers, or those in a file of rankings, by a judge; the arguments are the command's options.

    Each ranking is on disk before the next prompts are judged, and what is in the file is not judged again.
    """
    file, trust = RankingFile(output or rankings), {"trust_remote_code": trust_remote_code}
    cache = file.path.with_suffix(".replies.sqlite")
    ranker = load_judge(judge, cache=cache, **judge_options, **trust)
    counts: Counter = Counter()
    if rankings is None:
        sampling = {"num_responses": num_responses, "max_new_tokens": max_new_tokens, "seed": seed}
        # A part of the prompts are those that `rank --overlap` gives to everybody.
        items = load_items(model=model, prompts=prompts, split=split, overlap=1.0, **sampling, **trust)
        done, asked = file.ranked().get(ranker.name, set()), items.shared[:max_prompts]
        left = [key for key in asked if key not in done]
        counts["known"] = len(asked) - len(left)
        todo, others = _answered(items, left, counts), []
    else:
        others = RankingFile(rankings).rows()
        left = unjudged(others, [row for row in file.rows() if row["annotator"] == ranker.name])[:max_prompts]
        todo = iter(left)
    with tqdm(total=len(left), desc=ranker.name, unit=" prompts") as bar:
        while some := list(islice(todo, AT_ONCE)):
            _judge(ranker, some, file, counts)
            bar.update(len(some))
    rows = {row["id"]: row for row in [*others, *file.rows()]}.values()
    for line in [*findings(ranker, counts, file.path), *agreement_line(ranker.name, list(rows))]:
        print(visible(line))


def _answered(items: Items, keys: list[str], counts: Counter) -> Iterator[Item]:
    """Prompts with their answers, which are sampled when they are asked for."""
    for key in keys:
        if len(answers := items.answers_to(items.prompts[key])) > 1:
            yield items.prompts[key], answers
        else:
            counts["alone"] += 1


def unjudged(rows: list[dict], own: list[dict]) -> list[Item]:
    """The prompts and answers in `rows`, without those that `own` rankings or longer ones of `rows` hold."""
    covered: dict[str, list[set]] = defaultdict(list)
    for row in own:
        covered[prompt_key(row["prompt"])].append(set(row["responses"]))
    items = []
    for row in sorted(rows, key=lambda row: -len(row["responses"])):
        responses, known = list(dict.fromkeys(row["responses"])), covered[prompt_key(row["prompt"])]
        if len(responses) > 1 and not any(texts.issuperset(responses) for texts in known):
            known.append(set(responses))
            items.append((row["prompt"], responses))
    return items


def _judge(judge: Judge, items: list[Item], file: RankingFile, counts: Counter) -> None:
    """Rank some items and put the rankings on disk."""
    (prompts, responses), rows = zip(*items, strict=True), []
    for prompt, texts, ranks in zip(prompts, responses, judge.rank(prompts, responses), strict=True):
        if ranks is None:
            continue
        counts["ranked"] += 1
        counts["compared"] += len(ranks) * (len(ranks) - 1) // 2
        counts["ties"] += sum(a == b for a, b in combinations(ranks, 2))
        content = json.dumps([judge.name, prompt, texts], sort_keys=True)
        rows.append(
            {
                "prompt": prompt,
                "responses": texts,
                "ranks": ranks,
                "all_bad": False,
                "written": False,
                "annotator": judge.name,
                "seconds": None,
                "shown_order": list(range(len(texts))),
                # The same in each run, so that a ranking cannot be there twice.
                "id": hashlib.sha256(content.encode()).hexdigest()[:32],
            }
        )
    file.add_many(rows, judge.name)


def findings(judge: Judge, counts: Counter, path: Path) -> list[str]:
    """What came out of a run, as lines to print."""
    ranked, ties, compared = (f"{counts[name]:,}" for name in ("ranked", "ties", "compared"))
    lines = [
        say(
            f"{judge.name} ranked {ranked} prompts in {path}; {ties} of {compared} pairs of answers tie.",
            f"{judge.name} 排了 {ranked} 个提示，写入 {path}；{compared} 对回答中有 {ties} 对并列。",
        )
    ]
    told = {**counts, **judge.counts}
    if counts["known"]:
        lines.append(say(f"Ranked before: {counts['known']:,}.", f"此前已排过：{counts['known']:,}。"))
    if isinstance(judge, LLMJudge):
        asked, cached, pairs, differ, cycles = (
            f"{told.get(name, 0):,}" for name in ("asked", "cached", "pairs", "disagreements", "cycles")
        )
        lines.append(
            say(
                f"{asked} questions were asked, {cached} had been answered before. In {differ} of {pairs} "
                f"pairs the verdict changed with the order; these pairs tie. Rankings with a cycle: {cycles}.",
                f"提出 {asked} 个问题，另有 {cached} 个此前已有回复。{pairs} 对中有 {differ} 对的判定随先后顺序改变，"
                f"按并列处理。含循环的排序：{cycles}。",
            )
        )
    left = {name: f"{told[name]:,} {text}" for name, text in _left_out().items() if told.get(name)}
    if left:
        lines.append(
            say("Prompts left out: ", "未计入的提示：") + say(", ", "，").join(left.values()) + say(".", "。")
        )
    if "failed" in left:
        lines.append(say("Last failure: ", "最近一次失败：") + judge.failure)
    return lines


def _left_out() -> dict[str, str]:
    """Why a prompt has no ranking, as it is printed."""
    return {
        "alone": say("without two different answers", "个没有两个不同的回答"),
        "unscored": say("without a finite score for each answer", "个有回答没有有限的分数"),
        "failed": say("whose requests failed (run it again to repeat them)", "个请求失败（再次运行会重试）"),
        "refused": say("that the LLM declined to judge", "个被 LLM 拒绝评判"),
        "malformed": say("with a reply that holds no verdict", "个的回复中没有判定"),
    }


def agreement_line(name: str, rows: list[dict]) -> list[str]:
    """How far an annotator agrees with the others, if there is a pair that it and another one judged."""
    own = next((some for some in annotators(rows) if some.annotator == name and some.compared), None)
    if own is None:
        return []
    share, low, high = (format_number(x, ".0%") for x in (own.same / own.compared, *own.interval))
    same, alpha = f"{own.same:,}", format_number(own.alpha)
    return [
        say(
            f"It agrees with other annotators on {same} of {own.compared:,} pairs that neither ties: {share} (95 % "
            f"interval {low} to {high}). Krippendorff's alpha, ties included: {alpha}.",
            f"与其他标注者在双方都分出高下的 {own.compared:,} 对中有 {same} 对一致：{share}"
            f"（95 % 区间 {low} 至 {high}）。Krippendorff's alpha（计入并列）：{alpha}。",
        )
    ]
