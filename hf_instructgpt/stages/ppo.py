"""Stage 3: PPO against the reward model, by our PPOTrainer."""

from pathlib import Path

from transformers import AutoModelForCausalLM
from trl import ModelConfig

from ..errors import InputError
from ..ppo.config import PPOConfig
from ..ppo.trainer import PPOTrainer
from .arguments import PPOArguments
from .inputs import check_model_path, load_reward_func, load_stage_datasets, load_tokenizer
from .output import stage_output


def run_ppo(args: PPOArguments, training_args: PPOConfig, model_args: ModelConfig) -> Path:
    """Train a policy against reward functions; leave policy, critic and `trainer_state.json` in `output_dir`.

    Returns:
        `Path`: `output_dir`.

    Raises:
        InputError: Data, models or options do not fit.
    """
    if not args.reward_funcs:
        raise InputError("`reward_funcs` is missing: at least one reward model or Python function.")
    output_dir = Path(training_args.output_dir)
    if args.resume and output_dir.is_dir():
        return output_dir
    needs_eval = training_args.eval_strategy != "no"
    train_dataset, eval_dataset = load_stage_datasets(args, "prompts", needs_eval=needs_eval)
    name = model_args.model_name_or_path
    check_model_path(name)
    trust = training_args.trust_remote_code
    tokenizer = load_tokenizer(name, revision=model_args.model_revision, trust_remote_code=trust)
    reward_funcs = [load_reward_func(func) for func in args.reward_funcs]
    model = AutoModelForCausalLM.from_pretrained(
        name,
        revision=model_args.model_revision,
        dtype=model_args.dtype,
        attn_implementation=model_args.attn_implementation,
        trust_remote_code=trust,
        **(training_args.model_init_kwargs or {}),
    )
    with stage_output(output_dir, overwrite=args.overwrite_output_dir, resume=args.resume) as (folder, checkpoint):
        training_args.output_dir = str(folder)
        trainer = PPOTrainer(
            model,
            reward_funcs,
            args=training_args,
            train_dataset=train_dataset,
            eval_dataset=eval_dataset,
            processing_class=tokenizer,
        )
        trainer.train(resume_from_checkpoint=checkpoint)
        trainer.save_model()
        trainer.save_state()
    return output_dir
