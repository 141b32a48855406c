"""The flags of a data set, which every measuring script has. Imports nothing heavy."""

import argparse

from harness.arguments import comma_list, data_seed, encoding, positive_int, user_path, whole_number

VALIDATION_CAP = 1000  # examples that choose the best checkpoint; more only costs time
CALIBRATION_CAP = 200  # inputs that a label prior is estimated on, unless they are the evaluation inputs


def add_data_args(parser, dataset="assets/data/movie_reviews"):
    """The data flags that every script shares."""
    group = parser.add_argument_group("data")
    parser.set_defaults(default_dataset=dataset)
    group.add_argument(
        "--dataset",
        type=user_path,
        help=f"hub name, folder with train|validation|test files, or one file (default: {dataset})",
    )
    group.add_argument("--subset", help="hub configuration or subfolder, such as sst2")
    for split in ("train", "validation", "test"):
        group.add_argument(
            f"--{split}_file", type=user_path, metavar="FILE", help=f"the {split} split, instead of --dataset"
        )
    group.add_argument(
        "--columns", type=comma_list, metavar="A,B,..", help="column names of a CSV or TSV without a header line"
    )
    group.add_argument(
        "--kind",
        choices=("auto", "classification", "qa", "instruction"),
        default="auto",
        help="recognised from the columns unless forced",
    )
    roles = {"text": "text", "text_pair": "text pair", "label": "label", "question": "question, or the instruction"}
    roles |= {"context": "passage of a question, or what an instruction is about", "options": "options to choose from"}
    roles |= {"answer": "answer, or the response", "cluster": "name that examples about one thing share, for intervals"}
    for role, what in roles.items():
        group.add_argument(f"--{role}_column", metavar="NAME", help=f"the column with the {what}")
    group.add_argument(
        "--encoding", type=encoding, help="of data files and documents that are not UTF-8, such as cp1252"
    )
    group.add_argument(
        "--label_words",
        type=comma_list,
        metavar="A,B,..|auto",
        help="a word for each label, in label order; auto: words out of names such as card_arrival or LOC",
    )
    group.add_argument(
        "--label_descriptions",
        type=user_path,
        metavar="FILE",
        help="a sentence about each label for prompts: JSON of label: text, or a table with columns label, description",
    )
    group.add_argument(
        "--answer_format",
        choices=("text", "number"),
        default="text",
        help="of questions; number: the last number of an answer is compared with that of the reference, as GSM8K is "
        "scored (default: %(default)s)",
    )
    group.add_argument("--instruction", help="the line that opens the prompt")
    group.add_argument("--template", help="the prompt of one example, with {text} and {text_pair}; \\n is a line break")
    group.add_argument(
        "--max_train_samples",
        type=positive_int,
        metavar="K",
        help="training examples, drawn by --data_seed (default: all)",
    )
    group.add_argument(
        "--max_validation_samples",
        type=whole_number,
        metavar="N",
        help="labelled examples that choose the checkpoint; 0: none, for few-shot studies, and the last one is kept "
        f"(default: at most {VALIDATION_CAP})",
    )
    group.add_argument(
        "--label_budget",
        type=positive_int,
        metavar="N",
        help="labelled examples that may be used in all, drawn by --data_seed from the training split in its class "
        "proportions; the strategy divides them itself (default: no budget)",
    )
    group.add_argument(
        "--max_eval_samples",
        "--n_examples",
        type=positive_int,
        metavar="N",
        help="evaluation examples, the first N of a fixed order (default: all)",
    )
    group.add_argument(
        "--data_seed",
        type=data_seed,
        default=0,
        help="draws training examples and demonstrations (default: %(default)s)",
    )


def names():
    """The names of the data flags."""
    parser = argparse.ArgumentParser(add_help=False)
    add_data_args(parser)
    return [action.dest for action in parser._actions]


def check_data_args(parser, args):
    """Fill in the default data set if neither --dataset nor files were given; refuse both. Returns args."""
    if source(args) is None and args.dataset:
        parser.error(
            "--dataset and --train_file, --validation_file, --test_file exclude each other; name all splits by files"
        )
    for name in ("max_train_samples", "max_validation_samples") if args.label_budget else ():
        if getattr(args, name) is not None:
            parser.error(f"--label_budget is for training, validation and prompts together; leave out --{name}")
    args.dataset = args.dataset or args.default_dataset
    del args.default_dataset
    return args


def source(args):
    """The data set's name, which may be on the hub; None if files are named by flags."""
    return None if args.train_file or args.validation_file or args.test_file else args.dataset
