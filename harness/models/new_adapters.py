"""A new adapter on a model: peft's configurations of the methods that have a flag, or one from a file."""

import copy
from pathlib import Path

import peft
import torch
from peft.mapping import PEFT_TYPE_TO_CONFIG_MAPPING
from peft.tuners.cartridge.utils import initialize_kv_prefix_from_text
from peft.tuners.lora.eva import initialize_lora_eva_weights
from peft.utils.loftq_utils import replace_lora_weights_loftq

import utils
from harness import inputs
from harness.models import adapters, layers, new_layers

OWN_FIELDS = ("auto_mapping", "peft_version", "base_model_name_or_path", "revision", "inference_mode")  # of saved files
IN_THE_BASE = ("pissa", "olora")  # --init: what the adapter begins with is taken out of the base's weights
EVA_PASSES = 10  # over its batches
OFT_BLOCK = 32  # peft's default size of the blocks of OFT's rotation


def task_type(model, head):
    """peft's name of what the adapted model does."""
    return "SEQ_CLS" if head else "SEQ_2_SEQ_LM" if model.config.is_encoder_decoder else "CAUSAL_LM"


def options(method, rank, dropout):
    """peft's configuration class and options of a method beside LoRA's family: {"make": class, ..}."""
    return {
        "shira": {"make": peft.ShiraConfig, "r": rank},
        "miss": {"make": peft.MissConfig, "r": rank, "miss_dropout": dropout},
        "oft": {"make": peft.OFTConfig, "r": 0, "oft_block_size": OFT_BLOCK, "module_dropout": dropout},
        "vera": {"make": peft.VeraConfig, "r": rank, "vera_dropout": dropout},
    }[method]


def rank_schedule(steps, args):
    """AdaLoRA's options: it starts with more ranks than it keeps, and shrinks them between the first and last steps."""
    target = args.target_r or args.rank
    tinit = steps // 10 if args.tinit is None else args.tinit
    tfinal = 3 * steps // 10 if args.tfinal is None else args.tfinal
    if tinit + tfinal >= steps:
        raise utils.UserError(
            f"--tinit {tinit} and --tfinal {tfinal} leave none of the {steps} steps for ranks to shrink in"
        )
    return {
        "init_r": args.init_r or -(-3 * target // 2),
        "target_r": target,
        "tinit": tinit,
        "tfinal": tfinal,
        "total_step": steps,
        "orth_reg_weight": 0.5,
    }


def ia3_modules(model, wanted):
    """The layers that (IA)3 scales: peft's defaults for the architecture, or the named ones; MLPs are scaled at their
    input.
    """
    if wanted == "auto":
        known = peft.utils.TRANSFORMERS_MODELS_TO_IA3_TARGET_MODULES_MAPPING
        if model.config.model_type not in known:
            raise utils.UserError(
                f"--method ia3 has no default layers for {model.config.model_type}; name keys, values and the MLP's "
                f"last layer with --target_modules, of {', '.join(layers.linear_names(model))}"
            )
        return {}
    names = layers.target_modules(model, wanted)
    if names == "all-linear":
        raise utils.UserError(
            "--method ia3 --target_modules all-linear: name the layers, or take auto, attention or mlp"
        )
    mlp = layers.layer_paths(model, attention=False)
    inner = set(mlp) if wanted in ("attention", "mlp") else {path.split(".")[-1] for path in mlp}
    return {"target_modules": names, "feedforward_modules": [name for name in names if name in inner]}


def learned_prompt(model, tokenizer, text, args):
    """Prompt or prefix tuning. The prompt starts from a text's embeddings (prefix: its keys and values) if there is a
    text.
    """
    kind = task_type(model, head=False)
    common = {"task_type": kind, "num_virtual_tokens": args.num_virtual_tokens}
    if args.method == "prompt_tuning":
        if text:
            common.update(prompt_tuning_init="TEXT", prompt_tuning_init_text=text, tokenizer_name_or_path=args.model)
        return peft.get_peft_model(model, peft.PromptTuningConfig(**common))
    adapted = peft.get_peft_model(model, peft.PrefixTuningConfig(**common))
    if text and kind == "CAUSAL_LM":
        long_enough = " ".join([text] * (1 + args.num_virtual_tokens // max(1, len(tokenizer(text).input_ids) - 1)))
        initialize_kv_prefix_from_text(
            adapted, tokenizer, text=long_enough, num_virtual_tokens=args.num_virtual_tokens, use_chat_template=False
        )
    return adapted


def token_ids(tokenizer, wanted):
    """The ids of tokens named with commas between them; UserError for one that the tokenizer does not have."""
    names = [name.strip() for name in wanted.split(",")]
    vocabulary = tokenizer.get_vocab()
    unknown = [name for name in names if name not in vocabulary]
    if unknown:
        raise utils.UserError(f"--trainable_tokens {', '.join(unknown)}: not single tokens of the tokenizer")
    return [vocabulary[name] for name in names]


# ------------------------------------------------------------------------------------------------------- from a file


def read_config(path):
    """A peft configuration as a dict: JSON as peft saves it (adapter_config.json), or with what differs from peft's
    defaults. UserError for a type or a field that peft does not know, and for what cannot be trained here.
    """
    settings = inputs.read_json(path, dict, "--peft_config")
    kind = str(settings.get("peft_type")).upper()
    if kind not in PEFT_TYPE_TO_CONFIG_MAPPING:
        known = ", ".join(str(known.value) for known in PEFT_TYPE_TO_CONFIG_MAPPING)
        raise utils.UserError(f"{path}: peft_type {settings.get('peft_type')} is none of peft's: {known}")
    if kind in (*adapters.TASKS_BY_NUMBER, "XLORA"):
        needs = "trained adapters to mix" if kind == "XLORA" else "the number of a task with each text"
        raise utils.UserError(f"{path}: {kind} needs {needs}, not done here")
    settings = {name: value for name, value in settings.items() if name not in OWN_FIELDS}
    fields = PEFT_TYPE_TO_CONFIG_MAPPING[kind].__dataclass_fields__
    unknown = sorted(set(settings) - set(fields))
    if unknown:
        raise utils.UserError(f"{path}: {kind} has no {', '.join(unknown)}; it has {', '.join(sorted(fields))}")
    return {**settings, "peft_type": kind}


def from_config(model, path, wanted, head, steps):
    """A PeftModel with the adapter that a file describes, see read_config.

    What the file leaves open: the task, a new head's layers, AdaLoRA's steps, and the layers to adapt: peft's own for
    the architecture, and where it has none those of --target_modules. UserError where peft refuses it.
    """
    settings = {"task_type": task_type(model, head), **read_config(path)}
    fields = PEFT_TYPE_TO_CONFIG_MAPPING[settings["peft_type"]].__dataclass_fields__
    if head and "modules_to_save" in fields and not settings.get("modules_to_save"):
        settings["modules_to_save"] = new_layers.to_save(model) or None
    if settings["peft_type"] == "ADALORA" and not settings.get("total_step"):
        settings["total_step"] = steps
    named = wanted != "auto" and "target_modules" in fields
    if named and settings.get("target_modules"):
        raise utils.UserError(f"--target_modules {wanted}: {path} has target_modules already; leave one of them out")
    tries = [settings] if not named else []
    if "target_modules" in fields and not settings.get("target_modules"):
        tries.append({**settings, "target_modules": layers.target_modules(model, wanted)})
    for n, chosen in enumerate(tries, 1):
        try:
            return peft.get_peft_model(model, peft.get_peft_config(copy.deepcopy(chosen)))
        except (AttributeError, KeyError, TypeError, ValueError, RuntimeError) as error:
            if utils.is_out_of_memory(error):
                raise
            missing = "target_modules" in str(error) and n < len(tries)  # peft has no default for this architecture
            if not missing:
                reason = " ".join(str(error).split())
                raise utils.UserError(f"--peft_config {path}: peft cannot make this adapter: {reason}") from None
    raise AssertionError("unreachable: the last try returns or raises")


# ------------------------------------------------------------------------------------------- how LoRA's weights begin


def initialize(model, init, batches, name):
    """Give a new LoRA the start that needs more than its configuration.

    init: eva takes the directions of the layers' inputs over batches (Paischer et al. 2024), loftq what rounding to nf4
    has lost of the weights of the checkpoint `name` (Li et al. 2023). UserError where peft cannot.
    """
    if init == "eva":
        names, left = ("input_ids", "attention_mask"), [EVA_PASSES * len(batches)]  # all tokens but padding count

        def forward(model, inputs):
            left[0] -= 1
            if left[0] < 0:  # peft would go on for ever
                raise utils.UserError(
                    f"--init eva: the directions of the inputs do not settle in {EVA_PASSES} passes over "
                    f"{len(batches)} batches; give a larger --batch_size, a lower --rank, or more examples"
                )
            return model(**inputs)

        batches = [{name: batch[name].to(model.device) for name in names} for batch in batches]
        initialize_lora_eva_weights(model, batches, forward_fn=forward, show_progress_bar=False)
    if init == "loftq":
        if not torch.cuda.is_available():
            raise utils.UserError("--init loftq needs a CUDA GPU (peft computes it there)")
        try:
            replace_lora_weights_loftq(model, model_path=name if Path(name).is_dir() else None)
        except (OSError, ValueError) as error:
            raise utils.UserError(f"--init loftq: {' '.join(str(error).split())}") from None


def save_start(model, folder):
    """Keep an untrained adapter whose start was taken out of the base, see IN_THE_BASE, for `save`. Returns folder."""
    (config,) = model.peft_config.values()
    start, config.init_lora_weights = config.init_lora_weights, True  # else it would be taken out once more at loading
    model.save_pretrained(folder)
    config.init_lora_weights = start
    return str(folder)


def save(model, folder, start=None):
    """Save an adapter so that it fits the base as it was; with `start`, see save_start, as a LoRA of twice the rank
    that has the difference to it.
    """
    model.save_pretrained(folder, path_initial_model_for_weight_conversion=start)
