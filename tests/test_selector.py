"""The decision: from comparable rows, from a model of the rows, from rules; and the memory forecast."""

import argparse
import dataclasses
import importlib
import json
import math
import random
import re

import pytest
from conftest import result_row, results_csv

import adaptive_selector
import forecast
import prediction
import rows as table
import rules
import selection
import utils

BASIC = [
    result_row(score=0.83, train_seconds=80, n_train=2000, latency_ms_p50=11, peak_rss_gb=1.7, majority_baseline=0.5),
    result_row(score=0.81, strategy="peft", script="peft_finetune.py", variant="lora_r8", train_seconds=50, n_train=500,
               latency_ms_p50=12, majority_baseline=0.5),
    result_row(score=0.75, strategy="prompting", script="prompt_eval.py", variant="0_shot", latency_ms_p50=100, majority_baseline=0.5),
    result_row(score=0.77, strategy="prompting", script="prompt_eval.py", variant="8_shot", k_shots=8, latency_ms_p50=400,
               flags={"k_shots": 8}, majority_baseline=0.5),
]  # fmt: skip


def decide(flags, capsys, path):
    adaptive_selector.main([*flags.split(), "--json", "--results", str(path)])
    return json.loads(capsys.readouterr().out)


@pytest.fixture
def basic(tmp_path):
    return results_csv(tmp_path / "r.csv", BASIC)


# ----------------------------------------------------------------------------------------------------------------- from rows


@pytest.mark.parametrize("flags, variant", [
    ("--data_size 5000 --required_accuracy 0.82", "full"), ("--data_size 1000", "lora_r8"), ("--data_size 0", "0_shot"),
    ("--data_size 5000 --memory_gb 1.5", "lora_r8"), ("--data_size 5000 --prefer memory", "lora_r8"),
    ("--data_size 5000 --prefer latency", "full"), ("--data_size 8 --required_accuracy 0.76", "8_shot"),
    ("--data_size 5000 --prefer cost --requests_per_day 1 --horizon_days 1", "0_shot"), ("--data_size 5000 --prefer cost", "full"),
])  # fmt: skip
def test_the_best_measured_row_within_the_limits_is_chosen(flags, variant, basic, capsys):
    found = decide(flags, capsys, basic)
    assert found["basis"] == "rows" and found["configuration"]["name"].startswith(f"{found['choice']} {variant}, m")
    assert found["configuration"]["rows"] and found["configuration"]["command"].startswith("python ")


def test_a_tie_goes_to_the_cheaper(basic, capsys):
    """0.83 and 0.81 with a standard error of 0.026 tie; few requests make the shorter training cheaper, many the faster answer."""
    few = decide("--data_size 5000 --requests_per_day 100 --horizon_days 1", capsys, basic)
    many = decide("--data_size 5000 --requests_per_day 100000", capsys, basic)
    assert (few["choice"], many["choice"]) == ("peft", "full_finetuning") and len(few["ties"]) == len(many["ties"]) == 1


def test_nothing_fits_says_what_is_nearest_and_what_to_relax(basic, capsys):
    found = decide("--data_size 0 --latency_ms 60 --required_accuracy 0.7", capsys, basic)
    assert found["choice"] is None and found["nearest"]["name"].startswith("prompting 0_shot") and found["over"] == ["over by 40 ms"]
    assert found["relaxed"] == {"latency_ms": 100, "data_size": 500}
    adaptive_selector.main(["--data_size", "0", "--latency_ms", "60", "--required_accuracy", "0.7", "--results", basic])
    said = capsys.readouterr().out
    assert "Nothing fits. The nearest is prompting 0_shot" in said and "relax latency to 100 ms or labelled examples to 500" in said


@pytest.mark.parametrize("flags", ["--latency_ms 5", "--memory_gb 0.5", "--required_accuracy 0.99",
    "--data_size 3 --required_accuracy 0.76",
                                   "--latency_ms 5 --required_accuracy 0.99"])  # fmt: skip
def test_the_relaxed_limits_that_are_printed_let_something_in(flags, tmp_path, capsys):
    rows = [
        {**row, "latency_ms_p50": row["latency_ms_p50"] + 0.4, "peak_rss_gb": row["peak_rss_gb"] + 0.0049, "score": row["score"] + 0.0006}
        for row in BASIC
    ]
    path = results_csv(tmp_path / "r.csv", rows)
    adaptive_selector.main([*flags.split(), "--results", path])
    said = capsys.readouterr().out
    (advice,) = [line for line in said.splitlines() if line.startswith("Something fits if you relax")]
    names = {"latency": "latency_ms", "memory": "memory_gb", "labelled examples": "data_size", "accuracy": "required_accuracy"}
    options = re.findall(r"(latency|memory|labelled examples|accuracy) to ([0-9.]+)", advice)
    assert options
    given = dict(zip(flags.split()[::2], flags.split()[1::2]))
    for some in [options] if " and " in advice else [[option] for option in options]:
        relaxed = {**given, **{f"--{names[name]}": value for name, value in some}}
        assert decide(" ".join(f"{k} {v}" for k, v in relaxed.items()), capsys, path)["choice"], relaxed


def test_a_close_time_is_a_tie_and_an_unknown_one_never_wins(tmp_path, capsys):
    rows = [
        result_row(score=0.61, latency_ms_p50=12.0, n_train=100, flags={"max_train_samples": 100}),
        result_row(score=0.81, latency_ms_p50=12.8, n_train=2000, flags={"max_train_samples": 2000}),
        result_row(score=0.90, latency_ms_p50=None, strategy="prompting", script="prompt_eval.py", variant="0_shot"),
    ]
    path = results_csv(tmp_path / "r.csv", rows)
    for prefer in ("latency", "cost"):
        assert decide(f"--prefer {prefer}", capsys, path)["configuration"]["score"] == 0.81


def test_a_checkpoint_scored_again_knows_nothing_of_its_training(tmp_path, capsys):
    rows = [*BASIC, result_row(score=0.95, strategy="peft", script="prompt_eval.py", variant="0_shot_adapter", flags={"adapter": "runs/x"}),
            result_row(score=0.96, strategy="full_finetuning", script="prompt_eval.py", variant="checkpoint")]  # fmt: skip
    assert decide("", capsys, results_csv(tmp_path / "r.csv", rows))["configuration"]["score"] < 0.9


def test_any_relaxed_limit_lets_something_in():
    rng = random.Random(0)

    def some(_):
        return selection.Candidate(
            "c", "peft", rng.random(), rng.uniform(1, 100), rng.uniform(1, 10), rng.choice([0, 10, 100]), rng.uniform(0, 50)
        )

    tried = 0
    for _ in range(300):
        candidates = [some(i) for i in range(5)]
        limits = selection.Limits(rng.uniform(1, 6), rng.uniform(1, 50), rng.choice([0, 50]), rng.uniform(0.3, 1))
        choice, ties, kept = selection.choose(candidates, limits)
        expected = [c for c in candidates if c.memory_gb <= limits.memory_gb and c.latency_ms <= limits.latency_ms
                    and c.labels <= limits.data_size and c.score >= limits.required_accuracy]  # fmt: skip
        assert sorted(kept, key=id) == sorted(expected, key=id)
        assert choice is None if not expected else choice.score == max(c.score for c in expected)
        if not expected:
            near, relaxed, alone = selection.nearest(candidates, limits)
            worst = {id(c): max(excess for _, _, excess, _ in selection.obstacles(c, limits)) for c in candidates}
            assert worst[id(near)] == min(worst.values())
            if not alone:
                assert selection.choose(candidates, dataclasses.replace(limits, **dict(relaxed)))[0] is not None
                continue
            for name, value in relaxed:
                tried += 1
                assert selection.choose(candidates, dataclasses.replace(limits, **{name: value}))[0] is not None
                tighter = value * (1.001 if name == "required_accuracy" else 0.999)
                if name != "data_size":
                    assert selection.choose(candidates, dataclasses.replace(limits, **{name: tighter}))[0] is None
    assert tried > 50


def test_after_the_break_even_both_have_cost_the_same():
    trained = selection.Candidate("t", "peft", 0.8, 10.0, 1.0, 100, 300.0)
    plain = selection.Candidate("p", "prompting", 0.8, 160.0, 1.0, 0, 0.0)
    requests, days = selection.break_even(trained, plain, 500)
    assert trained.cost_seconds(requests) == pytest.approx(plain.cost_seconds(requests)) and days == requests / 500 == 4
    assert selection.break_even(plain, trained, 500) is None


def test_rows_of_other_tasks_data_and_sizes_are_not_compared(basic, capsys, tmp_path):
    assert decide("--task qa", capsys, basic)["basis"] == "rules" and decide("--dataset elsewhere/x", capsys, basic)["basis"] == "rules"
    assert decide("--dataset elsewhere/d", capsys, basic)["basis"] == "rows"
    found = decide("--params_b 8 --data_size 500 --memory_gb 24", capsys, basic)
    assert found["basis"] == "rules" and "0.02 to 0.02 billion parameters, not near 8" in found["not_used"][0]
    other = [dict(BASIC[0], eval_id="other", run_id="a", score=0.99), *BASIC]
    found = decide("--data_size 5000", capsys, results_csv(tmp_path / "o.csv", other))
    assert found["configuration"]["score"] < 0.9, "another set of examples says nothing"


def test_baselines_and_retrieval_alone_are_never_chosen(capsys, tmp_path):
    rows = [
        result_row(score=s, strategy="rag", script="rag_eval.py", variant=v, metric=m, macro_f1=None, eval_id="q")
        for s, v, m in ((0.9, "gold_passage", "token_f1"), (0.3, "k4_flat", "token_f1"), (0.95, "retrieval_only_flat", "ndcg_at_10"))
    ]
    assert decide("--knowledge_heavy", capsys, results_csv(tmp_path / "r.csv", rows))["configuration"]["score"] == pytest.approx(0.3)


@pytest.mark.parametrize("rows, basis", [
    ([], "rules"), ([result_row(score=None, status="oom", note="out of memory")], "rules"),
    ([{**result_row(score=0.5), "score": float("nan")}], "rules"), ([result_row(score=0.7)], "rows"),
    ([result_row(score=0.7, strategy="magic", variant="wand", script="magic.py")], "rows"),
    ([result_row(score=0.7, latency_ms_p50=None, peak_rss_gb=None, score_low=None, score_high=None)], "rows"),
    ([{**result_row(score=0.7), "latency_ms_p50": float("inf")}], "rows"), ([{**result_row(score=0.7), "n_eval": "100.0"}], "rows"),
    ([{**result_row(score=0.7), "n_eval": None, "script": None}], "rows"),
])  # fmt: skip
def test_poor_rows_have_a_clear_answer(rows, basis, capsys, tmp_path):
    path = tmp_path / "r.csv"
    path.write_text(",".join(utils.RESULT_COLUMNS) + "\n")
    results_csv(path, rows)
    for flags in ("", "--explain", "--json", "--latency_ms 5 --memory_gb 0.5", "--latency_ms 1000 --memory_gb 100 --required_accuracy 0.6"):
        adaptive_selector.main([*flags.split(), "--results", str(path)])
        assert len(capsys.readouterr().out) > 40
    assert decide("", capsys, path)["basis"] == basis
    if rows and rows[0]["status"] == "oom":
        assert decide("", capsys, path)["cautions"][0] == "out of memory in the rows: full_finetuning full, m"
    path.write_text("")
    with pytest.raises(SystemExit) as ended:
        adaptive_selector.main(["--results", str(path)])
    assert ended.value.code == 2 and "is empty" in capsys.readouterr().err


def test_the_decision_in_words(basic, capsys):
    adaptive_selector.main(["--data_size", "5000", "--results", basic, "--requests_per_day", "100000"])
    said = capsys.readouterr().out
    for part in ("Decided from rows: 4 configurations measured on d, n = 100, a processor",
                 "Choice: full_finetuning full, m: accuracy 0.830 ± 0.050, 11 ms",
                 "costs least among 2 that tie within the noise", "Next: peft lora_r8",
                 "Break-even: full_finetuning full, m (0.830, 80 s of training) against prompting 8_shot, m (0.770): answers come "
                 "389 ms sooner",
                 "Rows used: full_finetuning-full-0.83-0-0", "Run it again: python finetune.py"):  # fmt: skip
        assert part in said, said
    adaptive_selector.main(["--data_size", "5000", "--results", basic, "--explain", "--latency_ms", "50"])
    said = capsys.readouterr().out
    assert "at most 50 ms an answer, 5,000 labelled examples" in said and "Of 4 ways, we suggest full_finetuning full, m." in said
    assert "accuracy (share of answers that are right) is 0.83, give or take 0.05, measured on 100 examples of d, a processor" in said


# ------------------------------------------------------------------------------------------------------- from a model of the rows


def world(groups=6):
    """Configurations of made-up data sets: the score grows with labels, latency with parameters, each data set a little apart."""
    rng, rows = random.Random(0), []
    for g in range(groups):
        shift, params = rng.uniform(-0.03, 0.03), 20_000_000 * 2**g
        data = {"dataset": f"data/d{g}", "eval_id": f"e{g}", "total_params": params, "majority_baseline": 0.5}
        for labels in (50, 200, 1000):
            for seed in range(2):
                rows.append(result_row(
                    score=0.6 + shift + 0.06 * math.log10(labels) + rng.gauss(0, 0.005), n_train=labels, seed=seed, **data, batch_size=16,
                    latency_ms_p50=params / 4e6 * rng.uniform(0.95, 1.05), trainable_params=params, train_seconds=labels / 10,
                    predicted_gb=params / 1e8, peak_rss_gb=params / 1e8 * rng.uniform(0.95, 1.05) + 0.3,
                    flags={"max_train_samples": labels, "epochs": 2}))  # fmt: skip
        rows.append(result_row(score=0.6 + shift, strategy="prompting", script="prompt_eval.py", variant="0_shot", **data, n_train=0,
                               latency_ms_p50=params / 1e6, predicted_gb=params / 2e8, peak_rss_gb=params / 2e8 + 0.3,
                               prompt_tokens=3000))  # fmt: skip
    return rows


def test_the_model_predicts_a_group_it_has_not_seen(tmp_path):
    kept, _ = table.select(utils.read_results(results_csv(tmp_path / "r.csv", world())))
    found, tokens = prediction.groups_of(kept), prediction.prompt_tokens(kept)
    assert tokens == {f"d{g}": 30.0 for g in range(6)}
    for left_out in ("d2", "d3"):
        predictor = prediction.Predictor([(group, c) for group, c in found if group[0] != left_out], tokens)
        for group, c in found:
            if group[0] == left_out:
                wanted = prediction.spec(c, tokens[left_out])
                guess = predictor.candidate(wanted, c.name)
                assert predictor.refusal(wanted) is None
                assert abs(guess.score - c.mean()) < 0.06 and guess.latency_ms == pytest.approx(c.mean("latency_ms_p50"), rel=0.35)
                assert guess.memory_gb == pytest.approx(c.mean("memory"), rel=0.35) and 0 < guess.score_error < 0.2


def test_the_model_refuses_to_extrapolate_and_the_rules_answer(tmp_path, capsys):
    path = results_csv(tmp_path / "r.csv", world())
    found = decide("--dataset new --data_size 500", capsys, path)
    assert found["basis"] == "model" and found["choice"] == "full_finetuning" and "probability" in found["cautions"][0]
    assert found["not_used"] == ["no row measures classification on new; there are d0, d1, d2, d3, d4, d5"]
    found = decide("--dataset new --data_size 500 --params_b 70", capsys, path)
    assert found["basis"] == "rules" and "70,000,000,000 parameters are beyond the 20,000,000 to 640,000,000" in found["not_used"][1]
    found = decide("--dataset new --data_size 500 --tokens 4000", capsys, path)
    assert found["basis"] == "rules" and "tokens of a request are beyond" in found["not_used"][1]
    for basis, code in (("rows", 2), ("model", 2)):
        with pytest.raises(SystemExit) as ended:
            decide(f"--dataset new --params_b 70 --basis {basis}", capsys, path)
        assert ended.value.code == code and f"--basis {basis}: " in capsys.readouterr().err


def test_a_chance_is_that_of_independent_normal_errors():
    c = selection.Candidate("c", "peft", 0.8, 100.0, 2.0, 10, 0.0, 0.05, 0.2, 0.1)
    rng = random.Random(0)
    limits = selection.Limits(2.2, 120.0, 50, 0.75)
    drawn = [
        100 * math.exp(rng.gauss(0, 0.2)) <= 120 and 2 * math.exp(rng.gauss(0, 0.1)) <= 2.2 and rng.gauss(0.8, 0.05) >= 0.75
        for _ in range(20000)
    ]
    assert prediction.chance(c, limits) == pytest.approx(sum(drawn) / len(drawn), abs=0.01)
    assert prediction.chance(c, dataclasses.replace(limits, data_size=5)) == 0


# ------------------------------------------------------------------------------------------------------------------ from rules


@pytest.mark.parametrize("flags, choice", [
    ("--memory_gb 8 --latency_ms 200 --data_size 5000 --knowledge_heavy --required_accuracy 0.9", "rag"),
    ("--memory_gb 8 --latency_ms 200 --data_size 5000 --required_accuracy 0.9", "full_finetuning"),
    ("--memory_gb 24 --params_b 8 --data_size 500 --latency_ms 200", "peft"), ("--memory_gb 7 --params_b 7 --data_size 500", "peft"),
    ("--memory_gb 8 --data_size 10", "prompting"), ("--memory_gb 7 --params_b 8", "prompting"),
    ("--memory_gb 7 --params_b 8 --knowledge_heavy", "rag"), ("--memory_gb 0.1", None),
])  # fmt: skip
def test_rules(flags, choice, capsys, basic):
    found = decide(f"{flags} --basis rules", capsys, basic)
    assert found["choice"] == choice and found["basis"] == "rules"
    assert choice is None or (found["reasons"] and found["command"].startswith("python ") and found["runner_up"] != choice)
    assert ("--latency_ms" in flags) == any("latency was not checked" in text for text in found["cautions"])


def test_no_choice_breaks_a_limit_it_could_know(capsys, basic):
    """Over a grid: whatever is chosen fits the memory and has its labels; more memory never turns a choice into none."""
    for params in (0.1, 1, 8, 70):
        for data in (0, 50, 500, 5000):
            chosen = []
            for memory in (0.5, 2, 8, 24, 80, 2000):
                found = decide(f"--memory_gb {memory} --params_b {params} --data_size {data} --basis rules", capsys, basic)
                chosen.append(found["choice"])
                if found["choice"]:
                    assert rules.needed_gb(found["choice"], found["precision"], params) <= memory
                    assert data >= rules.MIN_LABELS.get(found["choice"], 0)
                else:
                    assert found["nearest"] in rules.NEEDS
            assert None not in chosen[next((i for i, c in enumerate(chosen) if c), len(chosen)) :]


@pytest.mark.parametrize("limits", ["", "--data_size 500 --memory_gb 7 --params_b 8", "--model m --dataset d --memory_gb 17 --params_b 8"])
def test_the_command_to_run_next_parses(limits):
    args = adaptive_selector.parse_args(limits.split())
    args.params_b, args.data_size = args.params_b or 0.14, args.data_size or 0
    for strategy in rules.COMMANDS:
        words = rules.command(strategy, args).split()
        parsed = importlib.import_module(words[1].removesuffix(".py")).parse_args(words[2:])
        assert args.dataset in (None, parsed.dataset) and args.model in (None, getattr(parsed, "gen_model", None) or parsed.model)


def test_memory_decides_the_precision(capsys, basic):
    found = {memory: decide(f"--memory_gb {memory} --params_b 8 --basis rules", capsys, basic)["precision"] for memory in (40, 20, 10, 7)}
    assert found == {40: "fp32", 20: "bf16", 10: "int8", 7: "nf4"}


# ---------------------------------------------------------------------------------------------------------------- the forecast


def really_saved(model, **inputs):
    """Bytes that autograd saves in a real forward pass, parameters left out."""
    import torch

    owned = {p.untyped_storage().data_ptr() for p in (*model.parameters(), *model.buffers())}
    seen = {}

    def pack(tensor):
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in owned:
            seen[storage.data_ptr()] = storage  # kept, so that no address comes twice
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        model(**inputs)
    return sum(storage.nbytes() for storage in seen.values())


@pytest.mark.parametrize("method", ["full", "lora", "ia3"])
def test_the_meta_device_counts_what_a_real_pass_saves(method, tiny_llama):
    import peft
    import torch
    from transformers import AutoConfig

    import models

    config = AutoConfig.from_pretrained(tiny_llama)
    ia3 = {"target_modules": ["k_proj", "v_proj", "down_proj"], "feedforward_modules": ["down_proj"]}
    adapter = {"full": None, "lora": peft.LoraConfig(task_type="CAUSAL_LM", r=4, target_modules=["q_proj", "v_proj"]),
               "ia3": peft.IA3Config(task_type="CAUSAL_LM", **ia3)}[method]  # fmt: skip
    real = models.load_model(tiny_llama, attention="eager").train()
    real = peft.get_peft_model(real, adapter) if adapter else real
    shape = forecast.Shape(3, 20)
    meta = forecast.meta_model(config, "causal", peft_config=adapter, attention="eager")
    saved, largest, logits = forecast.saved_bytes(meta, shape)
    assert saved == really_saved(real, input_ids=torch.zeros(3, 20, dtype=torch.long))
    assert logits == 3 * 20 * config.vocab_size * 4 and 0 < largest < saved
    assert forecast.weight_bytes(meta, "fp32")[0] == sum(p.numel() * p.element_size() for p in real.parameters())
    fewer, _, _ = forecast.saved_bytes(meta, shape, checkpointing=True)
    assert fewer < saved
    shape = forecast.Shape(3, 96)
    plain, flash = (forecast.saved_bytes(forecast.meta_model(config, "causal", attention=kind), shape)[0] for kind in ("eager", "sdpa"))
    mask = torch.ones(3, 96, dtype=torch.long)
    mask[0, :5] = 0  # with padding transformers repeats the keys of grouped heads
    sdpa = really_saved(models.load_model(tiny_llama).train(), input_ids=torch.zeros(3, 96, dtype=torch.long), attention_mask=mask)
    assert flash < plain and flash == pytest.approx(sdpa, rel=0.1)


def test_packed_weights_and_the_cache_are_as_large_as_forecast(tiny_llama):
    import torch
    from transformers import AutoConfig

    import models

    config = AutoConfig.from_pretrained(tiny_llama)
    for precision in ("fp32", "bf16", "int8", "nf4"):
        model = models.load_model(tiny_llama, precision=precision)
        found, _ = forecast.weight_bytes(forecast.meta_model(config, "causal"), precision)
        assert found == pytest.approx(model.get_memory_footprint(), rel=0.12), precision  # packing pads tiny layers to whole blocks
    model = models.load_model(tiny_llama)
    cache = model(torch.zeros(2, 7, dtype=torch.long), use_cache=True).past_key_values
    assert forecast.kv_bytes(config, 14, 4) == sum(layer.keys.nbytes + layer.values.nbytes for layer in cache.layers)


@pytest.mark.parametrize("name, options", [
    ("BertConfig", {"intermediate_size": 64}), ("GPT2Config", {"pad_token_id": 0}), ("T5Config", {"d_model": 32, "d_kv": 8, "d_ff": 64}),
    ("BartConfig", {"d_model": 32, "encoder_ffn_dim": 64, "decoder_ffn_dim": 64}), ("DebertaV2Config", {"intermediate_size": 64}),
    ("GPTJConfig", {"rotary_dim": 4}), ("FalconConfig", {}), ("OPTConfig", {"ffn_dim": 64, "word_embed_proj_dim": 32}),
    ("MambaConfig", {}), ("XLNetConfig", {}), ("MixtralConfig", {"num_local_experts": 2}), ("BloomConfig", {}),
])  # fmt: skip
@pytest.mark.parametrize("kind", ["language", "classifier"])
def test_no_architecture_ends_a_run(name, options, kind):
    """A forecast, or a note that there is none; never an error."""
    import transformers

    small = {"vocab_size": 100, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "n_layer": 2, "n_head": 4,
             "n_embd": 32,
             "num_key_value_heads": 2, "num_layers": 2, "num_heads": 4, "d_model": 32, "d_inner": 64}  # fmt: skip
    config = getattr(transformers, name)(**{**small, **options})
    config.pad_token_id = 0
    seq2seq, encoder = config.is_encoder_decoder, name in ("BertConfig", "DebertaV2Config")
    if encoder and kind == "language":
        pytest.skip("an encoder has no language-model head here")
    run = argparse.Namespace(row={}, notes=[])
    run.note = run.notes.append
    what = "classifier" if kind == "classifier" else "seq2seq" if seq2seq else "causal"
    for function in (forecast.training, forecast.inference):
        run.row.clear()
        forecast.record(run, function, config, what, forecast.Shape(2, 16, cached_tokens=32))
        assert (run.row.get("predicted_gb", 0) > 0) != any("does not run on the meta device" in note for note in run.notes)
    if name in ("BertConfig", "GPT2Config", "OPTConfig", "BloomConfig", "DebertaV2Config") or (seq2seq and kind == "language"):
        assert not run.notes


def test_a_calibration_finds_the_offset_and_the_factor():
    rng = random.Random(0)
    pairs = [(p, (0.4 + 1.3 * p) * rng.uniform(0.97, 1.03)) for p in (0.2, 0.5, 1, 2, 4, 8)]
    assert forecast.calibrate(pairs) == pytest.approx((0.4, 1.3), rel=0.1)
    assert forecast.calibrate(pairs[:4]) == (0.0, 1.0)
    offset, factor = forecast.calibrate([(0.31, 0.5 + i / 100) for i in range(6)])  # rows of one size say nothing of the factor
    assert factor == pytest.approx(1) and offset == pytest.approx(0.215, abs=0.01)


def test_the_measured_memory_is_what_the_run_added(tmp_path):
    rows = utils.read_results(results_csv(tmp_path / "r.csv", [
        result_row(score=0.5, peak_rss_gb=2.0, start_rss_gb=0.5, predicted_gb=1.2, train_seconds=3),
        result_row(score=0.6, peak_rss_gb=2.0, start_rss_gb=0.5, peak_gpu_gb=3.0, device="cuda", predicted_gb=2.5),
        result_row(score=0.7, peak_rss_gb=2.0, predicted_gb=1.2),
    ]))  # fmt: skip
    assert [forecast.measured_gb(row) for row in rows] == [1.5, 3.0, None]
    assert forecast.known(rows, "cpu", "training", True) == [(1.2, 1.5)] and forecast.known(rows, "cuda", "inference", True) == [(2.5, 3.0)]
    many = [{**rows[0], "precision": precision, "predicted_gb": f"{i}"} for i, precision in enumerate(["fp32"] * 6 + ["nf4"] * 4, start=1)]
    assert len(forecast.known(many, "cpu", "training", True)) == 6 and len(forecast.known(many, "cpu", "training", False)) == 10


def test_the_forecast_says_whether_it_fits_and_the_largest_batch(tiny_llama, basic, capsys):
    def ask(flags):
        return decide(f"--forecast --model {tiny_llama} --task qa --seq_len 64 {flags}", capsys, basic)

    wide = ask("--method full --memory_gb 1 --batch_size 1")
    assert wide["verdict"] == "fits" and wide["largest_batch"] > 8
    edge = wide["largest_batch"]
    assert ask(f"--method full --memory_gb 1 --batch_size {edge}")["verdict"] == "tight"
    assert ask(f"--method full --memory_gb 1 --batch_size {edge + 1}")["verdict"] == "does not fit"
    none = ask("--method full --memory_gb 0.00001")
    assert none["largest_batch"] == 0 and none["verdict"] == "does not fit"
    sizes = {m: ask(f"--method {m}")["parts_gb"] for m in forecast.METHODS}
    assert (
        sizes["full"]["optimizer"] == pytest.approx(2 * sizes["full"]["weights"])
        and sizes["lora"]["optimizer"] < sizes["full"]["optimizer"]
    )
    assert sizes["qlora"]["weights"] < sizes["int8_lora"]["weights"] < sizes["lora"]["weights"] and sizes["inference"]["gradients"] == 0
    with pytest.raises(SystemExit) as ended:
        adaptive_selector.main(["--forecast"])
    assert ended.value.code == 2 and "--forecast needs --model" in capsys.readouterr().err
