"""`hf-instructgpt doctor ppo.yaml`: what is wrong with a config of PPO, before anything is trained.

PPO's own checks are called one after another: what one of them refuses is a finding, and the others still run. Of
models only configurations and tokenizers are read; a skeleton is a model without weights.
"""

import copy
import json
import math
import sys
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stdout, suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from textwrap import shorten

import numpy as np
import psutil
import torch
from accelerate import init_empty_weights
from datasets import Dataset
from jinja2 import TemplateError
from transformers import (
    AutoModel,
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    AutoModelForTokenClassification,
    GenerationConfig,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)
from transformers.utils import find_adapter_config_file
from trl.import_utils import is_vllm_available

from ..data.by_column import rows_at
from ..data.shapes import shape_of
from ..errors import InputError
from ..files import absolute_folder, fields_of, weight_files
from ..language import say
from ..layout import REWARD_REPORT_FILE
from ..models.checks import check_vocabulary
from ..models.forward import context_length
from ..models.loading import classifies_tokens, quiet
from ..ppo.checks import PromptLengths, check_contexts, check_prompts, check_reward_contexts, check_supported
from ..ppo.config import PPOConfig
from ..ppo.models import quantised_loading
from ..report.reward_summary import reward_findings
from ..resuming.run_folder import RunFolder, check_same_options
from ..sampling.generate import sampling_config
from ..scoring.checks import check_padding_id, foreign_tokenizers
from ..scoring.reward_functions import check_signatures, reward_name
from ..text import TEMPLATE_COLUMNS, around_answer, encode_rows, encode_text, template_options, whole_text
from .data_report import repetitions
from .load_data import check_rows, findings, load_text, raw_rows, rows_and_notes
from .load_models import (
    check_model_path,
    is_model,
    load_config,
    load_options,
    load_tokenizer_and_config,
    model_source,
    resolve_reward,
)
from .parsing import parse_stage
from .plan import cheaper, counted, fits, model_of, read_setup, remarks, variants, verdict
from .ppo import check_ppo_options, has_report, read_report
from .run_stage import check_sources, kept_options
from .stage_data import StageData

WARNING = "WARNING: "  # how a reward model's report begins what is wrong
SAMPLE = 1000  # prompts that are tokenized to tell how long all are
# How the names of models end that are saved with another head than a language model's.
OTHER_HEADS = ("Classification", "ForMaskedLM", "ForQuestionAnswering")


@dataclass(frozen=True)
class Note:
    """What a check says: something wrong and the way out, or something that is fine."""

    check: str
    message: str
    numbers: dict[str, float]


class Checkup:
    """The checks of a config, given as options of `hf-instructgpt ppo`.

    Raises:
        InputError: The options cannot be read.
    """

    def __init__(self, options: list[str]):
        self.options = options
        self.args, self.training_args, self.model_args = parse_stage("ppo", options)
        self.trust = {"trust_remote_code": self.training_args.trust_remote_code}
        self.findings: list[Note] = []
        self.fine: list[Note] = []
        self.not_checked: list[str] = []
        self.refused: set[str] = set()  # checks, and rewards by name, that ended early
        self.is_adapter = False  # the policy
        self.tokenizer: PreTrainedTokenizerBase | None = None
        self.policy: PreTrainedModel | None = None  # a skeleton
        # PPOTrainer's data sets, as the policy reads them if its tokenizer is there, and the splits that they are.
        self.datasets: dict[str, Dataset] = {}
        self.names = {"train_dataset": self.args.dataset_train_split, "eval_dataset": self.args.dataset_test_split}
        self.lengths: PromptLengths | None = None  # of the prompts, if the policy can read all of them
        self.longest: int | None = None  # tokens
        self._check_options()
        with self.noting("model"):
            self._check_model()
        self._check_rate()
        with self.noting("data"):
            self._check_data(StageData(self.args, "prompts", self.training_args))
        if self.args.ptx_dataset_name is not None:
            with self.noting("data"):
                load_text("ptx_dataset_name", self.args, self.tokenizer)
        if self.datasets and self.policy is not None:
            self._check_reading()
        else:
            self.not_checked += ["template", "lengths"]
        for name in self.args.reward_funcs:
            with self.noting("rewards", name):
                self._check_reward(name)
        self._check_memory()
        self.not_checked += [say("weights", "权重"), *(["`generator`"] if self.training_args.generator else [])]

    def wrong(self, check: str, message: str, **numbers: float) -> None:
        """Note something wrong."""
        self.findings.append(Note(check, " ".join(message.split()), numbers))

    def right(self, check: str, message: str, **numbers: float) -> None:
        """Note something that is fine."""
        self.fine.append(Note(check, " ".join(message.split()), numbers))

    @contextmanager
    def noting(self, check: str, name: str | None = None) -> Iterator[None]:
        """Note what a function in the block refuses, which ends the block; the same refusal is noted once.

        `name`: the reward that is checked; else it is the policy.
        """
        try:
            yield
        except Exception as error:  # an error that nobody foresaw does not take the other findings with it
            is_known = isinstance(error, (InputError, TemplateError))
            message = str(error) if is_known else f"{type(error).__name__}: {error}"
            if isinstance(error, TemplateError) or isinstance(error.__cause__, TemplateError):
                whose = name or self.model_args.model_name_or_path
                message = say(f"the chat template of {whose}: {message}", f"{whose} 的对话模板：{message}")
            self.refused.add(name or check)
            if " ".join(message.split()) in {note.message for note in self.findings}:
                self.not_checked.append(check)
            else:
                self.wrong(check, message)

    # ---- Options, model and data -----------------------------------------------------------------------------------

    def _check_options(self) -> None:
        args, training_args, model_args = self.args, self.training_args, self.model_args
        with self.noting("options"):
            check_ppo_options(args, training_args, model_args)
        with self.noting("options"):
            check_supported(training_args)
        with self.noting("options"):
            path = absolute_folder(training_args.output_dir)
            check_sources({**vars(args), **vars(model_args)}, path)
            folder = RunFolder(path, {})
            folder.check_free(overwrite=args.overwrite_output_dir, resume=args.resume)
            if args.resume and (folder.is_finished or folder.is_broken_off):
                check_same_options(path, kept_options(args, training_args, model_args), folder.known)
        with self.noting("options"):
            load_options(copy.copy(training_args), model_args)
            quantised_loading(training_args)
        if training_args.use_vllm and not is_vllm_available():
            words = ("`use_vllm` needs vLLM, which is not installed here.", "`use_vllm` 需要 vLLM，而这里没有安装。")
            self.wrong("options", say(*words))

    def _check_rate(self) -> None:
        rate, default = self.training_args.learning_rate, PPOConfig.learning_rate
        if (self.model_args.use_peft or self.is_adapter) and rate <= default:
            self.wrong(
                "options",
                say(
                    f"`learning_rate` = {rate:g} is for all weights of a large model; LoRA hardly moves with it. The "
                    "recipes with LoRA take 5e-5 and 5e-4.",
                    f"`learning_rate` = {rate:g} 适用于大模型的全部权重，LoRA 用它几乎不动。使用 LoRA 的配方取 "
                    "5e-5 和 5e-4。",
                ),
                learning_rate=rate,
            )

    def _check_model(self) -> None:
        name, source = self.model_args.model_name_or_path, model_source(self.training_args, self.model_args)
        self.tokenizer, config = load_tokenizer_and_config(self.training_args, self.model_args)
        with self.noting("model"):
            check_has_weights(name)
        self.is_adapter = is_adapter(name, task="CAUSAL_LM", revision=source["revision"])
        saved = config.architectures or []
        if not self.is_adapter and any(kind.endswith(OTHER_HEADS) for kind in saved):
            raise InputError(f"{name} holds no causal language model: it was saved as {saved[0]}.")
        if config.is_encoder_decoder:
            raise InputError(f"{name} is an encoder-decoder, and PPO trains causal language models.")
        policy = skeleton(AutoModelForCausalLM, config, self.training_args)
        check_vocabulary("the policy", self.tokenizer, policy)
        with suppress(OSError):  # not every model has generation settings
            base = config.name_or_path
            policy.generation_config = GenerationConfig.from_pretrained(base, revision=source["revision"])
        self.policy = policy

    def _check_data(self, data: StageData) -> None:
        """How the prompts are read, and what may be wrong with them."""
        args, notes = self.args, []
        drawn = say("They are drawn as often as they occur.", "")  # behind an English sentence
        datasets = {}
        for (name, split), rows in zip(self.names.items(), (data.train, data.test), strict=True):
            if rows is None:
                continue
            if self.tokenizer is not None:
                rows, changes = rows_and_notes(rows, args, self.tokenizer)
                notes += [*changes, *(f"{split}: {one}" for one in findings(rows, "prompts", self.tokenizer))]
            notes += [f"{split}: {one} {drawn}" for one in repetitions(rows, "prompts")]
            datasets[name] = rows
        self.datasets = datasets
        train, *test = datasets.values()
        shape = shape_of(raw_rows(args, "prompts")[args.dataset_train_split], "prompts")
        sizes = len(train), sum(map(len, test))
        self.right(
            "data",
            say(
                f"{data.source}: {_several(sizes[0], 'prompt')} to train on, {sizes[1]} to evaluate on; read as "
                f"{shape}",
                f"{data.source}：训练提示 {sizes[0]} 个，评估提示 {sizes[1]} 个；读作 {shape}",
            ),
            prompts=sizes[0],
            eval_prompts=sizes[1],
        )
        for note in notes:
            self.wrong("data", note)
        known = {_key(row) for row in train}
        if shared := sum(_key(row) in known for rows in test for row in rows):
            self.wrong(
                "data",
                say(
                    f"{shared} of {sizes[1]} prompts to evaluate on are trained on too, so their scores say little "
                    "about new prompts. Remove them from one split; `dataset_test_fraction` splits by prompt.",
                    f"{sizes[1]} 个评估提示中有 {shared} 个也用于训练，它们的分数说明不了新提示的情况。请从一份数据里"
                    "去掉它们；`dataset_test_fraction` 按提示划分。",
                ),
                shared=shared,
            )
        self._check_steps(sizes[0])

    def _check_steps(self, num_prompts: int) -> None:
        """How long the run is, and whether the policy is trained in it."""
        options = self.training_args
        per_rollout = options.rollout_size // options.num_generations * options.world_size
        steps_each, steps = options.num_ppo_epochs * options.num_mini_batches, options.max_steps
        if steps < 1:
            steps = math.ceil(options.num_train_epochs * math.ceil(num_prompts / per_rollout) * steps_each)
        rollouts, responses = math.ceil(steps / steps_each), options.rollout_size * options.world_size
        count = options.n_gpu
        words = (f"; of one process, and there are {count} GPUs", f"；按一个进程计，而这里有 {count} 个 GPU")
        alone = say(*words) if count > 1 else ""
        self.right(
            "options",
            say(
                f"{_several(steps, 'optimizer step')}, {_several(rollouts, 'rollout')} of "
                f"{_several(responses, 'response')} to {_several(per_rollout, 'prompt')}{alone}",
                f"{steps} 个优化步，{rollouts} 次采样，每次对 {per_rollout} 个提示采样 {responses} 个回答{alone}",
            ),
            steps=steps,
            rollouts=rollouts,
        )
        if (warmup := options.critic_warmup_steps) >= steps and options.critic_warmup_patience is None:
            self.wrong(
                "options",
                say(
                    f"`critic_warmup_steps` = {warmup} covers all {steps} steps: only the critic is trained. Lower "
                    "it, or raise `max_steps`.",
                    f"`critic_warmup_steps` = {warmup} 覆盖了全部 {steps} 步：只训练价值模型。请降低它，或提高 "
                    "`max_steps`。",
                ),
                critic_warmup_steps=warmup,
            )

    # ---- Template and lengths --------------------------------------------------------------------------------------

    @property
    def row(self) -> dict:
        """The first row."""
        return self.datasets["train_dataset"][0]

    @property
    def is_chat(self) -> bool:
        """Whether the prompts are messages."""
        return isinstance(self.row["prompt"], list)

    def _check_reading(self) -> None:
        if self.is_chat and not self.tokenizer.chat_template:
            self.wrong("template", _no_template(self.model_args.model_name_or_path))
            self.not_checked.append("lengths")
            return
        with self.noting("template"):
            self._check_end()
        if "template" in self.refused:
            self.not_checked.append("lengths")
            return
        with self.noting("lengths"):
            self._check_lengths()

    def _check_end(self) -> None:
        """Whether a response that the template writes ends with a token at which sampling stops."""
        tokenizer, ids = self.tokenizer, self.training_args.stop_token_ids or ()
        stop = sampling_config(self.policy, tokenizer, max_new_tokens=1, stop_token_ids=ids).eos_token_id
        names = say(" or ", " 或 ").join(map(repr, tokenizer.convert_ids_to_tokens(stop)))
        if self.is_chat:
            _, behind = around_answer(tokenizer, self.row["prompt"], template_options(self.row))
            written = tokenizer(behind, add_special_tokens=False)["input_ids"]
        else:
            written = _ended(tokenizer, self.row)[-1:]
            behind = tokenizer.decode(written)
        if not set(stop).isdisjoint(written):
            kind = say("messages", "消息") if self.is_chat else say("text", "文本")
            words = (f"prompts are {kind}, and {names} ends a response", f"提示是{kind}，{names} 结束回答")
            self.right("template", say(*words))
            return
        end = repr(behind[:40]) if behind else say("nothing", "空文本")
        self.wrong(
            "template",
            say(
                f"the chat template ends the assistant's turn with {end}, and sampling stops at {names} alone. Name "
                "the token that ends a turn in `stop_token_ids`, or train SFT with a template that writes the "
                "end-of-text token.",
                f"对话模板以 {end} 结束助手的发言，而采样只在 {names} 处停止。请在 `stop_token_ids` 中指明结束发言的 "
                "token，或用会写出结束符的模板训练 SFT。",
            ),
        )

    def _check_lengths(self) -> None:
        """Whether policy and critic can read the prompts, and responses behind them."""
        args, training_args, config = self.args, self.training_args, self.policy.config
        for name, rows in self.datasets.items():
            source = f"{args.dataset_name} ({self.names[name]})"
            check_rows(rows, "prompts", self.tokenizer, config, training_args, source=source)
        lengths = PromptLengths(self.datasets, self.tokenizer)
        check_prompts(lengths, self.policy, training_args)
        half, self.longest = median_and_longest(lengths)
        self.lengths = lengths
        about = say("about ", "约 ") if sum(map(len, self.datasets.values())) > SAMPLE else ""
        response, context = training_args.max_completion_length, context_length(config)
        self.right(
            "lengths",
            say(
                f"prompts have {about}{half:g} tokens (median) and at most {about}{self.longest}; with "
                f"`max_completion_length` = {response}, {self.longest + response} of the {context} that the policy "
                "reads",
                f"提示的 token 数：中位数{about} {half:g}，最多{about} {self.longest}；加上 `max_completion_length` = "
                f"{response} 为 {self.longest + response}，策略能读 {context}",
            ),
            median=half,
            longest=self.longest,
        )
        if args.value_model not in (None, "shared"):
            check_model_path(args.value_model)
            with self.noting("model", args.value_model):
                check_has_weights(args.value_model)
            critic = skeleton(AutoModel, load_config(args.value_model, **self.trust), training_args)
            check_contexts("the critic", critic, lengths, training_args)

    # ---- Rewards ---------------------------------------------------------------------------------------------------

    def _check_reward(self, name: str) -> None:
        func = resolve_reward(name, **self.trust)
        if callable(func):
            check_signatures([func], self.datasets.values())
            name = reward_name(func)
            words = (f"the function {name} can be called with the data's columns", f"函数 {name} 可以用数据的列调用")
            self.right("rewards", say(*words))
            return
        with self.noting("rewards"):
            self._check_report(name)
        if self.lengths is None:
            self.not_checked.append(say(f"what {name} reads", f"{name} 读到的文本"))
        else:
            self._check_reward_model(name)

    def _check_report(self, name: str) -> None:
        """What the report of a reward model says: accuracy beside a length baseline, calibration."""
        if not has_report(name):
            self.not_checked.append(say(f"the report of {name}", f"{name} 的评估报告"))
            return
        report, problem = read_report(name)
        if problem:
            self.wrong("rewards", problem)
            return
        with fields_of(Path(name) / REWARD_REPORT_FILE):
            sentences = reward_findings(report)
        for text in sentences:
            note = self.wrong if text.startswith(WARNING) else self.right
            note("rewards", f"{name}: {text.removeprefix(WARNING)}")

    def _check_reward_model(self, name: str) -> None:
        """Whether a reward model reads what the policy writes, and sees whether it ended."""
        config, options = load_config(name, **self.trust), self.training_args
        with self.noting("rewards"):
            check_has_weights(name)
        is_adapter(name, task="SEQ_CLS")
        of_tokens = classifies_tokens(config.architectures)
        kind = AutoModelForTokenClassification if of_tokens else AutoModelForSequenceClassification
        model = skeleton(kind, config, options)
        check_padding_id(f"the reward model {name}", config)
        model.config._name_or_path = name  # of an adapter, its own
        known = {"policy": self.policy, "policy_tokenizer": self.tokenizer, **self.trust}
        (foreign,) = foreign_tokenizers([model], [None], **known)
        reader = foreign or self.tokenizer
        if self.is_chat and not reader.chat_template:
            self.wrong("template", _no_template(name))
            return
        check_reward_contexts([(model, foreign)], self.lengths, options)
        has_same_tokens = reader.get_vocab().items() <= self.tokenizer.get_vocab().items()
        if self.is_chat and has_same_tokens and reader.chat_template != self.tokenizer.chat_template:
            self.wrong(
                "template",
                say(
                    f"{name} has the policy's tokens and another chat template, so it reads other texts than the "
                    "policy writes. If it was trained with the policy's template, save that tokenizer with it.",
                    f"{name} 的 token 与策略相同，对话模板却不同，读到的文本与策略写的不一样。如果它是用策略的模板训练"
                    "的，请把策略的 tokenizer 保存到它的文件夹。",
                ),
            )
        end = _ended(reader, self.row)[-1]
        if end == config.get_text_config().pad_token_id and not (of_tokens or options.missing_eos_penalty):
            token = repr(reader.convert_ids_to_tokens(end))
            self.wrong(
                "template",
                say(
                    f"{name} pads with {token}, which also ends a response, and reads its score before it: it cannot "
                    "tell responses that were cut off. Set `missing_eos_penalty`, such as 1.0.",
                    f"{name} 用 {token} 填充，而它也是回答的结束符，分数在它之前读取：看不出哪些回答被截断。请设置 "
                    "`missing_eos_penalty`，例如 1.0。",
                ),
            )

    # ---- Memory ----------------------------------------------------------------------------------------------------

    def _check_memory(self) -> None:
        if self.policy is None or not self.refused.isdisjoint({"lengths", *filter(is_model, self.args.reward_funcs)}):
            self.not_checked.append("memory")
            return
        with self.noting("options"):  # what only shows when models are made of the options
            try:
                self._compare_memory()
            except InputError:
                self.not_checked.append("memory")
                raise
            except Exception as error:  # the count runs the code of any model and optimizer without numbers
                reason = shorten(f"{type(error).__name__}: {error}", 100, placeholder=" ...")
                self.not_checked.append(f"memory ({reason})")

    def _compare_memory(self) -> None:
        """The plan's estimate beside what the machine has."""
        setup = read_setup(self.options, reward_model=None, prompt_length=self.longest)
        found, refused = counted({setup.title: setup}, devices=1)
        if refused:
            raise InputError(refused[0].removeprefix(f"{setup.title}: "))
        size, ways_out = machine_memory(self.training_args.device), {}
        memory = size and size / 2**30
        is_enough = memory is None or fits(found[setup.title], memory)
        if not is_enough:
            with suppress(Exception):  # a way out that cannot be counted is none
                found = {**counted(variants(setup), devices=1)[0], **found}
                ways_out, _ = counted(cheaper(setup), devices=1)
        _, *sentences = verdict(found, ways_out, yours=setup.title, memory=memory)
        numbers = {"bytes": found[setup.title].maximum, **({} if size is None else {"machine": size})}
        note = self.right if is_enough else self.wrong
        note("memory", " ".join([*sentences, *remarks(setup, devices=1)]), **numbers)


def skeleton(kind: type, config: PreTrainedConfig, args: PPOConfig) -> PreTrainedModel:
    """A model without weights, for checks that ask for its sizes."""
    with init_empty_weights(), quiet():
        return model_of(kind, config, args)


def machine_memory(device: torch.device) -> int | None:
    """Bytes of the GPU, or of the RAM where the device has no memory of its own; None where that is not known."""
    if device.type == "cuda":
        return torch.cuda.get_device_properties(device).total_memory
    return psutil.virtual_memory().total if device.type in ("cpu", "mps") else None


def check_has_weights(name: str) -> None:
    """Refuse a folder without a file of weights."""
    if Path(name).is_dir() and not weight_files(name):
        raise InputError(f"{name} has no weights: there is no file such as model.safetensors. Copy the whole folder.")


def is_adapter(name: str, *, task: str, revision: str | None = None) -> bool:
    """Whether a model is an adapter, which is refused if it was trained for another task."""
    if find_adapter_config_file(name, revision=revision) is None:
        return False
    from peft import PeftConfig

    given = PeftConfig.from_pretrained(name, revision=revision).task_type
    if given not in (None, task):
        raise InputError(f"{name} is an adapter with `task_type` = {given}, and one with {task} is needed here.")
    return True


def median_and_longest(lengths: PromptLengths) -> tuple[float, int]:
    """Of the numbers of tokens: the median of evenly spaced prompts, and the longest also of those with most bytes."""
    step, median_of, longest = math.ceil(sum(map(len, lengths.datasets.values())) / SAMPLE), [], 0
    for name, rows in lengths.datasets.items():
        even, long = np.arange(0, len(rows), step), np.argsort(lengths.bounds[name])[-SAMPLE:]
        numbers = np.union1d(even, long)
        chosen = rows_at(rows, numbers, "prompt", *TEMPLATE_COLUMNS)
        found = [len(ids) for some in chosen for ids in encode_rows(lengths.tokenizer, [row for _, row in some])]
        longest = max([longest, *found])
        median_of += [count for number, count in zip(numbers, found, strict=True) if number % step == 0]
    return float(np.median(median_of)), longest


def _several(count: int, noun: str) -> str:
    return f"{count} {noun}{'s' * (count != 1)}"


def _key(row: dict) -> str:
    """What two rows share that have the same prompt."""
    return json.dumps([row.get(name) for name in ("prompt", *TEMPLATE_COLUMNS)], sort_keys=True, default=str)


def _ended(tokenizer: PreTrainedTokenizerBase, row: dict) -> list[int]:
    """Ids of a prompt and a response that ended."""
    return encode_text(tokenizer, whole_text(row["prompt"], "x"), ended=True, **template_options(row))


def _no_template(name: str) -> str:
    return say(
        f"the prompts are messages, and the tokenizer of {name} has no chat template. Use prompts of text, or a model "
        "that was trained on messages.",
        f"提示是消息，而 {name} 的 tokenizer 没有对话模板。请改用文本提示，或用在消息上训练过的模型。",
    )


# ---- What is printed ------------------------------------------------------------------------------------------------


def print_checkup(*, config: str, options: list[str], as_json: bool) -> None:
    """Print what is wrong with a config file of PPO, over which `options` take precedence, and what is fine."""
    found = checkup(config, options)
    print(json.dumps(found, ensure_ascii=False, indent=2) if as_json else "\n".join(lines(found)))


def checkup(config: str, options: list[str]) -> dict:
    """What the checks say of a config: `findings`, what is `fine`, and what was not checked.

    Raises:
        InputError: The file does not hold options of `hf-instructgpt ppo`.
    """
    with redirect_stdout(sys.stderr):  # what is said, or printed, while functions are imported
        found = Checkup(["--config", config, *options])
    return {
        "config": config,
        "findings": [asdict(note) for note in found.findings],
        "fine": [asdict(note) for note in found.fine],
        "not_checked": [*dict.fromkeys(found.not_checked)],
    }


def lines(found: dict) -> list[str]:
    """The lines that say what [`checkup`] found."""
    words = ("checked before training; no weights were loaded", "训练前的检查，没有加载权重")
    shown = [f"{found['config']}{say(': ', '：')}{say(*words)}"]
    shown += [f"! {note['check']}: {note['message']}" for note in found["findings"]]
    shown += [f"{note['check']}: {note['message']}" for note in found["fine"]]
    if not found["findings"]:
        shown.append(say("Nothing found: no check failed.", "没有发现问题：各项检查都通过。"))
    if found["not_checked"]:
        shown.append(f"{say('Not checked: ', '未检查：')}{', '.join(found['not_checked'])}")
    return shown
