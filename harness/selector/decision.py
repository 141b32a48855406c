"""The Decision: what every basis fills in and explain.py puts into words."""

from dataclasses import dataclass, field
from pathlib import Path

from harness.results import commands, configurations
from harness.selector import rules
from harness.selector.candidates import LABEL_FLAGS, Candidate, Limits

# flags that describe a data set's columns and labels
DATA_FLAGS = (
    "subset",
    "columns",
    "kind",
    "text_column",
    "text_pair_column",
    "label_column",
    "question_column",
    "context_column",
    "options_column",
    "answer_column",
    "cluster_column",
    "label_words",
    "instruction",
    "template",
)
# further flags that are set for one data set and say nothing of another: its files, its size, the length of its texts
OF_ONE_DATA_SET = (
    "train_file",
    "validation_file",
    "test_file",
    "eval_ood",
    "docs",
    "index_dir",
    "encoding",
    "language",
    "max_length",
)


class Undecided(Exception):
    """Why one basis cannot answer; the next one is tried."""


@dataclass(frozen=True)
class Decision:
    """What is recommended and why. --json prints these fields under their names."""

    basis: str  # rows: measured on this data set; model: predicted from the rows; rules: rules of thumb
    task: str
    limits: Limits
    prefer: str
    choice: str | None  # the strategy; None if nothing is within the limits
    configuration: Candidate | None = None  # measured or predicted; None by rules
    precision: str | None = None  # of the weights; by rules only
    reasons: list[str] = field(default_factory=list)
    cautions: list[str] = field(default_factory=list)
    lessons: list[str] = field(default_factory=list)  # what the rows of other data say in general
    runner_up: str | None = None  # the next best strategy
    ties: list[Candidate] = field(default_factory=list)  # that tie with the choice
    others: list[Candidate] = field(default_factory=list)  # within the limits too, best first
    nearest: Candidate | str | None = None  # without a choice; a strategy by rules
    over: list[str] = field(default_factory=list)  # how the nearest breaks the limits
    relaxed: list[tuple] = field(default_factory=list)  # (limit, value that brings something within the limits)
    relax_one: bool = True  # any one of `relaxed` is enough; False: all of them are needed
    rejected: dict[str, list] = field(default_factory=dict)  # strategy -> why it is ruled out; by rules only
    untried: tuple | None = None  # (strategy, command) that the rules would try and no row measures
    break_even: str | None = None
    cost: str | None = None  # of the choice, with --price_per_hour
    command: str | None = None  # that measures the choice
    compare: str | None = None  # the command that measures every way to answer, on named data that no row measures
    serve: str | None = None  # the command of a server that answers as the choice does, where there is one
    data: str | None = None  # of the rows: data set, metric, number of evaluation examples, hardware
    metric: str = "score"
    n: str | None = None
    hardware: str | None = None
    probability: float | None = None  # of a predicted choice, or the nearest, to be within the limits
    considered: int = 0  # configurations
    elsewhere: str = ""  # a remark on rows that were not used
    not_used: list[str] = field(default_factory=list)  # why an earlier basis could not answer


def limits_of(args):
    """The Limits of the flags."""
    requests = args.requests_per_day * args.horizon_days
    return Limits(
        args.memory_gb,
        args.latency_ms,
        args.data_size,
        args.required_accuracy,
        requests,
        args.serving_memory_gb,
        args.cached,
    )


def data_of(args):
    """The data set of the flags, named as `configurations.data_name` names it ("glue sst2"); "" if none is named."""
    return " ".join(filter(None, [Path(args.dataset).name, args.subset])) if args.dataset else ""


def flags_of_data(rows, args):
    """{flag: value} of --subset, and of the columns and label words with which rows measured the data set."""
    row = next((row for row in rows if configurations.data_name(row) == data_of(args)), None)
    used = configurations.flags(row) if row and args.dataset else {}
    known = {name: used[name] for name in DATA_FLAGS if used.get(name) not in (None, "auto")}
    told = ((name, getattr(args, name, None)) for name in (*DATA_FLAGS, "encoding") if name != "subset")
    known |= {name: value for name, value in told if value is not None}
    return {**known, **({"subset": args.subset} if args.subset else {})}


def command_for(configuration, rows, args, labels=None):
    """The command that measures a configuration with the model and data set of the flags, and so many labels.

    What was set for the data set of its rows is left out. A placeholder stands for a data set that is not named, and
    for a model of which only the size is given.
    """
    row = configuration.rows[0]
    model = "gen_model" if "gen_model" in configurations.flags(row) else "model"
    changes = dict.fromkeys((*DATA_FLAGS, *OF_ONE_DATA_SET))  # None: left out
    changes |= {**flags_of_data(rows, args), "dataset": args.dataset or rules.YOUR_DATA}
    if labels is not None and any(configurations.flags(row).get(name) for name in LABEL_FLAGS):
        changes |= {**dict.fromkeys(LABEL_FLAGS), "label_budget": round(labels)}
    if row["model"] and (args.model or args.params_b):  # TF-IDF has none
        changes[model] = args.model or rules.YOUR_MODEL
    return commands.command(row, always=commands.NAMED, **changes)
