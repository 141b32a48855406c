import pytest
from helpers import ROOT
from row_helpers import result_row, rows_as_read

from harness.results import champions, configurations, names, plotting, store


def names_of(tmp_path, rows):
    return [c.name for c in configurations.group_seeds(rows_as_read(tmp_path, rows))]


@pytest.mark.parametrize(
    "strategy, variant, name",
    [
        ("full_finetuning", "full", "Full fine-tuning"),
        ("full_finetuning", "checkpoint", "Full fine-tuning, saved checkpoint"),
        ("peft", "lora_r8", "LoRA r=8"),
        ("peft", "lora_r8_q_proj+v_proj_nf4", "LoRA r=8 on q_proj+v_proj, nf4 base"),
        ("peft", "prompt_tuning_v20", "Prompt tuning of 20 tokens"),
        ("peft", "ia3", "(IA)3"),
        ("peft", "lora_r8_pissa", "LoRA r=8, PiSSA start"),
        ("peft", "lora_r8_plus16", "LoRA+ r=8, B learns 16 times as fast"),
        ("peft", "rslora_r4_eva_attention", "rsLoRA r=4, EVA start on attention"),
        ("peft", "oft", "OFT"),
        ("peft", "miss_r64_mlp", "MiSS r=64 on mlp"),
        ("peft", "boft_from_mine", "BOFT of mine.json"),
        ("peft", "0_shot_adapter", "0-shot prompt, with an adapter"),
        ("probe", "embedder_logreg", "Probe"),
        ("probe", "lm_knn", "kNN probe on LM states"),
        ("probe", "tfidf_logreg", "Probe on TF-IDF"),
        ("probe", "checkpoint", "Probe, saved checkpoint"),
        ("prompting", "8_shot_batch_calibrated", "8-shot prompt, batch-calibrated (transductive)"),
        ("prompting", "8_shot_batch_calibrated_on_train", "8-shot prompt, batch-calibrated on training labels"),
        ("prompting", "0_shot_contextual_calibrated", "0-shot prompt, contextual-calibrated"),
        ("prompting", "searched", "Prompt chosen on its labels"),
        ("prompting", "searched_likelihood", "Prompt chosen on its labels, scored by likelihood"),
        ("prompting", "4_shot_generated", "4-shot prompt, generated answers"),
        ("prompting", "no_retrieval", "No retrieval"),
        ("rag", "k4_hybrid_flat", "RAG k=4, hybrid"),
        ("full_finetuning", "full_raft_k4", "Full fine-tuning, RAFT, 4 passages"),
        ("peft", "lora_r8_gold_k2", "LoRA r=8, trained on gold passages, 2 passages"),
        ("rag", "all_that_fits", "RAG, all passages that fit"),
        ("rag", "k4_flat_adapter", "RAG k=4, dense, with an adapter"),
        ("rag", "k4_hybrid_flat_4_shot", "RAG k=4, hybrid, 4 demonstrations"),
        ("rag", "k4_flat_2_shot_adapter", "RAG k=4, dense, with an adapter, 2 demonstrations"),
        ("prompting", "no_retrieval_4_shot", "No retrieval, 4 demonstrations"),
        ("peft", "no_retrieval_adapter", "No retrieval, with an adapter"),
        ("rag", "k4_hnsw_rerank_mmr", "RAG k=4, dense, hnsw index, reranked, MMR"),
        ("rag", "retrieval_only_bm25", "Retrieval only, BM25"),
        ("quantized", "nf4", "0-shot prompt in nf4"),
        ("quantized", "fp32_prompt_lookup4", "0-shot prompt in fp32, prompt lookup 4"),
        ("context_distillation", "8_shot_to_lora_r8", "8-shot prompt, distilled into LoRA r=8"),
        (
            "context_distillation",
            "8_shot_batch_calibrated_to_lora_r8",
            "8-shot prompt, batch-calibrated, distilled into LoRA r=8",
        ),
        ("distillation", "0_shot_batch_calibrated_to_bert", "0-shot prompt, batch-calibrated, distilled into bert"),
        ("prompting", "8_shot_nearest", "8-shot prompt, nearest demonstrations"),
        ("prompting", "searched_16_random", "Best of 16 prompts on its labels, random demonstrations"),
        ("prompting", "0_shot_cot_5_samples", "0-shot prompt, reasons first, vote of 5 answers"),
        ("probe", "embedder_logreg_contrastive", "SetFit"),
        ("probe", "embedder_names", "Zero-shot by label names"),
        ("context_distillation", "searched_to_full", "Prompt chosen on its labels, distilled into all weights"),
        ("context_distillation", "0_shot_to_full_online", "0-shot prompt, distilled into all weights, online targets"),
        ("chat", "alpaca_eval", "Chat"),
        ("cascade", "probe:tfidf_logreg:>prompting:8_shot", "Cascade of Probe on TF-IDF and 8-shot prompt"),
        ("cascade", "probe:embedder_logreg:all-MiniLM-L6-v2>peft:lora_r8", "Cascade of Probe (MiniLM) and LoRA r=8"),
        ("magic", "wand", "magic wand"),
    ],
)
def test_what_the_scripts_measure_has_a_readable_name(strategy, variant, name):
    assert names.technique({"strategy": strategy, "variant": variant, "labels_used": "0"}) == name


def test_a_name_is_technique_model_and_labels(tmp_path):
    row = {"score": 0.7, "model": "assets/models/all-MiniLM-L6-v2", "n_train": 2000}
    rows = [
        result_row(**row),
        result_row(**row, strategy="peft", variant="lora_r8", script="peft_finetune.py"),
        result_row(**{**row, "n_train": 1}),
        result_row(**row, strategy="probe", variant="embedder_logreg", script="probe.py"),
        result_row(score=0.6, strategy="quantized", variant="nf4", model="SmolLM2-135M-Instruct", flags={"x": 1}),
    ]
    rows[2]["args"] = '{"max_train_samples": 1}'
    assert names_of(tmp_path, rows) == [
        "Full fine-tuning, MiniLM, 2,000 labels",
        "LoRA r=8, MiniLM, 2,000 labels",
        "Full fine-tuning, MiniLM, 1 label",
        "Probe, MiniLM, 2,000 labels",
        "0-shot prompt in nf4, SmolLM2-135M",
    ]


def test_names_are_unique_in_every_panel_of_the_sample():
    kept, _ = configurations.select(store.read_results(ROOT / "sample_results.csv"))
    for members in configurations.panels(kept).values():
        found = [c.name for c in configurations.group_seeds(members)]
        assert len(set(found)) == len(found)
        assert max(map(len, found)) <= 80


@pytest.mark.parametrize(
    "first, second, said",
    [
        ({"language": "none"}, {"language": "english"}, ["", ", language english"]),
        # what explains the difference comes first, and the batch size is not needed then
        (
            {"label_words": ["good", "bad"], "batch_size": 8},
            {"label_words": ["yes", "no"], "batch_size": 32},
            [", label words good/bad", ", label words yes/no"],
        ),
        ({"batch_size": 16}, {"batch_size": 32}, [", batch 16", ", batch 32"]),
        ({"gradient_checkpointing": False}, {"gradient_checkpointing": True}, ["", ", gradient checkpointing"]),
        ({"max_steps": 40, "epochs": 3}, {"max_steps": None, "epochs": 2.0}, [", 40 steps", ""]),
        ({"warmup": None}, {"warmup": "none"}, [", warmup null", ', warmup "none"']),  # both read as nothing
        ({"template": "a" * 60 + "x"}, {"template": "a" * 60 + "y"}, None),  # equal where shortened
    ],
)
def test_namesakes_are_told_apart_in_words(tmp_path, first, second, said):
    found = names_of(tmp_path, [result_row(score=0.7, flags=first), result_row(score=0.6, flags=second)])
    assert found[0] != found[1]
    assert said is None or [name.removeprefix("Full fine-tuning, m") for name in found] == said


def test_models_that_share_a_short_name_are_shown_in_full():
    assert names.models(["a/SmolLM2-135M-Instruct", "a/all-MiniLM-L6-v2"]) == {
        "a/SmolLM2-135M-Instruct": "SmolLM2-135M",
        "a/all-MiniLM-L6-v2": "MiniLM",
    }
    shown = names.models(["a/SmolLM2-135M", "a/SmolLM2-135M-Instruct", "x/runs/1/model", "x/runs/2/model", "y/2/model"])
    assert list(shown.values()) == ["SmolLM2-135M", "SmolLM2-135M-Instruct", "1/model", "x/runs/2/model", "y/2/model"]


def test_what_rows_share_names_a_line():
    rows = [
        {"strategy": "peft", "variant": f"lora_r8{where}", "model": "a/m", "labels_used": "100"}
        for where in ("", "_mlp", "_query+value")
    ]
    assert names.shared(rows) == "LoRA r=8, m, 100 labels"
    rows = [{"strategy": "prompting", "variant": f"{k}_shot", "model": "a/m", "labels_used": str(k)} for k in (0, 4)]
    assert names.shared(rows) == "Prompt, m"
    rows = [{"strategy": "quantized", "variant": v, "model": "a/m", "labels_used": "0"} for v in ("nf4", "bf16")]
    assert names.shared(rows) == "0-shot prompt, m"


def test_what_is_scored_at_a_precision_is_called_by_what_it_is(tmp_path):
    base = {"strategy": "quantized", "script": "quantize_and_parallel.py", "variant": "nf4", "score": 0.6}
    rows = [
        result_row(**base, labels_used=0, flags={"precision": "nf4"}),
        result_row(**base, labels_used=500, flags={"precision": "nf4", "adapter": "runs/x/adapter"}),
        result_row(**base, labels_used=500, flags={"precision": "nf4", "model": "runs/x/model"}),
        result_row(score=0.6, strategy="prompting", variant="0_shot", script="prompt_eval.py"),
        result_row(score=0.6, strategy="peft", variant="0_shot_adapter", labels_used=500, script="prompt_eval.py"),
    ]
    rows = rows_as_read(tmp_path, rows)
    assert [names.kin(row) for row in rows] == ["prompting", "peft", "quantized", "prompting", "peft"]
    assert [names.technique(row) for row in rows[:3]] == [
        "0-shot prompt in nf4",
        "Adapter in nf4",
        "Trained model in nf4",
    ]
    assert [names.labels(row) for row in rows] == ["", "500 labels", "500 labels", "", "500 labels"]
    best = champions.by_strategy(configurations.group_seeds(rows))
    assert sorted((c.configuration.kin, c.among) for c in best) == [("peft", 2), ("prompting", 2), ("quantized", 1)]


def test_a_probe_on_a_trained_encoder_is_setfit_and_no_probe():
    assert names.kin({"strategy": "probe", "variant": "embedder_logreg_contrastive"}) == "setfit"
    assert names.kin({"strategy": "probe", "variant": "embedder_logreg"}) == "probe"


def test_each_strategy_has_its_own_colour():
    assert len(set(plotting.COLOURS.values())) == len(names.STRATEGIES)
