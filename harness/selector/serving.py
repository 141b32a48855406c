"""The command of a server of the field that serves what a row measured."""

import json
import shlex
from pathlib import Path

GENERATES = ("prompt_eval.py", "rag_eval.py", "chat_eval.py", "finetune.py", "peft_finetune.py")


def serve_command(row):
    """`vllm serve ..` (a GPU) or `transformers serve ..` (a CPU) of a row's language model; None where its answers come
    from a classification head, or the row does not say what to serve.

    A base in 4 bits is served so; one in 8 bits, which vLLM does not make when it loads, is not.
    `--engine http://127.0.0.1:8000/v1` of prompt_eval.py, rag_eval.py and chat_eval.py then asks it.
    """
    try:
        flags = json.loads(row["args"])
    except ValueError:
        return None
    model, script = flags.get("gen_model") or flags.get("model"), row["script"]
    if isinstance(model, list):
        model = model[0]
    trained = script in ("finetune.py", "peft_finetune.py")
    head = row["variant"] == "checkpoint" or (trained and row["metric"] == "accuracy")
    if script not in GENERATES or not model or head or row["precision"] == "int8":
        return None
    run, adapter = Path(flags.get("runs_dir") or "runs") / row["run_id"], flags.get("adapter")
    adapter = adapter[0] if isinstance(adapter, list) and adapter else adapter or None
    if script == "finetune.py":
        model = str(run / "model")
    if script == "peft_finetune.py":
        adapter = str(run / "adapter")
    narrow = ["--quantization", "bitsandbytes"] if row["precision"] == "nf4" else []
    if row["device"] == "cpu":
        return None if adapter or narrow else shlex.join(["transformers", "serve", model, "--device", "cpu"])
    lora = ["--enable-lora", "--lora-modules", f"tuned={adapter}"] if adapter else []
    lora += ["--max-lora-rank", str(flags["rank"])] if lora and (flags.get("rank") or 0) > 16 else []
    return shlex.join(["vllm", "serve", model, *narrow, *lora])
