"""The parser of every script and the types of its flags' values. Imports nothing heavy."""

import argparse
import contextlib
import math
import os
import re

import utils
from harness.errors import short

INT32 = 2**31 - 1  # what the libraries behind take for a size
MOST_IN_A_BATCH = 2**20
# of --epochs auto, by the kind of data; see docs/training.md for the search
LEAST_STEPS = {"head": 400, "answers": 60}
LEAST_EPOCHS, MOST_CHECKS = 3, 10
PAIRS, PAIRS_A_STEP = 40, 16  # of SetFit: of each text, half of them of one class; the paper's (arXiv:2209.11055)


class ArgumentParser(argparse.ArgumentParser):
    """argparse's parser with the script's docstring as its manual page, and one line for a wrong flag."""

    # what people type who come from the Hugging Face examples and lm-evaluation-harness
    OTHER_NAMES = {
        "--lr": "--learning_rate",
        "--num_train_epochs": "--epochs",
        "--per_device_train_batch_size": "--batch_size",
        "--model_name_or_path": "--model",
        "--dataset_name": "--dataset",
        "--dataset_config_name": "--subset",
        "--max_seq_length": "--max_length",
        "--output_dir": "--runs_dir",
        "--lora_r": "--rank",
        "--lora_alpha": "--alpha",
        "--lora_dropout": "--dropout",
        "--load_in_8bit": "--quantize int8 or --int8",
        "--load_in_4bit": "--quantize nf4 or --nf4",
        "--num_fewshot": "--k_shots",
        "--limit": "--max_eval_samples",
        "--resume_from_checkpoint": "--resume",
        "--warmup_ratio": "--warmup",
        "--warmup_steps": "--warmup, a share of the steps",
        "--lr_scheduler_type": "--lr_scheduler",
        "--gradient_accumulation_steps": "--gradient_accumulation",
        "--peft_type": "--method",
    }

    MAY_BE_EMPTY = ("--instruction", "--template", "--system", "--query_prompt", "--passage_prompt")

    def __init__(self, description, **kwargs):
        formatter = argparse.RawDescriptionHelpFormatter
        super().__init__(description=description, formatter_class=formatter, allow_abbrev=False, **kwargs)

    def parse_known_args(self, args=None, namespace=None):
        """As argparse's own, which parse_args calls; and no value may name what can be no input and no output."""
        known, others = super().parse_known_args(args, namespace)
        for name, value in vars(known).items():
            if isinstance(value, str) and not value.strip() and f"--{name}" not in self.MAY_BE_EMPTY:
                self.error(f"--{name}: the value is empty; give one, or leave the flag out")  # $NAME that is not set?
            for item in value if isinstance(value, list) else [value]:
                if isinstance(item, str):
                    flag = f"--{name}"
                    self._check_text(flag if flag in self._option_string_actions else name, item)
        return known, others

    def _check_text(self, flag, text):
        """End with one line for a pipe or a device, and for text that no file's name and no command can hold."""
        try:
            os.fsencode(text)
        except UnicodeEncodeError:
            self.error(f"{flag}: the value holds half of a character (a lone surrogate)")
        if "\0" in text:
            self.error(f"{flag}: the value holds a NUL character")
        if any("\udc80" <= character <= "\udcff" for character in text) and not utils.exists(text):
            self.error(f"{flag}: the value holds bytes that are not UTF-8, which only the name of a file may")
        try:
            utils.look(text, flag)
        except utils.UserError as error:
            self.error(str(error))

    def error(self, message):
        if message.startswith("unrecognized arguments"):
            known = [self.OTHER_NAMES[word] for word in message.replace("=", " ").split() if word in self.OTHER_NAMES]
            message += f"; here it is called {', '.join(known)}" if known else ""
        message = utils.without_credentials(" ".join(message.split()))
        self.exit(2, f"{self.prog}: error: {message} (--help lists the flags)\n")


def number_type(kind, wanted, allowed, most=math.inf):
    """An argparse type: `kind` (int or float) of the text; an error that says what is `wanted` unless `allowed`.

    most: the largest value, inf for no limit.
    """

    def convert(text):
        with contextlib.suppress(ValueError, OverflowError):
            value = kind(text)
            if value != "auto" and value > most:
                raise argparse.ArgumentTypeError(f"must be at most {most:,}, not {short(text, 40)}")
            if allowed(value):
                return value
        raise argparse.ArgumentTypeError(f"must be {wanted}, not {short(text, 40)}")

    convert.of_numbers = True
    return convert


def at_least(least, most=INT32):
    """A type of whole numbers from `least` to `most`."""
    return number_type(int, f"a whole number of at least {least}", lambda value: value >= least, most)


# The limits are far above what anybody measures; they end typing errors at once that would overflow or run for years.
positive_int, whole_number, token_count = at_least(1), at_least(0), at_least(8)
batch_count, step_count, repeat_count = at_least(1, MOST_IN_A_BATCH), at_least(1, 10_000_000), at_least(1, 10_000)
small_count = at_least(1, 65_536)  # ranks, virtual tokens, processes
size_or_auto = number_type(
    lambda text: text if text == "auto" else int(text),
    "a whole number of at least 1, or auto",
    lambda value: value == "auto" or value >= 1,
    MOST_IN_A_BATCH,
)
seed = at_least(0, 2**32 - 1)  # numpy's range
data_seed = number_type(int, "a whole number of at least -4,294,967,295", lambda value: value > -(2**32), 2**32 - 1)
fraction = number_type(float, "a number from 0 up to, but not including, 1", lambda value: 0 <= value < 1)
positive = number_type(float, "a number above 0", lambda value: 0 < value < math.inf)
epochs = number_type(
    lambda text: text if text == "auto" else float(text),
    "a number above 0, or auto",
    lambda value: value == "auto" or value > 0,
    10_000,
)
non_negative = number_type(float, "a number of at least 0", lambda value: 0 <= value < math.inf)
share = number_type(float, "a number from 0 to 1", lambda value: 0 <= value <= 1)


def auto_epochs(n_examples, batch_size, kind):
    """Passes over the training examples of --epochs auto: at least LEAST_EPOCHS, and more until there are LEAST_STEPS.

    Few examples give few steps an epoch, and a model that has made few steps has not learnt, however often it is said
    that it was trained for 3 epochs. batch_size: examples of an optimizer step. More than MOST_CHECKS epochs are a
    multiple of so many that validation after each multiple happens at most MOST_CHECKS times.
    """
    least = LEAST_STEPS["head" if kind == "classification" else "answers"]
    passes = max(LEAST_EPOCHS, math.ceil(least / max(1, math.ceil(n_examples / batch_size))))
    every = math.ceil(passes / MOST_CHECKS)
    return every * math.ceil(passes / every)


def setfit_steps(n_texts):
    """Optimizer steps of a whole run of SetFit."""
    return math.ceil(PAIRS * n_texts / PAIRS_A_STEP)


def optimizer_steps(args, n_examples, kind):
    """Optimizer steps on one device of a run of a training script, or of probe.py --tune contrastive. args: {flag:
    value}.
    """
    most = args.get("max_steps")
    if args.get("tune") == "contrastive":
        return min(setfit_steps(n_examples), most or math.inf)
    epochs = args.get("epochs")
    if most or not epochs:
        return most or 0
    batch = args["batch_size"] * (args.get("gradient_accumulation") or 1)
    epochs = auto_epochs(n_examples, batch, kind) if epochs == "auto" else epochs
    return math.ceil(epochs * math.ceil(n_examples / batch))


def comma_list(text):
    return [part.strip() for part in text.split(",")]


def device(text):
    """auto, cpu, mps, cuda, cuda:1, .."""
    if not re.fullmatch(r"auto|cpu|mps|(cuda|xpu)(:\d{1,3})?", text):
        raise argparse.ArgumentTypeError(f"{text!r} is no device; give auto, cpu, cuda, cuda:N, xpu, xpu:N or mps")
    return text


def user_path(text):
    """A path whose ~ or ~name is the home folder, as in a shell; any other text, such as a hub name, as it is."""
    path = os.path.expanduser(text)
    if path.startswith("~") and not os.path.lexists(path):
        raise argparse.ArgumentTypeError(f"{text}: there is no home folder of that name")
    return path


def encoding(text):
    """The name of an encoding."""
    with contextlib.suppress(LookupError, ValueError):
        "".encode(text)
        return text
    raise argparse.ArgumentTypeError(f"{text}: no such encoding of text")
