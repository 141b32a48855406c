"""Rows of a results CSV as scripts would append them, for tests of what is made of rows."""

import json
import math
import random

from helpers import write_jsonl

from harness.results import schema, store


def result_row(**cells):
    """A row as a script would append it, for tests of what is made of rows; cells change it."""
    args = {"seed": cells.get("seed", 0), "data_seed": cells.get("data_seed", 0), **cells.pop("flags", {})}
    row = {
        "script": "finetune.py",
        "strategy": "full_finetuning",
        "variant": "full",
        "model": "a/m",
        "dataset": "data/d",
        "metric": "accuracy",
        "n_eval": 100,
        "eval_id": "e",
        "status": "ok",
        "macro_f1": 0.5,
        "precision": "fp32",
        "device": "cpu",
        "device_name": "a processor",
        "total_params": 20_000_000,
        "peak_rss_gb": 1.0,
        "latency_ms_p50": 10,
        "labels_used": max(cells.get("n_train") or 0, cells.get("k_shots") or 0),
        **cells,
        "args": json.dumps(args),
    }
    if row.get("score") is not None:
        row = {"score_low": row["score"] - 0.05, "score_high": row["score"] + 0.05, **row}
    return {
        "run_id": f"{row['strategy']}-{row['variant']}-{row.get('score')}-{args['seed']}-{args['data_seed']}",
        **row,
    }


def write_run(folder, row, right, clusters=None):
    """A run folder with its row and predictions, of which some are right; the row as read from a CSV."""
    records = [{"id": i, "target": "a", "prediction": "a" if r else "b"} for i, r in enumerate(right)]
    for record, cluster in zip(records, clusters or []):
        record["cluster"] = cluster
    write_jsonl(folder / "predictions.jsonl", records)
    row = {**row, "run_dir": str(folder), "score": sum(right) / len(right)}
    (folder / "row.json").write_text(json.dumps(row))
    return {**dict.fromkeys(schema.RESULT_COLUMNS, ""), **{k: str(v) for k, v in row.items()}}


def results_csv(path, rows):
    """A results CSV of such rows; its path."""
    for row in rows:
        store.append_result(path, row)
    return str(path)


SEEDS = [
    result_row(score=score, seed=seed, train_seconds=10 + seed, flags={"rank": 8})
    for seed, score in enumerate((0.70, 0.74, 0.72))
]


def rows_as_read(tmp_path, rows):
    return store.read_results(results_csv(tmp_path / "r.csv", rows))


def log_rows():
    """Rows of several strategies, seeds, ranks and labels."""
    found = list(SEEDS)
    for k, score in ((0, 0.60), (4, 0.65), (8, 0.70)):
        found.append(
            result_row(
                score=score,
                script="prompt_eval.py",
                strategy="prompting",
                variant=f"{k}_shot",
                k_shots=k,
                n_train=k,
                latency_ms_p50=100 + k,
                flags={"k_shots": k},
            )
        )
    for rank in (4, 8, 16):
        for seed in (0, 1):
            found.append(
                result_row(
                    score=0.6 + rank / 100,
                    script="peft_finetune.py",
                    strategy="peft",
                    variant=f"lora_r{rank}",
                    seed=seed,
                    train_seconds=20,
                    artifact_mb=0.3,
                    trainable_params=1000 * rank,
                    n_train=100,
                    flags={"rank": rank, "max_train_samples": 100},
                )
            )
    found.append(
        result_row(
            score=0.3,
            strategy="rag",
            script="rag_eval.py",
            variant="k4_flat",
            metric="token_f1",
            token_f1=0.3,
            exact_match=0.1,
            macro_f1=None,
            eval_id="q",
            dataset="data/q",
        )
    )
    found.append(result_row(score=None, status="oom", note="CUDA out of memory"))
    return found


def made_up_rows(groups=6):
    """Configurations of made-up data sets: the score grows with labels, latency with parameters, each data set a little
    apart.
    """
    rng, rows = random.Random(0), []
    for g in range(groups):
        shift, params = rng.uniform(-0.03, 0.03), 20_000_000 * 2**g
        data = {"dataset": f"data/d{g}", "eval_id": f"e{g}", "total_params": params, "majority_baseline": 0.5}
        for labels in (50, 200, 1000):
            for seed in range(2):
                rows.append(
                    result_row(
                        score=0.6 + shift + 0.06 * math.log10(labels) + rng.gauss(0, 0.005),
                        n_train=labels,
                        seed=seed,
                        **data,
                        batch_size=16,
                        latency_ms_p50=params / 4e6 * rng.uniform(0.95, 1.05),
                        trainable_params=params,
                        train_seconds=labels / 10,
                        predicted_gb=params / 1e8,
                        peak_rss_gb=params / 1e8 * rng.uniform(0.95, 1.05) + 0.3,
                        flags={"max_train_samples": labels, "epochs": 2},
                    )
                )
        rows.append(
            result_row(
                score=0.6 + shift,
                strategy="prompting",
                script="prompt_eval.py",
                variant="0_shot",
                **data,
                n_train=0,
                latency_ms_p50=params / 1e6,
                predicted_gb=params / 2e8,
                peak_rss_gb=params / 2e8 + 0.3,
                prompt_tokens=3000,
            )
        )
    return rows
