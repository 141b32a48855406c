"""Readable names of configurations, such as "LoRA r=8, MiniLM, 2,000 labels".

Charts, tables, the report and the selector show them.
"""

import json
import math
import re
from pathlib import Path

from harness.results import label_counts, store

STRATEGIES = {
    "full_finetuning": "Full fine-tuning",
    "peft": "PEFT",
    "probe": "Probe",
    "prompting": "Prompting",
    "rag": "RAG",
    "quantized": "Trained model by precision",
    "context_distillation": "Context distillation",
    "cascade": "Cascade",
    "chat": "Chat",
    "distillation": "Distillation",
    "setfit": "SetFit",
}
NO_LABELS = ("rag", "chat")  # strategies whose names need no number of labels
METHODS = {
    "lora": "LoRA",
    "dora": "DoRA",
    "rslora": "rsLoRA",
    "adalora": "AdaLoRA",
    "ia3": "(IA)3",
    "shira": "SHiRA",
    "miss": "MiSS",
    "oft": "OFT",
    "vera": "VeRA",
    "prompt_tuning": "Prompt tuning",
    "prefix_tuning": "Prefix tuning",
}
# the variants that the scripts write: lora_r8_query+value_nf4, 8_shot_batch_calibrated_generated, k4_hybrid_flat_rerank
ADAPTER = re.compile(
    rf"({'|'.join(METHODS)})(?:_r(\d+))?(?:_v(\d+))?(?:_(pissa|olora|eva|loftq|orthogonal))?(?:_plus([\d.e+]+))?"
    r"(?:_(?!int8$|nf4$)(.+?))?(?:_(int8|nf4))?"
)
WITH_PASSAGES = re.compile(r"(.+)_(raft|gold)_k(\d+)")  # by --context
CONFIGURED = re.compile(r"([a-z0-9_]+?)_from_(.+?)(?:_(int8|nf4))?")  # by --peft_config
STARTS = {"pissa": "PiSSA", "olora": "OLoRA", "eva": "EVA", "loftq": "LoftQ", "orthogonal": "orthogonal"}
DEMONSTRATED = re.compile(r"(.+?)_(\d+)_shot(_adapter)?")  # rag_eval.py --k_shots
PROBE = re.compile(r"(embedder|lm|tfidf)_(logreg|knn|names)(_contrastive)?")
SHOTS = re.compile(
    r"(?:(\d+)_shot|searched(?:_(\d+))?)(?:_(random|nearest))?(?:_([a-z]+)_calibrated(?:_on_([a-z]+))?)?"
    r"(_generated)?(_cot)?(?:_(\d+)_samples)?(_likelihood)?(_adapter)?"
)
# what batch calibration estimates the label prior on; the evaluation inputs unless the variant says otherwise
CALIBRATED_ON = {"train": " on training labels", "unlabelled": " on unlabelled inputs", None: " (transductive)"}
RETRIEVAL = re.compile(r"(retrieval_only|k\d+)((?:_[a-z0-9]+)*)")
RUNTIMES = {"torchao": "torchao", "onnx": "ONNX Runtime", "openvino": "OpenVINO"}
BY_PRECISION = re.compile(rf"([^_]+?(?:_weights)?)(?:_({'|'.join(RUNTIMES)}))?(?:_(.+))?")
TRAINED = re.compile(r"(embedder|reranker)_(bm25|dense|hybrid)_(\d+)")  # by embed_finetune.py
WITHOUT_PASSAGES = {
    "no_retrieval": "No retrieval",
    "random_passages": "RAG, random passages",
    "gold_passage": "RAG, gold passage",
    "all_that_fits": "RAG, all passages that fit",
}

# flags that tell namesakes apart, those that explain a difference in score first; flags that are not named here stand
# between the two lists, in alphabetical order
FIRST = (
    "label_words",
    "template",
    "instruction",
    "prompt_format",
    "scoring",
    "normalise",
    "calibrate",
    "calibrate_on",
    "language",
    "retriever",
    "embed_model",
    "reranker",
    "chunk_tokens",
    "chunk_overlap",
    "k",
    "rank",
    "alpha",
    "target_modules",
    "quantize",
    "precision",
    "learning_rate",
    "max_steps",  # before the epochs, which it replaces
    "epochs",
    "label_budget",
    "max_train_samples",
    "max_validation_samples",
    "max_length",
)
LAST = ("batch_size", "gradient_accumulation", "gradient_checkpointing", "strategy", "variant", "script", "run_id")
# how a flag and its value are said, where that is not the flag's name and the value
WORDS = {
    "batch_size": "batch {}",
    "chunk_tokens": "chunks of {} tokens",
    "epochs": "{} epochs",
    "k": "{} passages",
    "label_budget": "budget of {} labels",
    "max_length": "{} tokens at most",
    "max_steps": "{} steps",
    "max_train_samples": "{} training examples at most",
    "max_validation_samples": "{} validation examples at most",
    "precision": "{}",
    "weights": "{} weights",
}


def adapter(variant):
    """lora_r8_query+value_nf4 -> LoRA r=8 on query+value, nf4 base; None for another variant."""
    if match := CONFIGURED.fullmatch(variant):
        return f"{METHODS.get(match[1], match[1].upper())} of {match[2]}.json" + (
            f", {match[3]} base" if match[3] else ""
        )
    match = ADAPTER.fullmatch(variant)
    if match is None:
        return None
    method, rank, tokens, start, plus, modules, base = match.groups()
    text = ("LoRA+" if plus and method == "lora" else METHODS[method]) + (f" r={rank}" if rank else "")
    text += (f" of {tokens} tokens" if tokens else "") + (f", {STARTS[start]} start" if start else "")
    text += f", B learns {plus} times as fast" if plus else ""
    return text + (f" on {modules}" if modules else "") + (f", {base} base" if base else "")


def probe(variant):
    """lm_knn -> kNN probe on LM states; None for another variant."""
    match = PROBE.fullmatch(variant)
    if match is None:
        return None
    if match[3] or match[2] == "names":
        return "SetFit" if match[3] else "Zero-shot by label names"
    where = {"embedder": "", "lm": " on LM states", "tfidf": " on TF-IDF"}[match[1]]
    return ("kNN probe" if match[2] == "knn" else "Probe") + where


def prompt(variant, calibrated_on=CALIBRATED_ON):
    """8_shot_batch_calibrated_on_train -> 8-shot prompt, batch-calibrated on training labels; None for another variant.

    calibrated_on: {where: words}; {} for a teacher, which is always calibrated on unlabelled inputs.
    """
    match = SHOTS.fullmatch(variant)
    if match is None:
        return None
    shots, candidates, demos, prior, where, generated, cot, samples, likelihood, adapted = match.groups()
    chosen = f"Best of {candidates} prompts on its labels" if candidates else "Prompt chosen on its labels"
    parts = [f"{shots}-shot prompt" if shots else chosen, demos and f"{demos} demonstrations"]
    parts.append(f"{prior}-calibrated" + (calibrated_on.get(where, "") if prior == "batch" else "") if prior else None)
    parts += [generated and "generated answers", cot and "reasons first", samples and f"vote of {samples} answers"]
    return ", ".join(filter(None, [*parts, likelihood and "scored by likelihood", adapted and "with an adapter"]))


def retrieval(variant):
    """k4_hybrid_hnsw_rerank -> RAG k=4, hybrid, hnsw index, reranked; None for another variant."""
    match = RETRIEVAL.fullmatch(variant)
    if match is None:
        return None
    words = match[2].split("_")[1:]
    parts = ["Retrieval only" if match[1] == "retrieval_only" else f"RAG k={match[1][1:]}"]
    parts.append({"bm25": "BM25", "hybrid": "hybrid"}.get(words[0] if words else "", "dense"))
    for word in words:
        if word not in ("bm25", "hybrid", "flat"):  # flat: exact search, the usual index
            parts.append({"rerank": "reranked", "mmr": "MMR"}.get(word, f"{word} index"))
    return ", ".join(parts)


def trained_retrieval(variant):
    """embedder_bm25_1 -> Trained embedder, 1 hard negative by BM25; None for another variant."""
    match = TRAINED.fullmatch(variant)
    if match is None:
        return None
    miner = "BM25" if match[2] == "bm25" else f"{match[2]} search"
    return f"Trained {match[1]}, {match[3]} hard negative{'s' * (match[3] != '1')} by {miner}"


def distilled(variant):
    """8_shot_to_lora_r8 -> 8-shot prompt, distilled into LoRA r=8; None for another variant."""
    teacher, _, student = variant.partition("_to_")
    online = student.endswith("_online")
    student = student.removesuffix("_online")
    target = "all weights" if student == "full" else adapter(student) or student
    if prompt(teacher, {}) is None or not target:
        return None
    return f"{prompt(teacher, {})}, distilled into {target}" + (", online targets" if online else "")


def strategy(row):
    """A row's strategy; a probe on an encoder that was trained on the labels is SetFit."""
    tuned = row["strategy"] == "probe" and str(row["variant"]).endswith("_contrastive")
    return "setfit" if tuned else row["strategy"]


def kin(row):
    """The strategy that a row is a case of: at some precision, a zero-shot prompt is prompting and an adapter PEFT."""
    if row["strategy"] != "quantized":
        return strategy(row)
    if label_counts.flags_of(row).get("adapter"):
        return "peft"
    return "prompting" if str(row.get("labels_used")) in ("0", "0.0") else "quantized"  # trained before, or unknown


def technique(row):
    """What a row's strategy and variant are called, without model and labels."""
    strategy, variant = row["strategy"], row["variant"]
    if variant == "checkpoint":
        return f"{STRATEGIES.get(strategy, strategy)}, saved checkpoint"
    if (strategy, variant) == ("full_finetuning", "full"):
        return STRATEGIES[strategy]
    if strategy == "quantized":  # nf4, fp32_prompt_lookup4, bf16_compiled
        precision, runtime, decoding = BY_PRECISION.fullmatch(variant).groups()
        decoding = re.sub(r"(\d+)$", r" \1", decoding or "").replace("_", " ")
        precision = precision.replace("_", " ") + (f" by {RUNTIMES[runtime]}" if runtime else "")
        what = {"peft": "Adapter", "prompting": "0-shot prompt"}.get(kin(row), "Trained model")
        return ", ".join(filter(None, [f"{what} in {precision}", decoding]))
    if strategy == "cascade":  # probe:embedder_logreg:all-MiniLM-L6-v2>prompting:8_shot
        sides = [[*side.split(":", 2), "", ""][:3] for side in variant.split(">", 1)]
        said = [technique({"strategy": s, "variant": v}) + (f" ({short_model(m)})" if m else "") for s, v, m in sides]
        return f"Cascade of {' and '.join(said)}"
    if strategy == "chat":
        return "Chat, adapter" if variant.endswith("_adapter") else "Chat"
    if match := WITH_PASSAGES.fullmatch(variant):
        how = "RAFT" if match[2] == "raft" else "trained on gold passages"
        return f"{technique({**row, 'variant': match[1]})}, {how}, {match[3]} passages"
    if (match := DEMONSTRATED.fullmatch(variant)) and (strategy == "rag" or match[1] in WITHOUT_PASSAGES):
        return technique({**row, "variant": match[1] + (match[3] or "")}) + f", {match[2]} demonstrations"
    bare = variant.removesuffix("_adapter")
    if bare != variant and (strategy == "rag" or bare in WITHOUT_PASSAGES):
        return technique({**row, "variant": bare}) + ", with an adapter"
    name = WITHOUT_PASSAGES.get(variant)
    for read in (adapter, probe, prompt, retrieval, trained_retrieval, distilled):
        name = name or read(variant)
    return name or f"{strategy} {variant}".replace("_", " ").strip()


def labels(row):
    """2,000 labels, for a row that was trained or chosen with so many; nothing for another."""
    searched = row["variant"].startswith("searched")  # uses more or fewer labels of its budget by the draw
    shots = row["strategy"] == "prompting" and prompt(row["variant"]) and not searched
    told = (row["strategy"] in NO_LABELS and not trained_retrieval(row["variant"])) or shots
    budget = label_counts.flags_of(row).get("label_budget") if searched else None
    known = None if told else budget or store.number(row["labels_used"])
    n = int(known) if known and math.isfinite(known) else 0
    return f"{n:,} label{'s' * (n != 1)}" if n else ""


def models(paths):
    """{model: short name}: SmolLM2-135M-Instruct is SmolLM2-135M, unless two of these models would share that name."""
    shown, paths = {}, list(dict.fromkeys(paths))
    for shorten in (short_model, lambda path: Path(path).name, lambda path: "/".join(Path(path).parts[-2:]), str):
        texts = [shorten(path) for path in paths]
        for path, text in zip(paths, texts):
            if path not in shown and texts.count(text) == 1:
                shown[path] = text
    return shown


def short_model(path):
    """all-MiniLM-L6-v2 -> MiniLM, SmolLM2-135M-Instruct -> SmolLM2-135M."""
    name = re.sub(r"-(instruct|it|chat|hf)$", "", Path(path).name, flags=re.IGNORECASE)
    return re.sub(r"^all-(\w+)-L\d+-v\d+$", r"\1", name)


def rows(members):
    """[N] names of a panel's rows, one row a configuration: technique, model, labels. Not unique: see tell_apart."""
    shown = models(row["model"] for row in members)
    return [", ".join(filter(None, [technique(row), shown[row["model"]], labels(row)])) for row in members]


def shared(members):
    """The name of what rows have in common: LoRA r=4 and LoRA r=8 of one model -> LoRA, MiniLM, 500 labels."""
    techniques = [technique(row).split() for row in members]
    common = " ".join(word for word in techniques[0] if all(word in words for words in techniques))
    common = re.sub(r"( on| of| in|,)$", "", common)
    amounts, paths = {labels(row) for row in members}, list(dict.fromkeys(row["model"] for row in members))
    parts = [common[:1].upper() + common[1:], short_model(paths[0]) if len(paths) == 1 else ""]
    return ", ".join(filter(None, [*parts, amounts.pop() if len(amounts) == 1 else ""]))


def tell_apart(texts, settings, keys=None):
    """The names made unique: those that are equal get the settings in which they differ, no more than needed.

    texts: [N] names. settings: [N] of {flag: value}. keys: the flags to try, in this order; the default is FIRST, then
    all others, then LAST, which ends with the unique run_id.
    """
    texts = list(texts)
    others = sorted({key for found in settings for key in found} - {*FIRST, *LAST})
    for key in keys or (*FIRST, *others, *LAST):
        namesakes = {}
        for i, text in enumerate(texts):
            namesakes.setdefault(text, []).append(i)
        for places in namesakes.values():
            for i, word in zip(places, said(key, [settings[i].get(key) for i in places])):
                texts[i] += f", {word}" if word else ""
    return texts


def said(key, values):
    """Words for the values of one flag; "" for all where they are equal."""
    different = len({json.dumps(value, sort_keys=True) for value in values})
    if different == 1:
        return [""] * len(values)
    texts = [setting(key, value) for value in values]
    if len(set(texts)) == different:
        return texts
    return [f"{key} {json.dumps(value)}" for value in values]  # two values read the same when shortened: in full


def setting(key, value):
    """A flag and its value in words; "" for what is switched off."""
    if value is None or value is False or value == "none":
        return ""
    name = key.replace("_", " ")
    if value is True:
        return name
    text = "/".join(map(str, value)) if isinstance(value, list) else str(value)
    if isinstance(value, (int, float)):
        text = f"{value:,}" if isinstance(value, int) else f"{value:g}"
    elif Path(text).is_absolute() or key in ("embed_model", "reranker"):
        text = Path(text).name
    text = " ".join(text.split())
    text = text if len(text) <= 40 else text[:37] + "..."
    return WORDS.get(key, f"{name} {{}}").format(text)
