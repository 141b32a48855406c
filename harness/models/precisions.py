"""The precision of weights: its dtype, how bitsandbytes packs it, and what a device can compute."""

import argparse
import os

import torch
from transformers import BitsAndBytesConfig

import utils
from harness.models import adapters, folder, properties

# kept as they are by int8 and nf4: heads, BioGPT's tied head, and the layer whose weight Mamba multiplies by itself
UNQUANTIZED = [*adapters.HEADS, "output_projection", "dt_proj"]


def computed_in(device):
    """The precision that a device computes quantized weights in: 16 bits on a GPU, bf16 where it has that and does not
    only emulate it; fp32 on a CPU, as not every CPU multiplies bf16 fast.
    """
    if device == "cpu":
        return "fp32"
    if device == "cuda":
        return "bf16" if torch.cuda.is_bf16_supported(including_emulation=False) else "fp16"
    return "bf16" if torch.bfloat16 in torch.accelerator.get_device_capability()["supported_dtypes"] else "fp16"


def settled(args, name, device):
    """The flags with a precision in place of --precision auto: of the model `name` on a GPU that in which its
    configuration says that it was saved, bf16 as fp16 where the card does not compute in it; else fp32.
    """
    if args.precision != "auto":
        return args
    dtype = None
    if name is not None and device != "cpu":
        config = folder.configuration(name, args.trust_remote_code)
        dtype = properties.text_config(config).dtype or config.dtype
    narrow = {torch.float16: "fp16", torch.bfloat16: computed_in(device)}
    return argparse.Namespace(**{**vars(args), "precision": narrow.get(dtype, "fp32")})


def quantization_config(precision, device, compute_dtype=None, double_quant=True):
    """The BitsAndBytesConfig of int8 (Dettmers et al. 2022) or nf4 (Dettmers et al. 2023), None for other precisions.

    compute_dtype: of nf4's products; None: that of the device.
    """
    if precision not in ("int8", "nf4"):
        return None
    if precision == "int8":
        return BitsAndBytesConfig(load_in_8bit=True, llm_int8_skip_modules=UNQUANTIZED)
    computed = torch_dtype(compute_dtype or computed_in(device))
    sharded = os.environ.get("ACCELERATE_USE_FSDP") == "true"
    return BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=double_quant,
        bnb_4bit_compute_dtype=computed,
        bnb_4bit_quant_storage=computed if sharded and device != "cpu" else torch.uint8,  # FSDP shards one dtype
        llm_int8_skip_modules=UNQUANTIZED,
    )


def torch_dtype(precision):
    """The dtype of the weights that are not quantized."""
    return {"fp16": torch.float16, "bf16": torch.bfloat16}.get(precision, torch.float32)


def check_precision(precision, device):
    """UserError for a precision that the device cannot run."""
    if precision == "fp16" and device == "cpu":
        raise utils.UserError("fp16 needs a CUDA GPU; on a CPU use fp32 or bf16 (or int8, nf4)")


def check_quantized(model, name, precision):
    """UserError if bitsandbytes replaced no layer, so that the weights are not what `precision` says.

    On a CPU its kernel takes 4-bit layers whose rows and columns come in blocks; the others are computed without it.
    """
    packed = [module for module in model.modules() if type(module).__name__ in ("Linear4bit", "Linear8bitLt")]
    if not packed:
        raise utils.UserError(
            f"{name}: bitsandbytes finds no layer that it can quantize to {precision} in {model.config.model_type}; "
            "use bf16 or fp32"
        )
    for module in packed:
        if module.out_features % 32 or module.in_features % 64:
            module.support_avx512bf16_for_cpu = False


def check_trainable(model, name):
    """UserError for full fine-tuning of quantized weights, which take no gradient."""
    if getattr(model, "is_quantized", False):
        saved = properties.saved_precision(model.config)
        raise utils.UserError(
            f"{name} is saved in {saved}, and quantized weights cannot be trained; use peft_finetune.py, or the "
            "checkpoint that it was made from"
        )
