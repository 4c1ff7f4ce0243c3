"""`save_model()` with LoRA leaves PEFT's empty card; right is this package's, and none in a checkpoint or a critic."""

from peft import LoraConfig
from product import ppo_trainer

EMPTY = "More Information Needed"


def check(folder):
    lora = LoraConfig(r=2, target_modules=["q_proj", "v_proj"])
    trainer = ppo_trainer(folder, peft_config=lora, save_strategy="steps", save_steps=1, num_ppo_epochs=1)
    trainer.train()
    trainer.save_model()
    trainer.save_model(str(folder / "elsewhere"))
    for place in ("out", "elsewhere"):
        card = (folder / place / "README.md").read_text()
        assert "A policy trained by PPO" in card and EMPTY not in card, place
        assert (folder / place / "adapter_model.safetensors").is_file()
    for path in folder.rglob("README.md"):
        assert EMPTY not in path.read_text(), path
