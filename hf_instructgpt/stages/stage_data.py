"""The rows of a stage: loaded once, and read once for each tokenizer."""

from functools import cached_property

from datasets import Dataset
from transformers import PreTrainedConfig, PreTrainedTokenizerBase

from .arguments import StageArguments
from .load_data import check_fits, checked_split, load_rows, load_stage_datasets, rows_to_read
from .parsing import TrainerConfig


class StageData:
    """Training rows of a stage and, if its data has them, those to evaluate on; `source` names them in errors."""

    def __init__(self, args: StageArguments, kind: str, training_args: TrainerConfig, *, source: str | None = None):
        self.args, self.kind, self.source = args, kind, source or args.dataset_name
        self.is_evaluated = training_args.eval_strategy != "no"
        self.train, self.test = load_stage_datasets(args, kind, needs_eval=self.is_evaluated)
        self._read = None
        self.tokenized: Dataset | None = None  # training rows as an SFT trainer has tokenized them, for another one

    def read_by(
        self, tokenizer: PreTrainedTokenizerBase, config: PreTrainedConfig, training_args: TrainerConfig
    ) -> tuple[Dataset, Dataset | None]:
        """Training and evaluation rows as a model of this tokenizer reads them, checked that they fit it."""
        known_as = tokenizer.get_vocab(), tokenizer.chat_template, tokenizer.all_special_ids
        if self._read is None or self._read[0] != known_as:
            train, test = (rows_to_read(rows, self.args, tokenizer) for rows in (self.train, self.test))
            check_fits(train, self.kind, tokenizer, config, training_args, source=self.source)
            if test is not None and (self.is_evaluated or self.kind == "prompts"):
                check_fits(test, self.kind, tokenizer, config, training_args, source=self.source)
            self._read = known_as, (train, test)
        return self._read[1]

    def samples(self) -> Dataset:
        """Rows to show before and after training, once they were read: to evaluate on, else to train on."""
        train, test = self._read[1]
        return train if test is None else test

    @cached_property
    def held_out(self) -> tuple[str, Dataset]:
        """Name and rows of the split `test`, else of the one to evaluate on, else of the training split."""
        dataset = load_rows(self.args, self.kind)
        names = ("test", self.args.dataset_test_split, self.args.dataset_train_split)
        split = next(name for name in names if name in dataset)
        return split, checked_split(dataset, split, self.kind, source=self.args.dataset_name)
