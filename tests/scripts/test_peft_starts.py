import json
import re
from pathlib import Path

import peft
import torch
from helpers import predictions, reviews, write_jsonl

import peft_finetune
import prompt_eval
from harness.models import adapters, loading
from harness.results import store


def test_the_adapter_of_a_trained_head_names_its_labels_in_the_heads_order(tiny_classifier, tmp_path, out, only_row):
    rows = [{"text": row["text"], "label": row["label"].replace("positive", "good")} for row in reviews(3, 60)]
    rows = [{**row, "label": row["label"].replace("negative", "bad")} for row in rows]
    write_jsonl(tmp_path / "train.jsonl", rows[:40])
    write_jsonl(tmp_path / "test.jsonl", rows[40:])
    flags = ["--model", tiny_classifier, "--dataset", str(tmp_path), "--batch_size", "8", *out]
    peft_finetune.main([*flags, "--max_steps", "30", "--learning_rate", "1e-2"])
    row = only_row()
    assert json.loads((Path(row["run_dir"]) / "adapter/labels.json").read_text()) == ["good", "bad"]
    assert float(row["score"]) > 0.7, "learns the labels that its head says"
    again = ["--adapter", f"{row['run_dir']}/adapter", "--results", str(tmp_path / "again.csv")]
    prompt_eval.main([*flags, *again])
    (other,) = store.read_results(tmp_path / "again.csv")
    assert [p["scores"] for p in predictions(other)] == [p["scores"] for p in predictions(row)]


def test_eva_sees_padded_batches(questions, tiny_llama, out, only_row):
    flags = ["--model", tiny_llama, "--dataset", questions, "--max_steps", "2", "--batch_size", "4", *out]
    peft_finetune.main([*flags, "--init", "eva", "--padding_free"])
    assert only_row()["status"] == "ok"


def test_trained_token_embeddings_change_outputs(tiny_llama):
    model, tokenizer = loading.load_model(tiny_llama), loading.load_tokenizer(tiny_llama)
    tokens = tokenizer("|user|", add_special_tokens=False).input_ids[:1]
    adapted = peft.get_peft_model(model, peft.TrainableTokensConfig(token_indices=tokens))
    assert not adapters.changes_outputs(adapted, tokenizer)
    with torch.no_grad():
        next(p for p in adapted.parameters() if p.requires_grad).add_(1.0)
    assert adapters.changes_outputs(adapted, tokenizer)


def test_the_manual_page_has_the_default_rates():
    rows = re.findall(r"^    (\w+) .* (-|\S+e-\d) +(\d\S*e-\d)$", peft_finetune.__doc__, re.MULTILINE)
    told = {name: tuple(None if rate == "-" else float(rate) for rate in rates) for name, *rates in rows}
    assert {**peft_finetune.LEARNING_RATES, "qlora": peft_finetune.LEARNING_RATES["lora"]} == told
