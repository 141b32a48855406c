"""The command line as a person meets it: help, wrong flags, unreachable names; the selector and the charts."""

import json
import os
import subprocess
import sys

import pytest
from conftest import ROOT

import adaptive_selector
import plot_results
import utils

SCRIPTS = [
    "finetune",
    "peft_finetune",
    "context_distill",
    "prompt_eval",
    "rag_eval",
    "quantize_and_parallel",
    "adaptive_selector",
    "plot_results",
    "prepare_data",
]
DESIGN_COMMANDS = [
    "finetune.py --model distilbert-base-uncased --dataset glue --subset sst2 --epochs 3 --batch_size 16 --fp16",
    "peft_finetune.py --model distilbert-base-uncased --dataset glue --subset sst2 --epochs 3 --batch_size 16",
    "prompt_eval.py --model google/flan-t5-base --dataset glue --subset sst2 --n_examples 20",
    "rag_eval.py --embed_model all-MiniLM-L6-v2 --gen_model google/flan-t5-base --k 4",
    "quantize_and_parallel.py --model google/flan-t5-base --fp16",
    "quantize_and_parallel.py --model google/flan-t5-base --int8",
]


def run(command, cwd=ROOT, **env):
    return subprocess.run([sys.executable, *command.split()], cwd=cwd, capture_output=True, text=True, stdin=subprocess.DEVNULL,
                          env={**os.environ, **env}, timeout=60)  # fmt: skip


@pytest.mark.parametrize("script", SCRIPTS)
def test_help_and_wrong_flags_load_nothing_heavy(script):
    code = (f"import sys, {script}\ntry:\n    {script}.main(sys.argv[1:])\n"
            "finally:\n    heavy = {'torch', 'transformers', 'datasets', 'pandas', 'sklearn', 'matplotlib'} & set(sys.modules)\n"
            "    assert not heavy, heavy\n")  # fmt: skip
    shown = subprocess.run([sys.executable, "-c", code, "--help"], cwd=ROOT, capture_output=True, text=True)
    assert shown.returncode == 0 and "usage:" in shown.stdout and f"python {script}.py" in shown.stdout and shown.stderr == ""
    wrong = subprocess.run([sys.executable, "-c", code, "--no_such_flag"], cwd=ROOT, capture_output=True, text=True)
    assert wrong.returncode == 2 and wrong.stderr.count("\n") == 1 and wrong.stdout == ""


@pytest.mark.parametrize("command", DESIGN_COMMANDS)
def test_without_a_hub_a_name_is_one_line(command, tmp_path):
    # nothing listens on port 9: the scripts find out by themselves that there is no hub
    where = f" --results {tmp_path}/results.csv --runs_dir {tmp_path}/runs"
    done = run(command + where, HF_HUB_OFFLINE="0", HF_ENDPOINT="http://127.0.0.1:9", HF_HOME=str(tmp_path))
    assert done.returncode == 2 and done.stderr.count("\n") == 1 and done.stdout == ""
    assert "cannot be reached" in done.stderr and "prepare_data.py demo" in done.stderr
    assert not (tmp_path / "results.csv").exists() and not (tmp_path / "runs").exists()


def test_a_hub_data_set_that_cannot_be_had_is_one_line(tiny_bert, tmp_path):
    done = run(f"finetune.py --model {tiny_bert} --dataset glue --subset sst2 --results {tmp_path}/r.csv --runs_dir {tmp_path}/runs",
               HF_HUB_OFFLINE="1", HF_HOME=str(tmp_path))  # fmt: skip
    assert done.returncode == 2 and done.stderr.count("\n") == 1, done.stderr
    assert "--dataset glue sst2" in done.stderr and not (tmp_path / "runs").exists()


@pytest.mark.parametrize("flags, message", [
    ("finetune.py --model assets/nowhere", "no such file or folder"),
    ("finetune.py --model BERT --dataset ./nowhere", "--dataset ./nowhere: no such file or folder"),
    ("finetune.py --model BERT --dataset DATA --epochs 0", "--epochs: must be a number above 0, not 0"),
    ("finetune.py --model BERT --dataset DATA --lr 1", "here it is called --learning_rate"),
    ("finetune.py --model BERT --dataset DATA --max_train 1", "unrecognized arguments"),
    ("finetune.py --model BERT --dataset DATA --test_file x.tsv", "exclude each other"),
    ("finetune.py --model BERT --dataset mine.csv", "--dataset mine.csv: no such file or folder"),
    ("finetune.py --model BERT --test_file ONE_LABEL", "has the one label a"),
    ("finetune.py --model BERT --dataset DATA --fp16", "--fp16 needs a CUDA GPU"),
    ("finetune.py --model BERT --dataset DATA --fp16 --bf16", "not allowed with"),
    ("finetune.py --model BERT --dataset DATA --device cuda", "torch sees no CUDA GPU"),
    ("finetune.py --model BERT --dataset DATA --label_column colour", "no such column; there are text, label"),
    ("finetune.py --model BERT --dataset DATA --max_train_samples 9999", "the data have 160"),
    ("finetune.py --model BERT --dataset DATA --resume", "no unfinished run with these flags"),
    ("finetune.py --model BERT --dataset QUESTIONS", "an encoder without a language-model head"),
    ("finetune.py --model BERT --test_file DATA/nowhere.tsv", "no such file"),
    ("finetune.py --model BERT --dataset DATA --results BROKEN", "not a results CSV, or one with another header"),
    ("finetune.py --model BERT --dataset DATA --results /nowhere/at/all.csv", "there is no folder"),
    ("finetune.py --model BERT --dataset DATA --latency_runs -1", "must be a whole number of at least 0"),
    ("prompt_eval.py --model LLAMA --dataset DATA --label_words x,x", "a word stands there twice"),
    ("prompt_eval.py --model LLAMA --dataset DATA --label_words bad,", "word 2 is empty"),
    ("prompt_eval.py --model LLAMA --dataset DATA --batch_size few", "must be a whole number of at least 1, or auto, not few"),
    ("finetune.py --model BERT --dataset DATA --batch_size auto", "must be a whole number of at least 1, not auto"),
    ("prompt_eval.py --model LLAMA --dataset DATA --no-merge_adapter", "belong to --adapter"),
    ("quantize_and_parallel.py --model LLAMA --dataset DATA --compile --prompt_lookup 3", "not allowed with"),
    ("quantize_and_parallel.py --model LLAMA --dataset DATA --assistant_adapter DATA", "belongs to --assistant_model"),
    ("quantize_and_parallel.py --model LLAMA --dataset DATA --assistant_model ./nowhere", "--assistant_model ./nowhere: no such file"),
    ("quantize_and_parallel.py --model LLAMA --dataset DATA --assistant_model BERT", "cannot be prompted"),
    ("quantize_and_parallel.py --model LLAMA --dataset DATA --compile --nf4", "does not compile nf4 weights"),
    ("quantize_and_parallel.py --model LLAMA --dataset DATA --new_tokens 1000", "does not fit the model's context of 1024"),
    ("quantize_and_parallel.py --model LLAMA --dataset DATA --assistant_model T5", "one of the two models has an encoder"),
    ("quantize_and_parallel.py --model LLAMA --dataset DATA --compile --latency_runs 0", "no request to time compiled decoding on"),
    ("prompt_eval.py --model LLAMA --dataset QUESTIONS --max_new_tokens 2000", "leave no room for a prompt"),
    ("quantize_and_parallel.py --model CLASSIFIER --dataset DATA", "has a classification head"),
    ("prompt_eval.py --model CLASSIFIER --dataset DATA", "was trained for the labels good, bad"),
    ("rag_eval.py --embed_model EMBEDDER --dataset QUESTIONS --docs PICTURE --retrieval_only", "of an unknown type .png"),
    ("rag_eval.py --baselines --k 0", "asks without retrieval anyway"),
    ("rag_eval.py --build_only --docs FILE", "--build_only needs --index_dir"),
    ("rag_eval.py --mmap", "--mmap is for searching in an --index_dir"),
    ("rag_eval.py --chunk_tokens 20 --chunk_overlap 15", "at most half of --chunk_tokens 20"),
    ("rag_eval.py --encoding klingon", "no such encoding"),
    ("rag_eval.py --embed_model EMBEDDER --gen_model LLAMA --dataset QUESTIONS --reranker ./nowhere", "--reranker ./nowhere"),
    ("rag_eval.py --embed_model EMBEDDER --gen_model LLAMA --dataset QUESTIONS --index ivfpq", "256 vectors at least"),
    ("rag_eval.py --embed_model EMBEDDER --gen_model LLAMA --dataset QUESTIONS --index_dir FILE", "is a file; give a folder"),
    ("rag_eval.py --embed_model EMBEDDER --index_dir NEW --build_only --delete nobody", "no document 'nobody' in the index"),
    ("prompt_eval.py --model LLAMA --dataset DATA --adapter ./nowhere", "--adapter ./nowhere: no such file or folder"),
    ("peft_finetune.py --model BERT --dataset DATA --target_modules q_proj", "bert has dense, key, query, value"),
    ("peft_finetune.py --model BERT --dataset DATA --rank 0", "--rank: must be a whole number of at least 1, not 0"),
    ("prompt_eval.py --model BERT --dataset DATA", "cannot be prompted"),
    ("prompt_eval.py --model LLAMA --dataset DATA --k_shots 161", "161 training examples or demonstrations"),
    ("prompt_eval.py --model LLAMA --dataset DATA --adapter DATA", "no adapter_config.json"),
    ("prompt_eval.py --model LLAMA --dataset DATA --label_words a,b,c", "names 3 words for the 2 labels"),
    ("prompt_eval.py --model LLAMA --dataset DATA --precision fp16", "fp16 needs a CUDA GPU"),
    ("prompt_eval.py --model LLAMA --dataset DATA --scoring generate --calibrate batch", "--calibrate works on label likelihoods"),
    ("prompt_eval.py --model LLAMA --dataset EMPTY", "every split is empty"),
    ("rag_eval.py --embed_model EMBEDDER --gen_model LLAMA --dataset DATA", "recognised as classification"),
    ("rag_eval.py --embed_model EMBEDDER --gen_model LLAMA --docs ./nowhere", "--docs ./nowhere: no such file or folder"),
    ("rag_eval.py --embed_model EMBEDDER --gen_model LLAMA --dataset QUESTIONS --chunk_tokens 900", "takes 30 tokens at once"),
    ("rag_eval.py --k 0 --retrieval_only", "nothing to measure"),
    ("quantize_and_parallel.py --model LLAMA --dataset DATA --fp16", "fp16 needs a CUDA GPU"),
    ("quantize_and_parallel.py --model LLAMA --dataset DATA --int8 --nf4", "not allowed with"),
    ("quantize_and_parallel.py --model LLAMA --dataset DATA --int8 --compute_dtype bf16", "belongs to --precision nf4"),
])  # fmt: skip
def test_bad_input_is_one_line_and_nothing_is_written(
    flags, message, tmp_path, capsys, tiny_bert, tiny_llama, tiny_t5, tiny_embedder, tiny_classifier, sentiment, questions
):
    import importlib

    import torch

    if torch.cuda.is_available() and "CUDA" in message:
        pytest.skip("a GPU is here")
    (tmp_path / "broken.csv").write_text("a,b\n1,2\n")
    (tmp_path / "empty.jsonl").write_text("")
    (tmp_path / "picture.png").write_bytes(b"PNG")
    (tmp_path / "one.csv").write_text("text,label\nx,a\ny,a\n")
    names = {"BERT": tiny_bert, "LLAMA": tiny_llama, "T5": tiny_t5, "EMBEDDER": tiny_embedder, "DATA": sentiment, "QUESTIONS": questions}
    names.update(
        BROKEN=f"{tmp_path}/broken.csv",
        EMPTY=f"{tmp_path}/empty.jsonl",
        ONE_LABEL=f"{tmp_path}/one.csv",
        FILE=f"{tmp_path}/one.csv",
        PICTURE=f"{tmp_path}/picture.png",
        NEW=f"{tmp_path}/new",
        CLASSIFIER=tiny_classifier,
    )
    script, *argv = [names.get(word, word.replace("DATA/", sentiment + "/")) for word in flags.split()]
    given = [] if "--results" in argv else ["--results", str(tmp_path / "results.csv")]
    with pytest.raises(SystemExit) as exit_:
        importlib.import_module(script.removesuffix(".py")).main([*argv, *given, "--runs_dir", str(tmp_path / "runs")])
    said = capsys.readouterr().err.strip()
    assert exit_.value.code == 2 and message in said and len(said.splitlines()) == 1, said
    assert not (tmp_path / "results.csv").exists() and not any((tmp_path / "runs").glob("*/*"))
    assert (tmp_path / "broken.csv").read_text() == "a,b\n1,2\n"


# ------------------------------------------------------------------------------------------------------------- the selector


def decide(flags, capsys, tmp_path):
    adaptive_selector.main([*flags.split(), "--json", *([] if "--results" in flags else ["--results", str(sample(tmp_path))])])
    return json.loads(capsys.readouterr().out)


def sample(tmp_path):
    path = tmp_path / "rows.csv"
    if not path.exists():
        for strategy, variant, score, ms in (
            ("full_finetuning", "full", 0.83, 11),
            ("peft", "lora_r8", 0.81, 12),
            ("peft", "lora_r8", 0.79, 12),
            ("prompting", "0_shot", 0.75, 100),
            ("rag", "k4_flat", 0.2, 900),
        ):
            utils.append_result(
                path,
                {
                    "run_id": f"{strategy}{score}",
                    "strategy": strategy,
                    "variant": variant,
                    "score": score,
                    "status": "ok",
                    "script": "s.py",
                    "model": "a/m",
                    "dataset": "data/d",
                    "metric": "accuracy",
                    "n_eval": 100,
                    "eval_id": "e",
                    "peak_rss_gb": 3,
                    "score_low": score - 0.05,
                    "score_high": score + 0.05,
                    "latency_ms_p50": ms,
                    "precision": "fp32",
                    "device_name": "a processor",
                    "args": json.dumps({"score": score}),
                },
            )
    return path


@pytest.mark.parametrize("flags, choice", [
    ("--memory_gb 8 --latency_ms 200 --data_size 5000 --knowledge_heavy --required_accuracy 0.9", "rag"),
    ("--memory_gb 8 --latency_ms 200 --data_size 5000 --required_accuracy 0.9", "full_finetuning"),
    ("--memory_gb 24 --params_b 8 --data_size 500 --latency_ms 200", "peft"),
    ("--memory_gb 7 --params_b 7 --data_size 500 --latency_ms 200", "peft"),
    ("--memory_gb 8 --data_size 10", "prompting"),
    ("--memory_gb 7 --params_b 8", "prompting"),
    ("--memory_gb 7 --params_b 8 --knowledge_heavy", "rag"),
    ("--memory_gb 0.1", None),
])  # fmt: skip
def test_rules(flags, choice, capsys, tmp_path):
    found = decide(flags, capsys, tmp_path)
    assert found["choice"] == choice
    assert choice is None or (found["reasons"] and found["command"].startswith("python ") and found["runner_up"] != choice)


def test_no_choice_breaks_a_limit_it_could_know(capsys, tmp_path):
    """Over a grid: whatever is chosen fits the memory and has its labels; more memory never turns a choice into none."""
    for params in (0.1, 1, 8, 70):
        for data in (0, 50, 500, 5000):
            chosen = []
            for memory in (0.5, 2, 8, 24, 80, 2000):
                found = decide(f"--memory_gb {memory} --params_b {params} --data_size {data}", capsys, tmp_path)
                chosen.append(found["choice"])
                if found["choice"]:
                    assert adaptive_selector.needed_gb(found["choice"], found["precision"], params) <= memory
                    assert data >= adaptive_selector.MIN_LABELS.get(found["choice"], 0)
                else:
                    assert found["nearest"] in adaptive_selector.NEEDS
            assert None not in chosen[next((i for i, c in enumerate(chosen) if c), len(chosen)) :]


@pytest.mark.parametrize("limits", ["", "--data_size 500 --memory_gb 7 --params_b 8", "--model m --dataset d --memory_gb 17 --params_b 8"])
def test_the_command_to_run_next_parses(limits):
    import importlib

    args = adaptive_selector.parse_args(limits.split())
    for strategy in adaptive_selector.COMMANDS:
        words = adaptive_selector.command(strategy, args).split()
        parsed = importlib.import_module(words[1].removesuffix(".py")).parse_args(words[2:])
        assert args.dataset in (None, parsed.dataset) and args.model in (None, getattr(parsed, "gen_model", None) or parsed.model)


def test_memory_decides_the_precision(capsys, tmp_path):
    found = {memory: decide(f"--memory_gb {memory} --params_b 8", capsys, tmp_path)["precision"] for memory in (40, 20, 10, 7)}
    assert found == {40: "fp32", 20: "bf16", 10: "int8", 7: "nf4"}
    assert decide("--memory_gb 7.2 --params_b 8 --data_size 500", capsys, tmp_path)["command"].split()[2:4] == ["--quantize", "nf4"]


def test_the_selector_in_words(capsys, tmp_path):
    adaptive_selector.main(["--memory_gb", "8", "--data_size", "5000", "--results", str(sample(tmp_path))])
    said = capsys.readouterr().out
    for part in (
        "Choice: full fine-tuning",
        "accuracy 0.830 with m on 100 examples of data/d, 11 ms a request",
        "Runner-up: LoRA",
        "accuracy 0.810",
        "Run next: ",
    ):
        assert part in said
    adaptive_selector.main(["--memory_gb", "0.1", "--results", str(sample(tmp_path))])
    assert "Nothing fits. The nearest is prompting, which needs about 0.6 GB (nf4), 0.1 GB are there" in capsys.readouterr().out


# --------------------------------------------------------------------------------------------------------------- the charts


def test_charts_and_what_they_leave_out(tmp_path, capsys):
    path = sample(tmp_path)
    for status, score, note in (("oom", None, "CUDA out of memory"), ("degenerate", 0.5, "one class"), ("ok", None, "")):
        utils.append_result(
            path,
            {"run_id": f"{status}-{score}", "strategy": "peft", "variant": "x", "status": status, "score": score, "note": note},
        )
    utils.append_result(path, {**utils.read_results(path)[0], "run_id": "newer"})
    plot_results.main(["--results", str(path), "--output_dir", str(tmp_path / "plots")])
    said = capsys.readouterr().out
    for part in (
        "9 rows",
        "oom-None (status oom: CUDA out of memory)",
        "degenerate-0.5 (status degenerate: one class)",
        "ok-None (no score)",
        "full_finetuning0.83 (the same configuration was run again as newer)",
    ):
        assert part in said, said
    for name in ("scores.png", "latency_vs_score.png"):
        content = (tmp_path / "plots" / name).read_bytes()
        assert content.startswith(b"\x89PNG") and len(content) > 10_000 and str(tmp_path / "plots" / name) in said


def test_the_bars_are_the_rows(tmp_path, monkeypatch):
    import matplotlib.pyplot as plt

    drawn, skipped = plot_results.select(utils.read_results(sample(tmp_path)))
    assert len(drawn) == 5 and not skipped  # two LoRA runs with other flags are two bars
    monkeypatch.setattr(plt, "close", lambda figure: None)
    plot_results.bar_chart(plot_results.panels(drawn), tmp_path / "bars.png")
    axis = plt.gcf().axes[0]
    assert [bar.get_width() for bar in axis.patches] == [0.2, 0.75, 0.79, 0.81, 0.83]
    assert "n = 100" in axis.get_title()


@pytest.mark.parametrize(
    "content, message",
    [
        (None, "there is no results file"),
        ("", "is empty"),
        ("a,b\n1,2\n", "is not a results CSV"),
        (",".join(utils.RESULT_COLUMNS) + "\n", "nothing to draw"),
    ],
)
def test_a_results_file_that_cannot_be_drawn(tmp_path, capsys, content, message):
    if content is not None:
        (tmp_path / "r.csv").write_text(content)
    with pytest.raises(SystemExit) as exit_:
        plot_results.main(["--results", str(tmp_path / "r.csv")])
    said = capsys.readouterr().err
    assert exit_.value.code == 2 and message in said and said.count("\n") == 1


def test_a_measured_row_that_breaks_a_limit_gives_way_to_one_that_keeps_it(capsys, tmp_path):
    rules_only = decide("--data_size 2000 --memory_gb 8 --required_accuracy 0.8", capsys, tmp_path)
    assert rules_only["choice"] == "peft" and rules_only["cautions"] == []  # 0.81 was measured
    found = decide("--data_size 2000 --memory_gb 8 --required_accuracy 0.82", capsys, tmp_path)
    assert (found["choice"], found["runner_up"], found["cautions"]) == ("full_finetuning", "peft", [])  # 0.83 was measured
    assert "ranks higher by the rules" in found["reasons"][0]
    other = [dict(row, eval_id=row["strategy"]) for row in utils.read_results(sample(tmp_path))]
    for row in other:  # the same scores on other examples say nothing
        utils.append_result(tmp_path / "other.csv", row)
    found = decide(f"--data_size 2000 --memory_gb 8 --required_accuracy 0.82 --results {tmp_path / 'other.csv'}", capsys, tmp_path)
    assert found["choice"] == "peft" and len(found["cautions"]) == 1


def test_a_limit_that_was_not_checked_is_said(capsys, tmp_path):
    utils.append_result(tmp_path / "none.csv", {"run_id": "a", "status": "oom", "strategy": "prompting"})
    found = decide(f"--latency_ms 1 --required_accuracy 0.5 --results {tmp_path / 'none.csv'}", capsys, tmp_path)
    assert found["choice"] == "prompting" and len(found["cautions"]) == 2 and "latency was not checked" in found["cautions"][0]


def test_a_limit_that_the_measured_row_breaks_is_said(capsys, tmp_path):
    flags = "--memory_gb 8 --latency_ms 200 --data_size 5000 --knowledge_heavy --required_accuracy 0.9"
    found = decide(flags, capsys, tmp_path)
    assert found["choice"] == "rag" and len(found["cautions"]) == 2
    assert "900 ms a request, over the limit of 200 ms" in found["cautions"][0] and "short of the 0.9 needed" in found["cautions"][1]
    found = decide("--memory_gb 2 --data_size 10", capsys, tmp_path)
    assert found["cautions"] == ["the measured row needed 3.0 GB, over the limit of 2 GB"]
    assert decide("--memory_gb 8 --latency_ms 200 --data_size 5000 --required_accuracy 0.8", capsys, tmp_path)["cautions"] == []


def test_the_rows_as_markdown(capsys, tmp_path):
    plot_results.main(["--results", str(sample(tmp_path)), "--markdown"])
    lines = capsys.readouterr().out.strip().splitlines()
    assert len(lines) == 7 and len({line.count("|") for line in lines}) == 1
    assert "| full_finetuning | full | m | d, 100 | accuracy 0.830 [0.780, 0.880] | 11 |" in lines[2]
