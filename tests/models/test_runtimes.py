"""Classifiers in other runtimes: what they compute, what they weigh, and what a run of them says."""

import numpy as np
import pytest
from helpers import predictions

import finetune
import peft_finetune
import quantize_and_parallel
from harness.results import names, store

pytestmark = pytest.mark.filterwarnings("ignore")


@pytest.fixture(scope="module")
def classifier(sentiment, tiny_bert, tmp_path_factory):
    """(flags of a trained classifier, its row in fp32 by torch)."""
    folder = tmp_path_factory.mktemp("classifier")
    out = ["--results", str(folder / "r.csv"), "--runs_dir", str(folder / "runs"), "--latency_runs", "0"]
    finetune.main(["--model", tiny_bert, "--dataset", sentiment, "--epochs", "8", "--learning_rate", "1e-3", *out])
    (row,) = store.read_results(folder / "r.csv")
    flags = ["--model", f"{row['run_dir']}/model", "--dataset", sentiment]
    quantize_and_parallel.main([*flags, *out])
    return flags, store.read_results(folder / "r.csv")[-1]


def probabilities(row):
    return np.exp([list(p["scores"].values()) for p in predictions(row)])


@pytest.mark.parametrize(
    "runtime, precision, near, smaller",
    [
        ("onnx", "fp32", 1e-4, 2.5),
        ("onnx", "int8", 0.1, 1.5),
        ("openvino", "fp32", 1e-4, 1.3),
        ("openvino", "int8", 0.2, 0.9),
        ("torchao", "int8", 0.1, 0.9),
        ("torchao", "int8_weights", 0.1, 0.9),
        ("torchao", "int4_weights", 0.3, 0.9),
    ],
)
def test_every_runtime_classifies_as_torch_does(classifier, runtime, precision, near, smaller, out, only_row):
    flags, plain = classifier
    quantize_and_parallel.main([*flags, "--runtime", runtime, "--precision", precision, "--batch_size", "1", *out])
    row = only_row()
    assert float(plain["score"]) > 0.8, "a classifier that has learnt something"
    difference = np.abs(probabilities(plain) - probabilities(row)).max()
    assert difference < near and (difference > 0 or precision == "fp32")
    assert float(row["model_gb"]) < smaller * float(plain["model_gb"])
    assert row["variant"] == f"{precision}_{runtime}" and row["precision"] == precision
    assert row["eval_id"] == plain["eval_id"] and row["labels_used"] == plain["labels_used"] != "0"
    assert float(row["latency_ms_p50"]) > 0 and row["total_params"] == plain["total_params"]
    library = {"onnx": "ONNX Runtime", "openvino": "OpenVINO"}.get(runtime, runtime)
    assert names.technique(row) == f"Trained model in {precision.replace('_', ' ')} by {library}"


def test_a_trained_adapter_is_merged_and_converted(sentiment, tiny_bert, out, tmp_path):
    data = ["--dataset", sentiment, *out]
    peft_finetune.main(["--model", tiny_bert, "--epochs", "4", "--learning_rate", "1e-2", *data])
    (trained,) = store.read_results(tmp_path / "results.csv")
    flags = ["--model", tiny_bert, "--adapter", f"{trained['run_dir']}/adapter"]
    quantize_and_parallel.main([*flags, "--runtime", "onnx", *data])
    row = store.read_results(tmp_path / "results.csv")[-1]
    assert np.abs(probabilities(trained) - probabilities(row)).max() < 1e-4
    assert row["labels_used"] == trained["labels_used"]


def test_a_language_model_by_torchao(sentiment, tiny_llama, out, tmp_path):
    flags = ["--model", tiny_llama, "--dataset", sentiment, "--max_eval_samples", "10", "--new_tokens", "4", *out]
    quantize_and_parallel.main(flags)
    quantize_and_parallel.main([*flags, "--runtime", "torchao", "--precision", "int8_weights"])
    plain, row = store.read_results(tmp_path / "results.csv")
    assert float(row["model_gb"]) < float(plain["model_gb"]) and float(row["tokens_per_s"]) > 0
    assert np.abs(probabilities(plain) - probabilities(row)).max() < 0.05
    assert "linear layers in int8_weights" in row["note"]


@pytest.mark.parametrize(
    "flags, said",
    [
        (["--runtime", "onnx"], "is for a model with a classification head"),
        (["--runtime", "onnx", "--nf4"], "--runtime onnx has fp32, int8, not --precision nf4"),
        (["--precision", "int8_weights"], "--runtime torchao has"),
        (["--runtime", "onnx", "--adapter", "x", "--no-merge_adapter"], "leave out --no-merge_adapter"),
        (["--runtime", "torchao"], "--runtime torchao has int8, int8_weights, int4_weights, not --precision fp32"),
        (["--runtime", "onnx", "--compile"], "leave out --device and --compile"),
        (["--runtime", "torchao", "--int8", "--device_map", "auto"], "for one device and plain decoding"),
    ],
)
def test_what_a_runtime_does_not_do_is_one_line(flags, said, sentiment, tiny_llama, out, capsys, tmp_path):
    with pytest.raises(SystemExit) as error:
        quantize_and_parallel.main(["--model", tiny_llama, "--dataset", sentiment, *flags, *out])
    lines = capsys.readouterr().err.strip().splitlines()
    assert error.value.code == 2 and len(lines) == 1 and said in lines[0]
    assert not (tmp_path / "results.csv").exists()
