"""What a recommendation says about serving the choice, and about an endpoint's price."""

import json

import pytest
from row_helpers import result_row, results_csv
from selector_helpers import OWN, decide

from harness.selector.serving import serve_command


def row(script, device="cuda", variant="v", metric="token_f1", **flags):
    args = {"model": "a/m", "runs_dir": "runs", **flags}
    names = {
        "script": script,
        "device": device,
        "variant": variant,
        "metric": metric,
        "run_id": "R1",
        "precision": "bf16",
    }
    return {**names, "args": json.dumps(args)}


@pytest.mark.parametrize(
    "measured, command",
    [
        (row("prompt_eval.py"), "vllm serve a/m"),
        ({**row("prompt_eval.py"), "precision": "nf4"}, "vllm serve a/m --quantization bitsandbytes"),
        ({**row("prompt_eval.py"), "precision": "int8"}, None),  # vLLM makes no 8 bits of it
        (row("prompt_eval.py", "cpu"), "transformers serve a/m --device cpu"),
        (row("prompt_eval.py", adapter="x y"), "vllm serve a/m --enable-lora --lora-modules 'tuned=x y'"),
        (row("rag_eval.py", gen_model="b/g", model=None), "vllm serve b/g"),
        (row("finetune.py"), "vllm serve runs/R1/model"),
        (row("peft_finetune.py"), "vllm serve a/m --enable-lora --lora-modules tuned=runs/R1/adapter"),
        (row("peft_finetune.py", "cpu"), None),
        (row("finetune.py", metric="accuracy"), None),  # a classification head
        (row("prompt_eval.py", variant="checkpoint"), None),
        (row("probe.py"), None),
        ({**row("prompt_eval.py"), "args": "?"}, None),
    ],
)
def test_the_command_of_a_server(measured, command):
    assert serve_command(measured) == command


def test_the_choice_comes_with_its_server_and_its_price(tmp_path, capsys):
    prompted = {"strategy": "prompting", "script": "prompt_eval.py", "device": "cuda", "n_eval": 200}
    tokens = {"prompt_tokens": 200 * 500, "generated_tokens": 200 * 10}
    rows = [
        result_row(**prompted, **tokens, score=0.75, variant="8_shot", latency_ms_p50=400, flags={**OWN, "k_shots": 8}),
        result_row(**prompted, score=0.55, variant="0_shot", latency_ms_p50=100, flags=OWN),
    ]
    path = results_csv(tmp_path / "r.csv", rows)
    found = decide("--dataset data/d --price_in 2 --price_out 10", capsys, path)
    assert found["serve"] == "vllm serve a/m"
    # 500 tokens at 2 and 10 tokens at 10 a million are 0.0011 a request
    assert found["cost"].startswith("1.1 for 1,000 requests at an endpoint (500 tokens in and 10 out each")
    assert found["cost"].endswith("33 over the horizon")
    assert decide("--dataset data/d", capsys, path)["cost"] is None
