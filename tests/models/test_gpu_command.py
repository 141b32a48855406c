"""What `make gpu` runs on a machine with a card, on the processor and on pretended cards with tiny sizes."""

import os
import subprocess
import sys

import pytest
from helpers import ROOT

from harness.results import store


@pytest.mark.slow
@pytest.mark.parametrize("pretended", [False, True])
def test_it_runs_to_its_end(pretended, tiny_llama, tiny_embedder, sentiment, questions, tmp_path):
    inputs = {"model": tiny_llama, "embed_model": tiny_embedder, "dataset": sentiment, "questions": questions}
    words = [word for name, value in inputs.items() for word in (f"--{name}", str(value))]
    site = {"PRETEND_CARDS": "1", "PYTHONPATH": str(ROOT / "tests/pretend_site")} if pretended else {}
    steps = ["models", "suite", "scoring", "decoding", "forecast", "page"]
    done = subprocess.run(
        [sys.executable, str(ROOT / "benchmarks/gpu.py"), "--tiny", *words, "--steps", *steps],
        cwd=tmp_path,
        env={**os.environ, "OMP_NUM_THREADS": "1", **site},
        capture_output=True,
        text=True,
    )
    logs = "\n".join(file.read_text()[-2000:] for file in tmp_path.glob("gpu/*.log"))
    assert done.returncode == 0 and "exit code" not in done.stdout, f"{done.stdout}{done.stderr}{logs}"
    rows = store.read_results(tmp_path / "gpu_results.csv")
    assert {row["status"] for row in rows} <= {"ok", "degenerate"}, [row["note"] for row in rows]
    assert {row["device"] for row in rows} == {"cuda" if pretended else "cpu"} and len(rows) == 16
    assert {"finetune.py", "peft_finetune.py", "probe.py", "rag_eval.py"} < {row["script"] for row in rows}
    text = (tmp_path / "gpu" / "report.md").read_text()
    assert "say nothing about the card" in text and "our time over the floor's" in text and "not measured" in text
