"""A model with a classification head in another runtime: ONNX Runtime or OpenVINO; and torchao's weights for any model.

ONNX Runtime's int8 is dynamic: weights are rounded once, activations as they come. OpenVINO's int8 is static: NNCF also
fixes the ranges of the activations, on texts without labels. torchao rounds the weights of linear layers, and for int8
their inputs as they come. Scoring is that of every other classifier (scoring.classify).
"""

import concurrent.futures
import gc
import importlib
import json
import logging
import multiprocessing
from pathlib import Path
from types import SimpleNamespace

import torch
from transformers import AutoConfig

import utils
from harness.models import adapters, batching, loading, scoring

CALIBRATION = 300  # texts that fix the ranges of OpenVINO's activations: NNCF's default
INPUTS = ("input_ids", "token_type_ids", "attention_mask")
GROUP = 32  # weights that share a scale, int4


class Session:
    """A converted classifier, called as a transformers model is: input ids and mask [B, T] to .logits [B, C]."""

    device, is_quantized, kind = torch.device("cpu"), False, "classifier"

    def __init__(self, file, runtime):
        about = json.loads(Path(file).with_name("about.json").read_text())
        self.config = AutoConfig.for_model(**about["config"])
        self.params, self.gb, self.seconds = about["params"], about["gb"], about["seconds"]
        self.run = _open_onnx(file) if runtime == "onnx" else _open_openvino(file)

    def __call__(self, **inputs):
        logits = self.run({name: tensor.numpy() for name, tensor in inputs.items()})
        return SimpleNamespace(logits=torch.from_numpy(logits))

    def num_parameters(self):
        """Of the model that was converted."""
        return self.params

    def get_memory_footprint(self):
        """Bytes of the weights as they are saved."""
        return self.gb * utils.GB

    def parameters(self):
        """None that torch could train."""
        return iter(())


def _library(name):
    """An optional library, which takes its time to import; UserError where it is missing."""
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise utils.UserError(
            f"--runtime: {error}; pip install -r requirements-runtimes.txt -c constraints.txt"
        ) from None


def _open_onnx(file):
    onnxruntime = _library("onnxruntime")
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    session = onnxruntime.InferenceSession(file, options, providers=["CPUExecutionProvider"])
    wanted = [value.name for value in session.get_inputs()]
    return lambda inputs: session.run(None, {name: inputs[name] for name in wanted})[0]


def _open_openvino(file):
    openvino = _library("openvino")
    settings = {"PERFORMANCE_HINT": "LATENCY", "INFERENCE_NUM_THREADS": torch.get_num_threads()}
    settings["INFERENCE_PRECISION_HINT"] = "f32"  # what is not int8: bf16 by default where the processor has it
    compiled = openvino.Core().compile_model(file, "CPU", settings)
    wanted = [value.any_name for value in compiled.inputs]
    return lambda inputs: compiled({name: inputs[name] for name in wanted})[0]


def convert(runtime, precision, folder, texts, **options):
    """The file of a classifier, converted and saved in the folder by a process of its own, so that memory is that of
    serving; its tokenizer beside it.

    texts: N unlabelled inputs, or pairs of them, for OpenVINO's int8; options: of loading.load_model. UserError where a
    library is missing or cannot convert the model.
    """
    Path(folder).mkdir(parents=True, exist_ok=True)
    context = multiprocessing.get_context("spawn")
    with concurrent.futures.ProcessPoolExecutor(1, mp_context=context) as pool:
        try:
            return pool.submit(_converted, runtime, precision, str(folder), texts, options).result()
        except concurrent.futures.process.BrokenProcessPool:
            raise utils.RunFailed(f"--runtime {runtime}: the process that converts the model was killed") from None


def _converted(runtime, precision, folder, texts, options):
    """Convert in this process; returns the file. The folder gets it and about.json."""
    loading.quiet()
    tokenizer = loading.load_tokenizer(options["name"], options["trust_remote_code"], adapter=options["adapter"])
    model, _ = adapters.merge_adapter(loading.load_model(**options))
    with utils.measure() as spent:
        file = f"{folder}/model.onnx"
        for name in ("onnx", "onnxscript"):  # torch's exporter needs them
            _library(name)
        try:
            _export(model, tokenizer, file)
        except torch.onnx.OnnxExporterError as error:
            raise utils.UserError(f"--runtime {runtime}: torch cannot export {options['name']}: {error}") from None
        if runtime == "openvino":
            file = _to_openvino(model, tokenizer, file, texts if precision == "int8" else None)
        elif precision == "int8":
            file = _round_onnx(file)
    weights = Path(file).with_suffix(".bin" if runtime == "openvino" else ".onnx")
    about = {"config": model.config.to_dict(), "params": model.num_parameters(), "seconds": spent.seconds}
    about["gb"] = weights.stat().st_size / utils.GB
    tokenizer.save_pretrained(folder)
    (Path(folder) / "about.json").write_text(json.dumps(about, indent=2) + "\n")
    return file


class _Logits(torch.nn.Module):
    def __init__(self, model, names):
        super().__init__()
        self.model, self.names = model, names

    def forward(self, *tensors):
        return self.model(**dict(zip(self.names, tensors))).logits


def _export(model, tokenizer, file):
    """Save the model as ONNX, for any batch and length."""
    rows = tokenizer(["two texts", "of two lengths, that is"], padding=True, return_tensors="pt")
    names = [name for name in INPUTS if name in rows]
    sizes = {
        0: torch.export.Dim("batch"),
        1: torch.export.Dim("tokens", max=scoring.classifier_length(model, tokenizer)),
    }
    logging.getLogger("torch.onnx").setLevel(logging.ERROR)
    with torch.inference_mode():
        torch.onnx.export(
            _Logits(model, names).eval(),
            tuple(rows[name] for name in names),
            file,
            input_names=names,
            output_names=["logits"],
            dynamo=True,
            dynamic_shapes=(tuple(sizes for _ in names),),
            external_data=False,
            verbose=False,
        )


def _round_onnx(file):
    quantization = _library("onnxruntime.quantization")
    logging.disable(logging.WARNING)  # asks for a pass of symbolic shapes, which changes nothing here
    rounded = file.replace(".onnx", "_int8.onnx")
    quantization.quantize_dynamic(file, rounded, weight_type=quantization.QuantType.QInt8, per_channel=True)
    logging.disable(logging.NOTSET)
    Path(file).unlink()
    return rounded


def _to_openvino(model, tokenizer, file, texts):
    openvino = _library("openvino")
    converted = openvino.convert_model(file)
    if texts is not None:
        nncf = _library("nncf")
        nncf.set_log_level(logging.ERROR)
        rows = [dict(batch) for batch in _single_rows(model, tokenizer, texts)]
        data = nncf.Dataset(rows)
        converted = nncf.quantize(converted, data, model_type=nncf.ModelType.TRANSFORMER, subset_size=len(rows))
    saved = file.replace(".onnx", ".xml")
    openvino.save_model(converted, saved, compress_to_fp16=False)
    Path(file).unlink()
    return saved


def _single_rows(model, tokenizer, texts):
    """Inputs of each text alone, as scoring.classify gives them, in numpy."""
    limit = scoring.classifier_length(model, tokenizer)
    for text in texts:
        row = tokenizer(*text, truncation=True, max_length=limit)
        ids, mask = batching.pad_rows([row["input_ids"]], tokenizer.pad_token_id, torch.device("cpu"))
        types = {"token_type_ids": torch.tensor([row["token_type_ids"]])} if "token_type_ids" in row else {}
        named = {"input_ids": ids, "attention_mask": mask, **types}
        yield {name: tensor.numpy() for name, tensor in named.items()}


def round_weights(model, precision):
    """Round the linear layers of a model by torchao, in place, heads left out. Returns (how many, of how many).

    precision: int8 (weights, and inputs as they come), int8_weights, int4_weights (in groups of GROUP; computes in bf16
    on a CPU).
    """
    quantization = _library("torchao.quantization")
    if precision == "int4_weights":
        model.to(torch.bfloat16)
        prototype = _library("torchao.prototype.quantization.int4")
        config = prototype.PrototypeInt4WeightOnlyConfig(group_size=GROUP, set_inductor_config=False)
    elif precision == "int8_weights":
        config = quantization.Int8WeightOnlyConfig()
    else:
        config = quantization.Int8DynamicActivationInt8WeightConfig()
    linear = {name: m for name, m in model.named_modules() if isinstance(m, torch.nn.Linear)}
    fits = {
        name
        for name, m in linear.items()
        if not set(name.split(".")) & set(adapters.HEADS)
        and (precision != "int4_weights" or (m.in_features % GROUP == 0 and m.out_features % 16 == 0))
    }
    quantization.quantize_(model, config, filter_fn=lambda module, name: name in fits)
    gc.collect()
    return len(fits), len(linear)


def weight_gb(model):
    """GB of a model's weights; of torchao's, their numbers and scales."""
    total = 0
    for weight in [*model.parameters(), *model.buffers()]:
        inner = weight.data
        if hasattr(inner, "tensor_data_names"):
            names = [*inner.tensor_data_names, *getattr(inner, "optional_tensor_data_names", ())]
            parts = [part for part in (getattr(inner, name, None) for name in names) if part is not None]
        else:
            parts = [inner]
        total += sum(part.numel() * part.element_size() for part in parts)
    return total / utils.GB
