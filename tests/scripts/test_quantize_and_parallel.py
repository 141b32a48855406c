import shutil

import numpy as np
import pytest
from helpers import check_classification, predictions

import prompt_eval
import quantize_and_parallel
import utils
from harness.data import tasks
from harness.models import loading, scoring
from harness.results import store


@pytest.mark.gpu
@pytest.mark.parametrize("precision", ["fp32", "fp16", "bf16", "int8", "nf4"])
def test_every_precision(sentiment, tiny_llama, tmp_path, precision):
    flags = [
        "--results",
        str(tmp_path / "r.csv"),
        "--runs_dir",
        str(tmp_path / "runs"),
        "--max_eval_samples",
        "10",
        "--new_tokens",
        "4",
    ]
    quantize_and_parallel.main(
        ["--model", tiny_llama, "--dataset", sentiment, f"--{precision}", "--device_map", "auto", *flags]
    )
    (row,) = store.read_results(tmp_path / "r.csv")
    assert float(row["peak_gpu_gb"]) > 0 and float(row["tokens_per_s"]) > 0


@pytest.mark.gpu
def test_compiled_decoding(questions, tiny_llama, tmp_path):
    flags = [
        "--results",
        str(tmp_path / "r.csv"),
        "--runs_dir",
        str(tmp_path / "runs"),
        "--new_tokens",
        "8",
        "--prompt_tokens",
        "24",
    ]
    quantize_and_parallel.main(["--model", tiny_llama, "--dataset", questions, "--bf16", "--compile", *flags])
    (row,) = store.read_results(tmp_path / "r.csv")
    assert float(row["compile_seconds"]) > 0 and float(row["speedup"]) > 0


@pytest.fixture(scope="session")
def tiny_lora(tiny_llama, tmp_path_factory):
    """A LoRA adapter of tiny_llama that changes its outputs."""
    import peft
    import torch

    torch.manual_seed(3)
    config = peft.LoraConfig(task_type="CAUSAL_LM", target_modules=["q_proj", "v_proj"], init_lora_weights=False)
    folder = tmp_path_factory.mktemp("lora")
    peft.get_peft_model(loading.load_model(tiny_llama), config).save_pretrained(folder)
    return str(folder)


@pytest.mark.slow
def test_an_adapter_is_merged_or_said_to_be_unmerged(sentiment, tiny_llama, tiny_lora, tmp_path, out):
    flags = ["--model", tiny_llama, "--adapter", tiny_lora, "--dataset", sentiment, "--max_eval_samples", "20", *out]
    prompt_eval.main(flags)
    prompt_eval.main([*flags, "--no-merge_adapter"])
    quantize_and_parallel.main([*flags, "--new_tokens", "4", "--prompt_tokens", "20"])
    quantize_and_parallel.main([*flags, "--new_tokens", "4", "--prompt_tokens", "20", "--nf4"])
    prompt_eval.main(["--model", tiny_llama, "--dataset", sentiment, "--max_eval_samples", "20", *out])
    rows = store.read_results(tmp_path / "results.csv")
    scores = [[p["log_probs_sum"] for p in predictions(row)] for row in rows]
    notes = ["adapter merged before", "adapter unmerged", "adapter merged before", "adapter unmerged", ""]
    assert all(note in row["note"] for note, row in zip(notes, rows)) and "adapter" not in rows[4]["note"]
    assert np.allclose(scores[0], scores[1], atol=1e-4) and np.allclose(scores[0], scores[2], atol=1e-4)
    assert np.abs(np.array(scores[0]) - scores[4]).max() > 1e-2


def decode(model, questions, out, *flags):
    quantize_and_parallel.main(
        ["--model", model, "--dataset", questions, "--new_tokens", "12", *out, "--latency_runs", "4", *flags]
    )


@pytest.mark.parametrize("name", ["tiny_gpt2", "tiny_t5"])
def test_prompt_lookup_is_checked_and_its_acceptance_counted(sentiment, name, request, out, only_row, monkeypatch):
    """Against what transformers' own candidate generator is told of every draft."""
    from transformers.generation.candidate_generator import PromptLookupCandidateGenerator as Generator

    drafted, accepted = [], []
    draft, update = Generator.get_candidates, Generator.update_candidate_strategy

    def get_candidates(self, ids, *args, **kwargs):
        found = draft(self, ids, *args, **kwargs)
        drafted.append(found[0].shape[1] - ids.shape[1])
        return found

    def update_candidate_strategy(self, ids, scores, num_matches):
        accepted.append(int(num_matches))
        return update(self, ids, scores, num_matches)

    monkeypatch.setattr(Generator, "get_candidates", get_candidates)
    monkeypatch.setattr(Generator, "update_candidate_strategy", update_candidate_strategy)
    # one prompt: the two requests of the warm-up are the same again
    decode(
        request.getfixturevalue(name),
        sentiment,
        out,
        "--prompt_lookup",
        "3",
        "--latency_runs",
        "1",
        "--new_tokens",
        "90",
    )
    row = only_row()
    assert row["variant"] == "fp32_prompt_lookup3" and row["greedy_agreement"] == "1" and float(row["speedup"]) > 0
    assert sum(accepted) > 0 and len(drafted) == len(accepted)
    assert float(row["acceptance_rate"]) == pytest.approx(sum(accepted) / sum(drafted), abs=1e-5)
    assert float(row["accepted_length"]) == pytest.approx(1 + np.mean(accepted), abs=1e-5)


def test_an_assistant_that_is_the_model_itself_is_always_right(questions, tiny_llama, tiny_lora, tmp_path, out):
    decode(tiny_llama, questions, out, "--assistant_model", tiny_llama)
    decode(tiny_llama, questions, out, "--assistant_model", tiny_llama, "--assistant_adapter", tiny_lora)
    same, other = store.read_results(tmp_path / "results.csv")
    assert (
        same["variant"] == "fp32_assisted"
        and float(same["acceptance_rate"]) == 1
        and float(same["accepted_length"]) > 1.5
    )
    assert float(other["acceptance_rate"]) < 1 and same["greedy_agreement"] == other["greedy_agreement"] == "1"


def test_an_assistant_with_another_vocabulary(questions, tiny_llama, tiny_gpt2, out, only_row):
    decode(tiny_llama, questions, out, "--assistant_model", tiny_gpt2)
    row = only_row()
    assert row["greedy_agreement"] == "1" and row["variant"] == "fp32_assisted" and float(row["accepted_length"]) >= 1


@pytest.mark.slow
@pytest.mark.skipif(not shutil.which("g++"), reason="torch.compile wants a C++ compiler on a CPU")
def test_compiled_decoding_has_its_compile_time_apart(questions, tiny_llama, out, only_row, monkeypatch):
    compiled, load = [], loading.load_model
    monkeypatch.setattr(
        loading, "load_model", lambda *args, **kwargs: compiled.append(load(*args, **kwargs)) or compiled[-1]
    )
    decode(tiny_llama, questions, out, "--compile", "--prompt_tokens", "24")
    row = only_row()
    assert row["variant"] == "fp32_compiled" and float(row["compile_seconds"]) > 1 > float(row["ttft_ms"]) / 1000
    assert (
        float(row["greedy_agreement"]) == 1
        and row["acceptance_rate"] == row["latency_ms_p50"] == row["tokens_per_s"] == ""
    )
    assert compiled and all(hasattr(model, "_compiled_call") for model in compiled)


@pytest.mark.parametrize("precision", ["fp32", "bf16", "int8", "nf4"])
def test_precisions_are_measured_with_their_quality(sentiment, tiny_llama, out, only_row, precision):
    quantize_and_parallel.main(
        [
            "--model",
            tiny_llama,
            "--dataset",
            sentiment,
            f"--{precision}",
            "--max_eval_samples",
            "20",
            "--new_tokens",
            "6",
            "--prompt_tokens",
            "40",
            *out,
        ]
    )
    row = only_row()
    check_classification(row, 20)
    assert (row["strategy"], row["variant"], row["precision"]) == ("quantized", precision, precision)
    for name in ("ttft_ms", "tpot_ms", "tokens_per_s", "load_seconds", "text_perplexity", "bits_per_byte", "model_gb"):
        assert float(row[name]) > 0, name
    assert (
        "requests alone: 3, of 41 tokens" in row["note"]
        and "6 new tokens each" in row["note"]
        and int(row["prompt_tokens"]) > 20 * 8
    )
    assert row["speedup"] == row["acceptance_rate"] == row["compile_seconds"] == ""  # nothing was compared
    assert row["trainable_params"] == "0"


def test_perplexity_in_the_row_is_that_of_the_evaluation_texts(sentiment, tiny_llama, out, only_row):
    quantize_and_parallel.main(["--model", tiny_llama, "--dataset", sentiment, "--max_eval_samples", "10", *out])
    task = tasks.load_task(sentiment, max_eval_samples=10)
    nll, n, _ = scoring.perplexity(
        loading.load_model(tiny_llama), utils.load_tokenizer(tiny_llama), [ex.text for ex in task.evaluation]
    )
    assert float(only_row()["text_perplexity"]) == pytest.approx(np.exp(nll / n), rel=1e-4)


@pytest.mark.slow
def test_a_device_map_and_an_encoder_decoder(sentiment, tiny_t5, out, only_row):
    quantize_and_parallel.main(
        ["--model", tiny_t5, "--dataset", sentiment, "--device_map", "cpu", "--max_eval_samples", "10", *out]
    )
    row = only_row()
    assert (
        row["text_perplexity"] == row["bits_per_byte"] == ""
        and float(row["tokens_per_s"]) > 0
        and row["status"] in ("ok", "degenerate")
    )
