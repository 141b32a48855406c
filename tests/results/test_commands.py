import json

import pytest

from harness.results import commands


@pytest.mark.parametrize(
    "script, argv",
    [
        ("peft_finetune.py", "--rank 4 --max_train_samples 100 --gradient_checkpointing --dataset some/data"),
        ("rag_eval.py", "--docs a b --k 2 --retriever hybrid"),
        ("prompt_eval.py", "--k_shots 8 --calibrate batch --seed 3"),
        ("quantize_and_parallel.py", "--precision nf4 --no-double_quant"),
    ],
)
def test_the_command_of_a_row_gives_the_same_run(script, argv):
    import importlib
    import shlex

    module = importlib.import_module(script.removesuffix(".py"))
    parsed = vars(module.parse_args(argv.split()))
    words = shlex.split(commands.command({"script": script, "run_id": "r", "args": json.dumps(parsed)}))
    assert words[:2] == ["python", script] and vars(module.parse_args(words[2:])) == parsed
