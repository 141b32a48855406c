"""The flags that scripts share: data (data_flags), training, run. Imports nothing heavy.

Choices of flags that belong to one script stand here too if heavy modules need them as well.
"""

import argparse
import gc

from harness.arguments import (
    ArgumentParser,
    batch_count,
    comma_list,
    device,
    encoding,
    epochs,
    fraction,
    non_negative,
    number_type,
    positive,
    positive_int,
    repeat_count,
    seed,
    share,
    size_or_auto,
    small_count,
    step_count,
    token_count,
    user_path,
    whole_number,
)
from harness.data_flags import CALIBRATION_CAP, VALIDATION_CAP, add_data_args, check_data_args, source

__all__ = ["ArgumentParser", "comma_list", "fraction", "non_negative", "number_type", "positive", "positive_int"]
__all__ += ["CALIBRATION_CAP", "VALIDATION_CAP", "add_data_args", "check_data_args", "source"]
# scripts know these as flags.positive_int and so on
__all__ += ["device", "encoding", "seed", "share", "small_count", "user_path", "whole_number"]
OPTIMIZERS = (
    "adamw_torch",
    "adamw_torch_fused",
    "adafactor",
    "sgd",
    "adamw_8bit",
    "paged_adamw_8bit",
    "paged_adamw_32bit",
)
SAMPLING_TEMPERATURE = 0.7  # of --samples, as in Wang et al. 2023
PRECISIONS = ("fp32", "fp16", "bf16", "int8", "nf4")  # of a model's weights
DATA_FORMATS = ("jsonl", "json", "csv", "tsv", "parquet")  # of a local data set
# of rag_eval.py: FAISS indexes, and the languages that have both bm25s' stop words and a Snowball stemmer
INDEX_KINDS = ("flat", "ivf", "hnsw", "ivfpq", "sq8")
BM25_LANGUAGES = ("english", "german", "french", "spanish", "italian", "portuguese", "dutch", "swedish", "norwegian")
BM25_LANGUAGES += ("russian", "turkish", "none")
BENCHMARKS = {"alpaca_eval": "tatsu-lab/alpaca_eval", "mt_bench": "lmsys/mt-bench"}  # name -> repository on the hub
# of prepare_data.py: what it converts -> the arguments of load_dataset, and how it splits
HUB_DATA = {
    "alpaca": ("tatsu-lab/alpaca",),
    "dolly": ("databricks/databricks-dolly-15k",),
    "mnli": ("nyu-mll/glue", "mnli"),
    "hans": ("jhu-cogsys/hans",),
}
SPLIT_SEED, SPLIT_FRACTIONS = 13, (0.8, 0.1, 0.1)  # train, validation, test


FLASH = "flash_attention_2"  # needs 16 bits
ATTENTION = ("sdpa", "eager", FLASH)


def add_precision_args(group, of="of the weights", default="auto"):
    """--precision and --attn_implementation of a model that is not trained."""
    usual = "auto: that of the checkpoint on a GPU, fp16 for bf16 where it does not compute in that; fp32 on a CPU "
    group.add_argument(
        "--precision", choices=("auto", *PRECISIONS), default=default, help=f"{of}; {usual}(default: %(default)s)"
    )
    group.add_argument("--attn_implementation", choices=ATTENTION, help="(default: the model's own)")


def add_training_args(parser, resume=True, padding_free=True, tune=True):
    """The flags of every training script; resume, padding_free, tune: those that not every one has."""
    group = parser.add_argument_group("training")
    group.add_argument(
        "--epochs",
        type=epochs,
        default="auto",
        metavar="N|auto",
        help="passes over the training examples; auto: 3, more where these are few steps (default: %(default)s)",
    )
    group.add_argument("--max_steps", type=step_count, help="optimizer steps to train for, instead of --epochs")
    group.add_argument("--learning_rate", type=positive, help="peak learning rate (default: by method and data)")
    group.add_argument(
        "--warmup", type=fraction, default=0.06, help="share of the steps that warm up (default: %(default)s)"
    )
    group.add_argument(
        "--lr_scheduler",
        choices=("linear", "cosine", "constant_with_warmup"),
        default="linear",
        help="(default: linear)",
    )
    group.add_argument(
        "--weight_decay", type=non_negative, default=0.01, help="of the optimizer (default: %(default)s)"
    )
    on_cuda = "8bit and paged ones are bitsandbytes', on CUDA only (default: %(default)s)"
    group.add_argument("--optim", choices=OPTIMIZERS, default="adamw_torch_fused", help=on_cuda)
    group.add_argument(
        "--gradient_accumulation", type=positive_int, default=1, metavar="N", help="batches of one optimizer step"
    )
    group.add_argument(
        "--gradient_checkpointing",
        action="store_true",
        help="compute activations again in the backward pass: less memory",
    )
    if tune:
        group.add_argument(
            "--tune",
            type=positive_int,
            metavar="N",
            help="first try N settings (learning rate, length, batch; LoRA: rank, alpha, layers) on parts of the "
            "training examples, then train on all of them with the best",
        )
        group.add_argument(
            "--head_start",
            choices=("logreg", "random"),
            default="logreg",
            help="a new classification head begins as a logistic regression on the frozen features (default: logreg)",
        )
        group.add_argument(
            "--head_reads",
            choices=("auto", "own"),
            default="auto",
            help="a new classification head on a sentence-transformers checkpoint reads the mean of all tokens; own: "
            "what its architecture reads, the first token (default: auto)",
        )
    group.add_argument(
        "--forgetting",
        action=argparse.BooleanOptionalAction,
        default=True,
        help="score a language model on general text and on another task, before and after (default: on)",
    )
    group.add_argument(
        "--early_stopping", type=positive_int, metavar="N", help="stop after N checkpoints without a better one"
    )
    group.add_argument(
        "--save_steps", type=positive_int, metavar="N", help="a checkpoint each N steps, instead of each epoch"
    )
    group.add_argument(
        "--max_length", type=token_count, help="tokens an example is cut to (default: 512, or what the model takes)"
    )
    mixed = group.add_mutually_exclusive_group()
    mixed.add_argument("--fp16", action="store_true", help="mixed precision with float16 (CUDA only)")
    mixed.add_argument(
        "--bf16", action="store_true", help="mixed precision with bfloat16: computes in it, the weights stay --weights"
    )
    group.add_argument(
        "--weights",
        choices=("fp32", "bf16"),
        default="fp32",
        help="of the model in memory, 4 or 2 bytes a parameter; AdamW adds 12 or 6 for each trained one "
        "(default: %(default)s)",
    )
    group.add_argument("--attn_implementation", choices=ATTENTION, help="(default: the model's own)")
    if resume:
        group.add_argument(
            "--resume",
            nargs="?",
            const="auto",
            metavar="RUN_DIR",
            help="continue an interrupted run from its last checkpoint: the newest run with these flags, or RUN_DIR",
        )
    group = parser.add_argument_group("answers (question answering and instructions)")
    group.add_argument(
        "--prompt_format",
        choices=("plain", "chat", "auto"),
        default="auto",
        help="chat: the tokenizer's chat template; auto: chat if there is a template (default: %(default)s)",
    )
    group.add_argument(
        "--max_new_tokens", type=positive_int, help="of an evaluation answer (default: 32, 256 for instructions)"
    )
    if padding_free:
        group.add_argument(
            "--padding_free",
            action="store_true",
            help="a batch is one row without padding; for causal models, fast only with flash_attention_2",
        )
    add_study_args(parser)


def add_study_args(parser, ood="also score out of domain: a data set with the same labels, or HANS for MNLI"):
    """The flags of scripts that learn from labels: several draws of them, and another domain; ood: the help of it."""
    group = parser.add_argument_group("study")
    group.add_argument(
        "--repeats",
        type=repeat_count,
        default=1,
        metavar="N",
        help="runs over N data seeds from --data_seed on, a row each (default: 1)",
    )
    group.add_argument("--eval_ood", type=user_path, metavar="DATASET", help=ood)


def check_training_args(parser, args):
    """Cross-checks that need no library. Returns args."""
    if getattr(args, "resume", None) and (args.repeats > 1 or args.tune):
        flag = "--repeats" if args.repeats > 1 else "--tune"
        parser.error(f"--resume goes on with one training; leave out {flag}")
    if args.max_steps and args.epochs != parser.get_default("epochs"):
        parser.error("--max_steps replaces --epochs; give one of them")
    if args.fp16 and args.weights == "bf16":
        parser.error("--fp16 scales gradients of fp32 weights; with --weights bf16 take --bf16 or neither")
    if args.attn_implementation == FLASH and args.weights == "fp32" and not (args.bf16 or args.fp16):
        parser.error(f"--attn_implementation {FLASH} computes in 16 bits; add --bf16, --fp16 or --weights bf16")
    return args


def repeats(args):
    """The arguments of each of --repeats runs: data seeds that follow each other."""
    for i in range(args.repeats):
        gc.collect()  # what the run before held in reference cycles: its model, its optimizer
        yield argparse.Namespace(**{**vars(args), "data_seed": args.data_seed + i})


def add_common_args(parser, auto_batch=False):
    """The flags that every measuring script shares; call it last, after the strategy's own.

    auto_batch: --batch_size may be auto, for scripts that do not train.
    """
    group = parser.add_argument_group("run")
    if auto_batch:
        group.add_argument(
            "--batch_size",
            type=size_or_auto,
            default="auto",
            metavar="N|auto",
            help="most examples in one pass; auto: as many as a token budget allows, halved if memory runs out "
            " (default: %(default)s)",
        )
    else:
        group.add_argument(
            "--batch_size", type=batch_count, default=16, help="examples per batch and process (default: %(default)s)"
        )
    group.add_argument(
        "--device",
        type=device,
        default="auto",
        help="cpu, cuda, cuda:N, xpu, xpu:N or mps; auto takes a GPU where torch sees one (default: %(default)s)",
    )
    group.add_argument("--seed", type=seed, default=0, help="initialisation and shuffling (default: %(default)s)")
    group.add_argument(
        "--latency_runs",
        type=whole_number,
        default=20,
        metavar="N",
        help="requests timed one at a time; 0 skips (default: %(default)s)",
    )
    group.add_argument(
        "--thinking",
        action=argparse.BooleanOptionalAction,
        help="chat templates of thinking models: --no-thinking asks for the answer at once (default: the template's)",
    )
    group.add_argument(
        "--trust_remote_code", action="store_true", help="run code that a model repository ships (off by default)"
    )
    add_output_args(group)


def add_context_args(parser):
    """The flags of questions with retrieved passages (RAFT), for scripts that train on questions."""
    group = parser.add_argument_group("retrieved passages (RAFT); the flags are those of rag_eval.py")
    group.add_argument(
        "--context",
        choices=("gold", "retrieved"),
        help="train on questions with their own passage, or with retrieved ones, and answer with retrieved ones "
        "(default: passages as the data have them)",
    )
    group.add_argument("--k", type=positive_int, metavar="N", help="passages in a prompt (default: 4)")
    group.add_argument(
        "--gold_share",
        type=share,
        metavar="SHARE",
        help="retrieved: of the training questions, so many have their own passage among the others (default: 0.8)",
    )
    group.add_argument("--embed_model", metavar="MODEL", help="(default: that of rag_eval.py)")
    group.add_argument("--retriever", choices=("dense", "bm25", "hybrid"), help="(default: hybrid)")
    group.add_argument("--chunk_tokens", type=positive_int, metavar="N", help="most tokens of a passage")
    group.add_argument("--docs", metavar="PATH", nargs="+", help="(default: the data set's corpus.jsonl or passages)")
    group.add_argument("--index_dir", metavar="DIR", help="where the index is stored")


def check_context_args(parser, args):
    """Fill in the defaults of --context, and refuse its flags without it. Returns args."""
    of_context = {"k": 4, "gold_share": 0.8, "embed_model": None, "retriever": None, "chunk_tokens": None}
    of_context.update(docs=None, index_dir=None)
    given = [f"--{name}" for name in of_context if getattr(args, name) is not None]
    if given and not args.context:
        parser.error(f"{given[0]} belongs to --context")
    if args.context == "gold" and args.gold_share not in (None, of_context["gold_share"]):
        parser.error("--gold_share belongs to --context retrieved")
    for name, value in of_context.items() if args.context else ():
        setattr(args, name, value if getattr(args, name) is None else getattr(args, name))
    return args


def with_context(variant, args):
    """A row's variant, with what --context adds: lora_r8_raft_k4, full_gold_k4."""
    return variant + (f"_{'raft' if args.context == 'retrieved' else 'gold'}_k{args.k}" if args.context else "")


def add_output_args(group):
    """Where a run leaves its row and its folder."""
    group.add_argument(
        "--results", default="results.csv", help="the CSV that gets this run's row (default: %(default)s)"
    )
    group.add_argument("--runs_dir", default="runs", help="where the run's folder is made (default: %(default)s)")
