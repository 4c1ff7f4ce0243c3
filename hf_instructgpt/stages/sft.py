"""Stage 1: supervised fine-tuning on demonstrations, by TRL's SFTTrainer."""

from pathlib import Path

from datasets import Dataset
from transformers import AutoModelForCausalLM, PreTrainedModel, PreTrainedTokenizerBase, set_seed
from trl import ModelConfig, SFTConfig, SFTTrainer, get_peft_config

from ..char_gpt import CharGPTConfig, CharGPTForCausalLM, CharGPTTokenizer
from ..data import SAMPLE_DATASETS, load_sample_dataset
from ..errors import InputError
from ..ppo.rollout import encode_prompt
from .arguments import SFTArguments
from .inputs import load_stage_datasets, load_tokenizer
from .output import stage_output


def run_sft(args: SFTArguments, training_args: SFTConfig, model_args: ModelConfig) -> Path:
    """Train on demonstrations and leave model, tokenizer and `trainer_state.json` in `output_dir`.

    Without `model_name_or_path` the model is a new CharGPT over the characters of the training data, of the sizes in
    `model_init_kwargs`.

    Returns:
        `Path`: `output_dir`.

    Raises:
        InputError: Data, model or options do not fit.
    """
    output_dir = Path(training_args.output_dir)
    if args.resume and output_dir.is_dir():
        return output_dir
    needs_eval = training_args.eval_strategy != "no"
    train_dataset, eval_dataset = load_stage_datasets(args, "sft", needs_eval=needs_eval)
    model, tokenizer = _model_and_tokenizer(args, training_args, model_args, train_dataset)
    with stage_output(output_dir, overwrite=args.overwrite_output_dir, resume=args.resume) as (folder, checkpoint):
        training_args.output_dir = str(folder)
        trainer = make_sft_trainer(
            model, tokenizer, training_args, train_dataset, eval_dataset if needs_eval else None, model_args
        )
        trainer.train(resume_from_checkpoint=checkpoint)
        trainer.save_model()
        trainer.save_state()
    return output_dir


def make_sft_trainer(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    training_args: SFTConfig,
    train_dataset: Dataset,
    eval_dataset: Dataset | None,
    model_args: ModelConfig,
) -> SFTTrainer:
    """SFTTrainer on a loaded model, texts cut to the model's context at most."""
    context = getattr(model.config.get_text_config(), "max_position_embeddings", None)
    if context is not None:
        training_args.max_length = min(training_args.max_length or context, context)
    if "prompt" in train_dataset.column_names:
        for row, prompt in enumerate(train_dataset["prompt"]):
            length = len(encode_prompt(tokenizer, prompt))
            if training_args.max_length is not None and length >= training_args.max_length:
                raise InputError(
                    f"row {row}: a prompt of {length} tokens leaves no room for an answer in `max_length` = "
                    f"{training_args.max_length} tokens."
                )
    return SFTTrainer(
        model=model,
        args=training_args,
        train_dataset=train_dataset,
        eval_dataset=eval_dataset,
        processing_class=tokenizer,
        peft_config=get_peft_config(model_args),
    )


def _model_and_tokenizer(
    args: SFTArguments, training_args: SFTConfig, model_args: ModelConfig, train_dataset: Dataset
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    init_kwargs = training_args.model_init_kwargs or {}
    training_args.model_init_kwargs = None  # used up here: SFTTrainer gets the model itself
    set_seed(training_args.seed)
    if model_args.model_name_or_path is not None:
        name, trust = model_args.model_name_or_path, training_args.trust_remote_code
        tokenizer = load_tokenizer(name, revision=model_args.model_revision, trust_remote_code=trust)
        model = AutoModelForCausalLM.from_pretrained(
            name,
            revision=model_args.model_revision,
            dtype=model_args.dtype,
            attn_implementation=model_args.attn_implementation,
            trust_remote_code=trust,
            **init_kwargs,
        )
        return model, tokenizer
    tokenizer = CharGPTTokenizer.from_texts(_texts(args, train_dataset))
    unknown = set(init_kwargs) - set(CharGPTConfig().to_dict())
    if unknown:
        raise InputError(f"`model_init_kwargs`: CharGPTConfig has no field {', '.join(sorted(unknown))}.")
    config = CharGPTConfig(
        vocab_size=len(tokenizer),
        pad_token_id=tokenizer.pad_token_id,
        eos_token_id=tokenizer.eos_token_id,
        **init_kwargs,
    )
    return CharGPTForCausalLM(config), tokenizer


def _texts(args: SFTArguments, train_dataset: Dataset) -> list[str]:
    """All texts a new vocabulary must cover; of a sample data set, those of its other stages too."""
    datasets = [train_dataset]
    if args.dataset_name in SAMPLE_DATASETS:
        configs = SAMPLE_DATASETS[args.dataset_name]
        datasets = [load_sample_dataset(args.dataset_name, config)["train"] for config in configs]
    return [str(row) for dataset in datasets for row in dataset]
