"""The columns of the results CSV: one table, which gives the header, the charts, the export and docs/results_csv.md.

python -m harness.results.schema > docs/results_csv.md     # after a change to the table
"""

from dataclasses import dataclass

from harness.results import markdown


@dataclass(frozen=True)
class Column:
    """A column of the results CSV, or a quantity that is derived from several (memory)."""

    name: str
    type: str  # str, int, float, bool or json
    group: str  # a key of GROUPS
    unit: str = ""
    label: str = ""  # its name in charts and tables; columns with a label can be compared
    direction: int = 0  # 1: higher is better, -1: lower is better, 0: neither
    about: str = ""  # one or two sentences for docs/results_csv.md


GROUPS = {
    "identity": "Which run it was.",
    "data": "What it was trained and evaluated on.",
    "setting": "With which seeds, on which device.",
    "quality": "How good the outputs are. Shares and scores lie between 0 and 1 unless the column says otherwise.",
    "chat": "How good chat answers are (chat_eval.py).",
    "retrieval": "How good and how fast the retrieval is (rag_eval.py); means over the questions.",
    "time": "Measured with a monotonic clock after warm-up, with the GPU synchronised (not `run_seconds`).",
    "memory": "The measured peaks of the run and its forecast; 1 GB is 2^30 bytes.",
    "size": "Parameters, files and tokens.",
    "outcome": "How the run ended.",
    "provenance": "What the row was measured with, so that it can be measured again.",
}

STATUSES = {
    "ok": "the run ended as it should",
    "oom": "it ran out of memory, which is a result: the note has the message, the exit code is 3",
    "failed": "it ended with an error, whose traceback was printed, or with a loss that is not a number",
    "degenerate": "it ended, but its outputs are of no use: one class only, most answers unreadable, or an adapter "
    "that changes nothing; the row counts in means and intervals, and charts, report and selector say so",
    "dropped": "a race dropped its configuration: it ran for a share of its steps or labels, and is neither "
    "compared nor chosen; the note says at which rung and why",
}

# fmt: off
# one or two lines a column: name, type, group, unit, label, direction, about; the order is that of the CSV
COLUMNS = (
    Column("run_id", "str", "identity", about="Time, script, six random hex digits; names the run's folder too."),
    Column("created_at", "str", "identity", about="When the run began (UTC, ISO 8601)."),
    Column("script", "str", "identity", about="The script's file name."),
    Column("strategy", "str", "identity", about="`prompting`, `rag`, `full_finetuning`, `peft`, `probe`, ..."),
    Column("variant", "str", "identity", about="The form of the strategy, such as `lora_r8` or `16_shot`."),
    Column("model", "str", "identity", about="Hub name or folder; of RAG, the model that answers."),
    Column("dataset", "str", "data", about="Hub name, folder or file."),
    Column("subset", "str", "data", about="Hub configuration or subfolder, such as `sst2`."),
    Column("split", "str", "data", about="The split whose examples give the score."),
    Column("n_train", "int", "data", about="Labelled examples that were trained on or shown in prompts."),
    Column("labels_used", "int", "data", "", "labelled examples", -1,
           "Labelled examples that influenced the run, each counted once: trained on, chose the checkpoint or a "
           "setting, shown in prompts, calibrated on; and those that an earlier run trained the weights with. Empty "
           "where these are unknown."),
    Column("n_eval", "int", "data", about="Evaluation examples."),
    Column("n_classes", "int", "data", about="Classes of the data set."),
    Column("input_chars", "float", "data",
           about="Characters of an evaluation input (both texts, passage, options), median over the examples."),
    Column("k_shots", "int", "data", about="Demonstrations in each prompt."),
    Column("seed", "int", "setting", about="Seed of initialisation and shuffling."),
    Column("data_seed", "int", "setting", about="Seed that draws the training examples and demonstrations."),
    Column("eval_id", "str", "data",
           about="Hash of the evaluation examples. Scores are compared only between rows in which it is equal."),
    Column(
        "precision",
        "str",
        "setting",
        about="Of the weights: `fp32`, `fp16`, `bf16`, `int8`, `nf4`, `int8_weights` or `int4_weights`; of a "
        "checkpoint that is saved quantized, what it says (`gptq`, `awq`, ..).",
    ),
    Column("engine", "str", "setting",
           about="What computed the language model, where it was not transformers: vLLM with its version, or the "
                 "address of an endpoint (`--engine`)."),
    Column("engine_agreement", "float", "quality",
           about="Of the first `--engine_check` examples, the share that transformers answers in the same way; ties of "
                 "label words count as the same."),
    Column("device", "str", "setting", about="`cpu`, `cuda`, `xpu` or `mps`."),
    Column("device_name", "str", "setting",
           about="The GPU, or the processor with its number of usable cores and its widest vector instructions (older "
                 "rows lack these)."),
    Column("tf32", "bool", "setting", about="`true` where products of fp32 matrices are computed in TF32; empty "
                                            "without CUDA."),
    Column("batch_size", "int", "setting", about="Examples of one pass; of `--batch_size auto`, the size found."),
    Column("world_size", "int", "setting", about="Processes of a distributed run."),
    Column("metric", "str", "quality", about="The column that `score` repeats, such as `accuracy` or `token_f1`."),
    Column("score", "float", "quality", "", "score", 1, "The run's main figure."),
    Column("score_low", "float", "quality",
           about="Lower end of its 95 % interval over the examples, clusters of them counted (questions about one "
                 "passage): Wilson's, for clusters and graded scores at the effective sample size."),
    Column("score_high", "float", "quality", about="Upper end of that interval."),
    Column("accuracy", "float", "quality", "", "accuracy", 1,
           "Share of right labels. An answer that cannot be read counts as wrong."),
    Column("macro_f1", "float", "quality", "", "macro F1", 1, "Mean F1 of the classes."),
    Column("exact_match", "float", "quality", "", "exact match", 1,
           "Share of answers that equal a reference after SQuAD's normalisation."),
    Column("token_f1", "float", "quality", "", "token F1", 1, "SQuAD's F1 of the words of answer and reference."),
    Column("unifiedqa_overlap", "float", "quality",
           about="Shared words over those of the longer of answer and reference, as UnifiedQA matches options "
                 "(Khashabi et al. 2020); `jaccard` of earlier versions."),
    Column("jaccard", "float", "quality", about="Shared over all distinct words of answer and reference."),
    Column("rouge_l", "float", "quality", "", "ROUGE-L", 1, "F-measure of the longest common subsequence (Lin 2004)."),
    Column("reference_perplexity", "float", "quality", "", "perplexity of the references", -1,
           "Per token, of the reference answers after their prompts. With `text_perplexity` it was `perplexity` in "
           "earlier versions."),
    Column("text_perplexity", "float", "quality", "", "perplexity of texts", -1,
           "Per token, of the first 64 evaluation texts (quantize_and_parallel.py, classification)."),
    Column("bits_per_byte", "float", "quality", "bits", "bits per byte", -1,
           "Negative log2-likelihood of the same references or texts over their bytes in UTF-8. Unlike perplexity it "
           "compares models of different tokenizers."),
    Column("brier", "float", "quality", "", "Brier score", -1,
           "Squared error of the class probabilities, summed over the classes, from 0 to 2 (Brier 1950)."),
    Column("calibration_error", "float", "quality", "", "calibration error", -1,
           "Expected calibration error of the label probabilities, 10 bins (Guo et al. 2017)."),
    Column("calibration_error_tuned", "float", "quality", "", "calibration error after a temperature", -1,
           "The same after the scores were divided by `calibration_temperature`."),
    Column("calibration_temperature", "float", "quality",
           about="Temperature fitted on the labelled validation examples of a run that trains a classifier; empty "
                 "where it has none. Scores over it give `calibration_error_tuned` again."),
    Column("label_mass", "float", "quality",
           about="Where labels or options are scored by likelihood: mean probability that the model gives to all of "
                 "them together, before they are normalised."),
    Column("general_bits_per_byte", "float", "quality", "bits", "bits per byte of general text", -1,
           "Of a trained language model, on summaries of stories that it was not trained on."),
    Column("forgetting", "float", "quality", "bits", "forgetting", -1,
           "By how much training has raised `general_bits_per_byte`."),
    Column("retained_score", "float", "quality", "", "score on another task", 1,
           "Of a trained language model, zero-shot on 200 examples of a task that it was not trained on (the demo's "
           "movie reviews, or OpenBookQA where it was trained on these)."),
    Column("retained_change", "float", "quality", "", "change on another task", 1,
           "By how much training has changed `retained_score`."),
    Column("invalid_rate", "float", "quality", about="Share of answers that could not be read, or were empty."),
    Column("deferral_rate", "float", "quality", "", "share deferred", -1,
           "Share of the examples that the second model of a cascade answers (cascade.py)."),
    Column("majority_baseline", "float", "quality", about="Accuracy of always answering the most frequent label."),
    Column("score_ood", "float", "quality", "", "score out of domain", 1,
           "Accuracy on the data set of `--eval_ood`; of embed_finetune.py, nDCG@10."),
    Column("win_rate", "float", "chat", "", "win rate", 1,
           "Share of questions on which the judge prefers the answer to the first opponent's; a tie is one half."),
    Column("lc_win_rate", "float", "chat", about="The same, controlled for the answers' lengths (Dubois et al. 2024)."),
    Column("judge_score", "float", "chat", "of 10", "judge's rating", 1, "Mean rating, as MT-Bench asks for it."),
    Column("position_bias", "float", "chat",
           about="Share of pairs in which the same place wins in both orders, whatever stands there."),
    Column("instruction_following", "float", "chat", "", "verifiable instructions followed", 1,
           "Share of questions all of whose IFEval instructions are followed (Zhou et al. 2023, strict)."),
    Column("answer_chars", "float", "chat", "characters", "length of an answer", 0, "Mean length of an answer."),
    Column("refusal_rate", "float", "chat", "", "refusals", -1,
           "Share of answers that begin like a refusal, by their words: a rough count."),
    Column("repetition_rate", "float", "chat", "", "repeated 4-grams", -1,
           "1 - distinct / all 4-grams of words in an answer (seq-rep-n, Welleck et al. 2020)."),
    Column("recall_at_k", "float", "retrieval", "", "recall@k", 1,
           "Share of the relevant documents that are among the k passages of the prompt."),
    Column("precision_at_k", "float", "retrieval", about="Share of the k passages that are of relevant documents."),
    Column("mrr", "float", "retrieval", about="Reciprocal rank of the first relevant document."),
    Column("ndcg_at_10", "float", "retrieval", "", "nDCG@10", 1, "As trec_eval computes it (its ndcg_cut)."),
    Column("map", "float", "retrieval", about="Mean average precision over the ranked documents."),
    Column("answer_in_context", "float", "retrieval",
           about="Share of questions of which a passage in the prompt contains a reference answer."),
    Column("index_recall", "float", "retrieval",
           about="Recall@10 of the index against exact search over the same vectors."),
    Column("index_gb", "float", "retrieval", "GB", about="Size of the index in memory."),
    Column("index_seconds", "float", "retrieval", "s", about="Time to split, embed and index the documents."),
    Column("documents_per_s", "float", "retrieval", "1/s", about="Documents over those seconds."),
    Column("embed_ms", "float", "retrieval", "ms", about="Of a timed request: embedding the question."),
    Column("search_ms", "float", "retrieval", "ms", about="Of a timed request: searching the index."),
    Column("rerank_ms", "float", "retrieval", "ms", about="Of a timed request: reranking the passages."),
    Column("generate_ms", "float", "retrieval", "ms", about="Of a timed request: the rest, which is the answer."),
    Column("latency_ms_mean", "float", "time", "ms",
           about="One request alone, from text in to label or answer out. The whole prompt is computed each time, as "
                 "by a service that cannot cache."),
    Column("latency_ms_p50", "float", "time", "ms", "latency of one request (p50)", -1, "Its median."),
    Column("latency_ms_p95", "float", "time", "ms", "latency of one request (p95)", -1, "Its 95th percentile."),
    Column("latency_ms_p99", "float", "time", "ms", about="Its 99th percentile."),
    Column("cached_latency_ms_mean", "float", "time", "ms",
           about="The same with what all prompts begin with (instruction, demonstrations) in a key-value cache; the "
                 "note says how many tokens that is. Empty for encoder-decoders, for models that cannot share it, and "
                 "in rag_eval.py."),
    Column("cached_latency_ms_p50", "float", "time", "ms", "latency with the prompt's beginning in a cache", -1,
           "Its median."),
    Column("cached_latency_ms_p95", "float", "time", "ms", about="Its 95th percentile."),
    Column("cached_latency_ms_p99", "float", "time", "ms", about="Its 99th percentile."),
    Column("ttft_ms", "float", "time", "ms", "time to the first token", -1,
           "Of one request alone, median. For classification in quantize_and_parallel.py: of requests of "
           "`--prompt_tokens` tokens."),
    Column("cached_ttft_ms", "float", "time", "ms", about="The same with the cache of `cached_latency_ms_mean`."),
    Column("tpot_ms", "float", "time", "ms", "time of each further token", -1,
           "Time per output token after the first, of the same requests, median."),
    Column("tokens_per_s", "float", "time", "1/s", "generated tokens", 1,
           "Throughput: generated tokens over the time of the batched pass, at the row's `batch_size`."),
    Column("speedup", "float", "time", "times", "speed against plain decoding", 1,
           "Compiled or speculative decoding: total time of plain decoding over its own, same requests in turns."),
    Column("acceptance_rate", "float", "time", "", "drafted tokens accepted", 1,
           "Speculative decoding: accepted over drafted tokens."),
    Column("accepted_length", "float", "time", "tokens",
           about="Speculative decoding: new tokens per forward pass of the model; 1 without speculation."),
    Column("greedy_agreement", "float", "time",
           about="Compiled or speculative decoding: share of answers that equal those of plain decoding."),
    Column("compile_seconds", "float", "time", "s",
           about="Compilation for the one shape that was timed; it is in no other time."),
    Column("examples_per_s", "float", "time", "1/s", "examples in batches", 1,
           "Throughput of the evaluation, at the row's `batch_size`."),
    Column("run_seconds", "float", "time", "s",
           about="Of the whole run: from the start of its process, or from the row before in one process, to its row."),
    Column("cpu_seconds", "float", "time", "s",
           about="Processor time of the process (and of processes that it waited for) in `run_seconds`; it hardly "
                 "depends on what else the machine does."),
    Column("train_seconds", "float", "time", "s", "training time", -1,
           "Without evaluations and checkpoints in between."),
    Column("eval_seconds", "float", "time", "s", about="The batched pass over the evaluation examples."),
    Column("load_seconds", "float", "time", "s", about="Loading the model."),
    Column("serving_gpu_gb", "float", "memory", "GB",
           about="Peak of the tensors while the single requests of the latencies are answered, once all that training "
                 "and batches took is given back."),
    Column("serving_rss_gb", "float", "memory", "GB",
           about="Peak of the process' resident memory meanwhile: Python and its libraries, weights, one request."),
    Column("peak_gpu_gb", "float", "memory", "GB",
           about="Peak of the tensors, summed over the GPUs of the process that writes the row; in training, if the "
                 "run trains."),
    Column("peak_gpu_reserved_gb", "float", "memory", "GB", about="Peak of what torch reserved on the GPU, likewise."),
    Column("gpu_used_gb", "float", "memory", "GB",
           about="Peak of the whole current card with all its processes (NVML)."),
    Column("peak_rss_gb", "float", "memory", "GB", about="Peak of the process' resident memory."),
    Column("start_rss_gb", "float", "memory", "GB", about="Resident memory before the model was loaded."),
    Column("model_gb", "float", "memory", "GB", "weights", -1, "The weights in memory, buffers included."),
    Column("artifact_mb", "float", "size", "MB", "size of what was trained", -1, "The files of the model or adapter."),
    Column("predicted_gb", "float", "memory", "GB", about="The peak as forecast from the model's configuration."),
    Column("trainable_params", "int", "size", "", "trained parameters", -1, "Parameters that the run trained."),
    Column("total_params", "int", "size", about="All parameters of the model, adapters included."),
    Column("prompt_tokens", "int", "size", about="Of all evaluation prompts together."),
    Column("generated_tokens", "int", "size", about="Of all evaluation answers together; 0 where labels are scored."),
    Column("status", "str", "outcome", about="See the statuses above."),
    Column("note", "str", "outcome", about="What a reader of the row must know; remarks are separated by semicolons."),
    Column("model_source", "str", "provenance",
           about="Where the model's weights come from: the words of its folder's SOURCE.json (quantised ones say so), "
                 "the run that trained it, a hub name's commit, or the folder."),
    Column("input_id", "str", "provenance", about="Hash of the local files that the flags name: models and data."),
    Column("code_id", "str", "provenance", about="Hash of the script and of all it imports here, without comments."),
    Column("git_commit", "str", "provenance", about="Commit of the checkout."),
    Column("git_dirty", "bool", "provenance", about="Whether tracked files differed from that commit."),
    Column("versions", "json", "provenance", about="Versions of Python and the libraries."),
    Column("args", "json", "provenance", about="All flags with their values."),
    Column("run_dir", "str", "provenance", about="The run's folder: args.json, row.json, predictions.jsonl, ..."),
)

# quantities of a row that charts and tables compare and that are not columns: see configurations.value
DERIVED = (
    Column("memory", "float", "memory", "GB", "memory at the peak", -1,
           "`peak_gpu_gb`, on a CPU `peak_rss_gb`: of training, if the run trains, else of the batched pass; or "
           "`serving_memory`, where that is more."),
    Column("serving_memory", "float", "memory", "GB", "memory of serving", -1,
           "`serving_gpu_gb`, on a CPU `serving_rss_gb`."),
)
# fmt: on

RESULT_COLUMNS = [column.name for column in COLUMNS]
TYPES = {column.name: column.type for column in COLUMNS}
METRICS = {column.name: column for column in (*COLUMNS, *DERIVED) if column.label}

BETTER = {1: "higher", -1: "lower", 0: ""}

PAGE = """\
# The results CSV

Each run appends one row to `--results` (default `results.csv`). This page is made from the table in
[`harness/results/schema.py`](../harness/results/schema.py) by `python -m harness.results.schema > docs/results_csv.md`.

- **An empty cell is unknown**, or does not apply to the run. 0 is a measured 0.
- **Appends are whole and locked.** Several runs may write at once, and a killed run does no harm.
- **A CSV of an earlier version is read as it is**; the columns that it lacks are empty, but for `labels_used`, which is
  derived from `n_train`, `k_shots` and the validation examples that the note names. The first append adds the
  missing columns to the file and keeps the file as it was beside it, as `results.csv.before-new-columns`. Columns that
  this version does not know are refused by name.
- **No file of yours is replaced.** Whatever a flag names as output (`--results`, `--report`, `--export`, charts, ..)
  is written only where there is no file, an empty one, or one that the same flag wrote before.
- A CSV that a spreadsheet saved as `CSV UTF-8` is read and appended to; one with semicolons, tabs or decimal commas is
  refused by name. A text that a spreadsheet would run as a formula has an apostrophe in front.
- `python plot_results.py --export results.db` (or `.json`) writes the rows with the types below; unknown is null.

{statuses}

## The run folder

`runs/RUN_ID/` holds `args.json`, `row.json` and `predictions.jsonl`, from which every score of the row can be computed
again; also the model or adapter with `training_history.json` and `training_curves.png`, or the `requests.jsonl` of
timed decoding. A run that was cut off goes on with `--resume`.
"""


def page():
    """docs/results_csv.md: the page's text, then one table for each group."""
    parts = [
        PAGE.format(
            statuses=markdown.table(("`status`", "meaning"), [(f"`{name}`", about) for name, about in STATUSES.items()])
        )
    ]
    for group, about in GROUPS.items():
        rows = [(f"`{c.name}`", c.type, c.unit, BETTER[c.direction], c.about) for c in COLUMNS if c.group == group]
        table = markdown.table(("column", "type", "unit", "better", "meaning"), rows)
        parts.append("\n".join([f"## {group.capitalize()}", "", about, "", table, ""]))
    lines = [f"- `{c.name}`{c.unit and f' ({c.unit})'}: {c.about}" for c in DERIVED]
    parts.append(
        "\n".join(["## Derived", "", "Charts and tables also compare quantities that are no columns:", "", *lines, ""])
    )
    return "\n".join(parts)


if __name__ == "__main__":
    print(page(), end="")
