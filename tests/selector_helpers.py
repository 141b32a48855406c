"""Made-up rows and the calls that the selector's tests share."""

import json
import shlex

from row_helpers import result_row

import adaptive_selector
from harness.results import commands

OWN = {"model": "a/m", "dataset": "data/d"}  # flags of the rows below

BASIC = [
    result_row(score=0.83, train_seconds=80, n_train=2000, latency_ms_p50=11, peak_rss_gb=1.7, flags=OWN),
    result_row(
        score=0.81,
        strategy="peft",
        script="peft_finetune.py",
        variant="lora_r8",
        train_seconds=50,
        n_train=500,
        latency_ms_p50=12,
        flags=OWN,
    ),
    result_row(
        score=0.75, strategy="prompting", script="prompt_eval.py", variant="0_shot", latency_ms_p50=100, flags=OWN
    ),
    result_row(
        score=0.77,
        strategy="prompting",
        script="prompt_eval.py",
        variant="8_shot",
        k_shots=8,
        latency_ms_p50=400,
        flags={**OWN, "k_shots": 8},
    ),
]
BASIC = [{**row, "majority_baseline": 0.5} for row in BASIC]


def answered(data, score, strategy="rag", variant="k4_flat", **cells):
    """A row of rag_eval.py on a data set."""
    return result_row(
        score=score,
        strategy=strategy,
        variant=variant,
        script="rag_eval.py",
        metric="token_f1",
        macro_f1=None,
        dataset=f"data/{data}",
        eval_id=data,
        latency_ms_p50=900,
        flags={"gen_model": "a/m", "dataset": f"data/{data}"},
        **cells,
    )


def decide(flags, capsys, path):
    adaptive_selector.main([*flags.split(), "--json", "--results", str(path)])
    return json.loads(capsys.readouterr().out)


def parsed(command):
    """The arguments of a recommended command, as its own script reads them."""
    words = shlex.split(command)
    assert words[0] == "python"
    return commands.parse(words[1], words[2:])
