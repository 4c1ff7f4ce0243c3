"""The over-optimisation lab, what `hf-instructgpt overopt` does.

A known judge stands for the human labeller. Proxy reward models learn from its rankings, PPO and best-of-n optimise
against the proxies, and the judge, which the policies never see, tells what that was worth (Gao, Schulman and Hilton
2022, arXiv 2210.10760).
"""

import shutil
from pathlib import Path

from ..errors import InputError
from ..files import absolute_folder, fields_of, make_directory, read_json, to_json, write_whole
from ..resuming.checkpoint import alone_in
from ..stages.arguments import parse_options
from ..stages.config_file import check_keys, read_yaml
from ..stages.load_data import check_fits, load_stage_datasets
from ..stages.load_models import load_config, load_tokenizer
from ..stages.ppo import check_ppo_options
from ..stages.sft import tokenizer_and_config
from .jobs import open_folder, run_cells
from .overopt_cells import (
    check_held_out,
    load_judge,
    prompts_to_rank,
    sample_and_judge,
    train_policy,
    train_proxy,
    train_sft,
    try_judge,
)
from .overopt_report import analyse, draw_plot, findings, overopt_markdown

KEYS = {
    "output_dir": str,
    "judge": str,
    "model_name_or_path": str,
    "seeds": list[int],
    "num_rankings": list[int],
    "responses_per_ranking": int,
    "kl_coefs": list[float],
    "best_of_n": int,
    "sft": dict,
    "reward": dict,
    "ppo": dict,
}
DEFAULTS = {"output_dir": "runs/overopt", "responses_per_ranking": 4, "best_of_n": 64}
REQUIRED = ("judge", "seeds", "num_rankings", "kl_coefs", "reward", "ppo")
# By mapping: what follows from the run itself.
TAKEN = {
    "sft": {"output_dir", "resume", "overwrite_output_dir"},
    "reward": {
        *("output_dir", "resume", "overwrite_output_dir", "seed", "model_name_or_path"),
        *("eval_strategy", "dataset_test_split"),
    },
    "ppo": {
        *("output_dir", "resume", "overwrite_output_dir", "seed", "model_name_or_path", "reward_funcs"),
        *("reward_weights", "kl_coef", "kl_target", "kl_horizon", "eval_strategy", "eval_on_start"),
        *("save_strategy", "save_steps", "save_only_model", "save_total_limit", "load_best_model_at_end"),
    },
}
FOLDERS = ("sft", "samples", "proxies", "ppo")
RESULTS_FILE = "overopt.json"  # moved in last: it says that a run is whole
REPORT_FILES = ("overopt.png", "overopt.md", RESULTS_FILE)


class OverOptLab:
    """One run of the lab into one folder.

    Args:
        config_path (`str` or `Path`): A YAML file with the keys

            - `judge`: dotted path of a Python function, called as reward functions are;
            - `seeds`: two or more; each has prompts to rank, samples, proxies and policies of its own;
            - `num_rankings`: the data sizes; of one seed, the smaller ones are the beginning of the larger ones;
            - `responses_per_ranking`: responses to each prompt that is ranked, 4 by default;
            - `kl_coefs`: PPO's coefficients of the KL penalty;
            - `best_of_n`: samples N to each held-out prompt, 64 by default; n goes 1, 2, 4, ... up to N;
            - `model_name_or_path` of the SFT model, or the mapping `sft` to train one; all seeds share it;
            - the mappings `reward` and `ppo`;
            - `output_dir`.

            The mappings' keys are those of the stage files. The data set of `reward` gives the prompts that are
            answered and ranked, that of `ppo` those of PPO and, by `dataset_test_split`, the held-out ones;
            `eval_steps` of `ppo` is the distance of a curve's points in optimizer steps, one rollout's by default.
            `--resume` compares these, not what is in the model, the data or the judge that they name.
        output_dir (`str`, *optional*): Instead of the file's.

    Raises:
        InputError: An option, a data set or the judge does not fit. Nothing has been written then.
    """

    def __init__(self, config_path: str | Path, *, output_dir: str | None = None):
        config = read_yaml(config_path)
        check_keys(config, KEYS, source=str(config_path))
        self.source = str(config_path)
        self.options = {**DEFAULTS, **config}
        self.output_dir = Path(self.options["output_dir"] if output_dir is None else output_dir)
        absolute_folder(self.output_dir)
        self.options.pop("output_dir", None)
        _check_options(self.options, source=self.source)
        self.sft = self.options.get("model_name_or_path") or str(self.output_dir / "sft" / "model")
        self._check_stages()

    def _check_stages(self) -> None:
        """Check what can be checked before anything is trained: options, models, data, judge."""
        o = self.options
        stages = {stage: self._parse(stage) for stage in ("sft", "reward", "ppo") if stage in o}
        for stage, (_, _, model_args) in stages.items():
            if model_args.use_peft:
                raise InputError(f"{self.source}, {stage}: `use_peft`: the lab trains whole models; leave it out.")
        check_ppo_options(*stages["ppo"])
        ppo_args, ppo_config, _ = stages["ppo"]
        trust = {"trust_remote_code": ppo_config.trust_remote_code}
        rows = {
            "reward": [prompts_to_rank(o["reward"])],
            "ppo": load_stage_datasets(ppo_args, "prompts", needs_eval=True),
        }
        if len(rows["reward"][0]) < max(o["num_rankings"]):
            raise InputError(
                f"{self.source}: `num_rankings`: {max(o['num_rankings'])} prompts are to be ranked; the data of "
                f"`reward` has {len(rows['reward'][0])}."
            )
        if "sft" in o:
            args, training_args, model_args = stages["sft"]
            needs_eval = training_args.eval_strategy != "no"
            rows["sft"] = [x for x in load_stage_datasets(args, "sft", needs_eval=needs_eval) if x is not None]
            policy = tokenizer_and_config(args, training_args, model_args, rows["sft"][0])
        else:
            policy = load_tokenizer(self.sft, **trust), load_config(self.sft, **trust)
        judge = load_judge(o["judge"], **trust)
        for stage, parts in rows.items():
            source = f"{self.source}, {stage}: {stages[stage][0].dataset_name}"
            for some in parts:
                if stage == "sft":
                    check_fits(some, "sft", *policy, stages["sft"][1], source=source)
                else:
                    check_fits(some, "prompts", *policy, ppo_config, source=source)
                    try_judge(judge, some[0], policy[0], source=source)
        seen = {f"`{stage}`": parts[0] for stage, parts in rows.items()}
        source = f"{self.source}, ppo: {ppo_args.dataset_name} ({ppo_args.dataset_test_split})"
        check_held_out(rows["ppo"][1], seen, source=source)

    def _parse(self, stage: str):
        """A mapping as its stage takes it, with what the cells will add."""
        more = {"output_dir": str(self.output_dir / stage)}
        if stage != "sft":
            more |= {"model_name_or_path": self.sft, "seed": max(self.options["seeds"])}
        if stage == "ppo":
            more |= {"reward_funcs": ["proxy", self.options["judge"]], "eval_strategy": "steps"}
        return parse_options(stage, {**self.options[stage], **more}, source=f"{self.source}, {stage}")

    def run(self, *, overwrite: bool = False, resume: bool = False) -> dict:
        """Run the cells that are not done yet, analyse, report.

        Args:
            overwrite (`bool`): Delete another run in `output_dir` first.
            resume (`bool`): Keep the cells that are done.

        Returns:
            `dict`: the content of `overopt.json`.

        Raises:
            InputError: `output_dir` holds something else, or a run with other options; or a cell cannot be run.
        """
        out = self.output_dir
        writes = (RESULTS_FILE, *REPORT_FILES, *FOLDERS, "report")
        options = {key: self.options.get(key) for key in KEYS if key != "output_dir"}
        make_directory(out)
        with alone_in(out):
            open_folder(out, options, writes=writes, overwrite=overwrite, resume=resume)
            results = read_json(out / RESULTS_FILE)
            if results is None:
                results = self._results()
                self._write_report(results)
            with fields_of(out / RESULTS_FILE):
                suggested = out / results["suggested"]["policy"]
            for path in (out / "ppo").glob("*/checkpoint-*"):
                if path != suggested:
                    shutil.rmtree(path)
        return results

    def _results(self) -> dict:
        """Run the cells that are not done yet, those that need others' results after them."""
        o, out, seeds = self.options, self.output_dir, self.options["seeds"]
        if "sft" in o:
            run_cells(train_sft, {"sft": {"options": o["sft"]}}, out)
        cells = {
            f"seed-{seed}": {
                "sft": self.sft,
                "judge": o["judge"],
                "reward": o["reward"],
                "ppo": o["ppo"],
                "num_rankings": max(o["num_rankings"]),
                "num_responses": o["responses_per_ranking"],
                "num_samples": o["best_of_n"],
                "seed": seed,
            }
            for seed in seeds
        }
        samples = run_cells(sample_and_judge, cells, out / "samples")
        cells = {
            f"rankings-{size}_seed-{seed}": {
                "sft": self.sft,
                "options": o["reward"],
                "samples": str(out / "samples" / f"seed-{seed}"),
                "num_rankings": size,
                "seed": seed,
            }
            for size in o["num_rankings"]
            for seed in seeds
        }
        proxies = run_cells(train_proxy, cells, out / "proxies")
        cells = {
            f"rankings-{size}_kl-{coef}_seed-{seed}": {
                "sft": self.sft,
                "options": o["ppo"],
                "proxy": str(out / "proxies" / f"rankings-{size}_seed-{seed}" / "proxy"),
                "judge": o["judge"],
                "kl_coef": coef,
                "seed": seed,
                # Only one of these can be suggested.
                "keep_checkpoints": size == max(o["num_rankings"]) and seed == seeds[0],
            }
            for size in o["num_rankings"]
            for coef in o["kl_coefs"]
            for seed in seeds
        }
        policies = run_cells(train_policy, cells, out / "ppo")
        results = analyse(
            [samples[f"seed-{seed}"] for seed in seeds],
            {size: [proxies[f"rankings-{size}_seed-{seed}"] for seed in seeds] for size in o["num_rankings"]},
            {
                (size, coef): [policies[f"rankings-{size}_kl-{coef}_seed-{seed}"] for seed in seeds]
                for size in o["num_rankings"]
                for coef in o["kl_coefs"]
            },
        )
        best = results["suggested"]
        folder = f"rankings-{best['num_rankings']}_kl-{best['kl_coef']}_seed-{seeds[0]}"
        best["policy"] = (
            f"ppo/{folder}/checkpoint-{best['step']}" if best["step"] else o.get("model_name_or_path", "sft/model")
        )
        return {"judge": o["judge"], "seeds": seeds, **results}

    def _write_report(self, results: dict) -> None:
        """Write the report, the results last."""
        out = self.output_dir
        draw_plot(results, out / "overopt.png")
        write_whole(out / "overopt.md", overopt_markdown(results))
        write_whole(out / RESULTS_FILE, to_json(results))


def print_summary(results: dict, output_dir: Path) -> None:
    """Tell the person at the terminal what came out."""
    print("", *findings(results), "", sep="\n")
    print(f"See {output_dir / 'overopt.md'} and {output_dir / 'overopt.png'}.")


def _check_options(options: dict, *, source: str) -> None:
    for key in REQUIRED:
        if key not in options:
            raise InputError(f"{source}: `{key}` is missing.")
    if ("sft" in options) == ("model_name_or_path" in options):
        raise InputError(
            f"{source}: say either `model_name_or_path` of an SFT model or the mapping `sft` to train one."
        )
    for key, least in (("seeds", 2), ("num_rankings", 1), ("kl_coefs", 1)):
        if len(set(options[key])) < max(least, len(options[key])):
            more = ": intervals are over seeds" if key == "seeds" else ""
            raise InputError(f"{source}: `{key}` needs {least} or more different values{more}, not {options[key]}.")
    lowest = {"seeds": 0, "num_rankings": 1, "kl_coefs": 0, "responses_per_ranking": 2, "best_of_n": 2}
    for key, low in lowest.items():
        values = options[key] if isinstance(options[key], list) else [options[key]]
        if not all(low <= value < float("inf") for value in values):
            raise InputError(f"{source}: `{key}` must be {low} or more, not {options[key]}.")
    for stage, taken in TAKEN.items():
        for key in sorted(taken & set(options.get(stage, {}))):
            raise InputError(f"{source}: `{stage}.{key}` follows from the run itself; leave it out.")
