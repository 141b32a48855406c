"""What only a CUDA GPU can show; skipped where there is none."""

import numpy as np
import pytest
from conftest import predictions

import finetune
import inference
import models
import peft_finetune
import quantize_and_parallel
import utils

pytestmark = pytest.mark.gpu


def test_fp16_training_fills_in_the_gpu_columns(sentiment, tiny_bert, tmp_path):
    flags = ["--results", str(tmp_path / "r.csv"), "--runs_dir", str(tmp_path / "runs"), "--latency_runs", "3"]
    finetune.main(["--model", tiny_bert, "--dataset", sentiment, "--fp16", "--epochs", "3", "--learning_rate", "2e-3", *flags])
    (row,) = utils.read_results(tmp_path / "r.csv")
    assert (row["device"], row["precision"]) == ("cuda", "fp16") and row["device_name"]
    assert 0 < float(row["peak_gpu_gb"]) <= float(row["peak_gpu_reserved_gb"])
    assert len(predictions(row)) == 60


@pytest.mark.parametrize("quantize", ["int8", "nf4"])
def test_lora_on_a_quantized_base(sentiment, tiny_bert, tmp_path, quantize):
    flags = ["--results", str(tmp_path / "r.csv"), "--runs_dir", str(tmp_path / "runs"), "--max_steps", "3"]
    peft_finetune.main(["--model", tiny_bert, "--dataset", sentiment, "--quantize", quantize, *flags])
    assert utils.read_results(tmp_path / "r.csv")[0]["precision"] == quantize


@pytest.mark.parametrize("precision", ["fp32", "fp16", "bf16", "int8", "nf4"])
def test_every_precision(sentiment, tiny_llama, tmp_path, precision):
    flags = ["--results", str(tmp_path / "r.csv"), "--runs_dir", str(tmp_path / "runs"), "--max_eval_samples", "10", "--new_tokens", "4"]
    quantize_and_parallel.main(["--model", tiny_llama, "--dataset", sentiment, f"--{precision}", "--device_map", "auto", *flags])
    (row,) = utils.read_results(tmp_path / "r.csv")
    assert float(row["peak_gpu_gb"]) > 0 and float(row["tokens_per_s"]) > 0


def test_compiled_decoding(questions, tiny_llama, tmp_path):
    flags = ["--results", str(tmp_path / "r.csv"), "--runs_dir", str(tmp_path / "runs"), "--new_tokens", "8", "--prompt_tokens", "24"]
    quantize_and_parallel.main(["--model", tiny_llama, "--dataset", questions, "--bf16", "--compile", *flags])
    (row,) = utils.read_results(tmp_path / "r.csv")
    assert float(row["compile_seconds"]) > 0 and float(row["speedup"]) > 0


def test_the_gpu_scores_as_the_processor_does(tiny_llama):
    tokenizer, prompts = utils.load_tokenizer(tiny_llama), ["the film was " + "very " * n + "good answer:" for n in range(12)]
    scores = [inference.score_labels(models.load_model(tiny_llama, device=device), tokenizer, prompts, [" good", " not bad"], 5).total
              for device in ("cpu", "cuda")]  # fmt: skip
    assert np.abs(scores[0] - scores[1]).max() < 1e-2  # TF32 and other kernels
    assert utils.gpu_memory_used() >= 0
