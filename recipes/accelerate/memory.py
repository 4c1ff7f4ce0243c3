"""Measure the memory per process of each way to launch, for a Llama with 54M parameters; see README.md."""

import gc
import os
import resource

import torch
from accelerate.state import PartialState
from accelerate.utils import DistributedType
from datasets import Dataset
from transformers import LlamaConfig, LlamaForCausalLM, TrainerCallback

from hf_instructgpt.char_gpt import CharGPTTokenizer
from hf_instructgpt.ppo.config import PPOConfig
from hf_instructgpt.ppo.trainer import PPOTrainer

SIZES = {"hidden_size": 512, "intermediate_size": 1376, "num_hidden_layers": 12, "num_attention_heads": 8}
USES_FSDP = os.environ.get("ACCELERATE_USE_FSDP") == "true"


class Held(TrainerCallback):
    """Counts the bytes of all tensors in this process after a step: weights, optimizer state, rollout."""

    def on_step_end(self, args, state, control, **kwargs):
        tensors = [x for x in gc.get_objects() if type(x) in (torch.Tensor, torch.nn.Parameter)]
        storages = [x.untyped_storage() for x in tensors if x.layout == torch.strided]
        self.bytes = sum({storage.data_ptr(): storage.nbytes() for storage in storages}.values())


def main():
    has_gpu = torch.cuda.is_available()
    if USES_FSDP and not has_gpu:  # accelerate shards on GPUs only: make it take this CPU for one
        PartialState._prepare_backend = lambda self, *args: ("gloo", DistributedType.MULTI_GPU)
        PartialState.set_device = lambda self: setattr(self, "device", torch.device("cpu"))
    args = PPOConfig(
        output_dir="memory",
        use_cpu=not has_gpu and not USES_FSDP,
        max_steps=2,
        per_device_train_batch_size=2,
        max_completion_length=16,
        save_strategy="no",
        report_to=[],
    )
    tokenizer = CharGPTTokenizer.from_document()
    model = LlamaForCausalLM(LlamaConfig(**SIZES, vocab_size=32000, tie_word_embeddings=True))
    data = Dataset.from_dict({"prompt": ["a question", "another one"] * 4})
    held = Held()
    trainer = PPOTrainer(
        model,
        lambda completions, **_: [float(len(text)) for text in completions],
        args=args,
        train_dataset=data,
        processing_class=tokenizer,
        callbacks=[held],
    )
    trainer.train()
    peak = torch.cuda.max_memory_allocated() if has_gpu else 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    print(f"\nprocess {args.process_index}: {held.bytes / 1e9:.2f} GB between steps, {peak / 1e9:.2f} GB peak")


if __name__ == "__main__":
    main()
