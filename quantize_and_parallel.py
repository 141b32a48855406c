"""Precision, device maps, compiled and speculative decoding: what each saves and what it costs.

One run loads the model at one precision and measures load time, memory, time to first token, time per output token and
throughput, and, on the same examples as the other scripts, the quality: accuracy by label likelihood or of answers, and
perplexity of the same texts. int8 is LLM.int8() (Dettmers et al. 2022), nf4 is QLoRA's 4-bit NormalFloat (Dettmers et
al. 2023), both by bitsandbytes. A faster way to decode (--compile, --prompt_lookup, --assistant_model) is timed request
by request beside plain decoding, and its greedy output is compared with plain decoding's. Early exit, which drafts with
the model's own lower layers, has no flag: with SmolLM2, not trained for it, it was far slower
(benchmarks/bench_decoding.py).

    # on a CPU, offline (after `python prepare_data.py demo`): about two minutes
    python quantize_and_parallel.py --precision int8 --max_eval_samples 40
    # speculative decoding by looking up the prompt (Saxena 2023), on questions about a passage
    python quantize_and_parallel.py --dataset assets/data/disfl_qa --max_eval_samples 20 --prompt_lookup 4
    # a trained classifier by ONNX Runtime, on a CPU (pip install -r requirements-runtimes.txt)
    python quantize_and_parallel.py --model runs/RUN_ID/model --runtime onnx --int8
    # on a GPU, from the hub
    python quantize_and_parallel.py --model google/flan-t5-base --int8
    python quantize_and_parallel.py --model meta-llama/Llama-3.1-8B --bf16 --compile
    python quantize_and_parallel.py --model meta-llama/Llama-3.1-8B --bf16 --assistant_model meta-llama/Llama-3.2-1B
    # spread over all GPUs, and the processor's memory where they are full
    python quantize_and_parallel.py --model meta-llama/Llama-3.1-8B --bf16 --device_map auto
"""

import argparse

import utils
from harness import flags, hub
from harness.results.run import Run

RUNTIMES = {"torchao": ("int8", "int8_weights", "int4_weights"), "onnx": ("fp32", "int8"), "openvino": ("fp32", "int8")}
SERVED = ("onnx", "openvino")  # the runtimes with a file of their own, on a CPU


def parse_args(argv=None):
    parser = flags.ArgumentParser(__doc__)
    parser.add_argument(
        "--model", default="assets/models/SmolLM2-135M-Instruct", help="hub name or folder (default: %(default)s)"
    )
    parser.add_argument("--adapter", metavar="DIR", help="a peft adapter to put on the model")
    parser.add_argument(
        "--merge_adapter",
        action=argparse.BooleanOptionalAction,
        help="fold the adapter into the weights first (default: unless they are int8 or nf4)",
    )
    group = parser.add_argument_group("precision")
    which = group.add_mutually_exclusive_group()
    choices = ("auto", *flags.PRECISIONS, "int8_weights", "int4_weights")
    usual = "auto, that of the checkpoint on a GPU and fp32 on a CPU; fp32 with another --runtime than torch"
    which.add_argument("--precision", choices=choices, help=f"of the weights (default: {usual})")
    for name in flags.PRECISIONS:
        which.add_argument(
            f"--{name}", dest="precision", action="store_const", const=name, help=f"short for --precision {name}"
        )
    group.add_argument(
        "--runtime",
        choices=("torch", *RUNTIMES),
        default="torch",
        help="torch: int8 and nf4 by bitsandbytes; torchao: int8, int8_weights, int4_weights; onnx, openvino: a "
        "classifier's fp32 and int8, on a CPU (default: %(default)s)",
    )
    group.add_argument("--attn_implementation", choices=flags.ATTENTION, help="(default: the model's own)")
    group.add_argument(
        "--compute_dtype",
        choices=("fp32", "fp16", "bf16"),
        help="nf4: of the products (default: bf16 on a GPU that computes in it, else fp16; fp32 on a CPU)",
    )
    group.add_argument(
        "--double_quant",
        action=argparse.BooleanOptionalAction,
        default=True,
        help="nf4: quantize the scales too (default: on)",
    )
    group.add_argument(
        "--device_map",
        metavar="auto|cpu|balanced|..",
        help="how accelerate places the layers (default: all on --device)",
    )
    group = parser.add_argument_group("speed")
    group.add_argument(
        "--prompt_tokens",
        type=flags.positive_int,
        default=128,
        help="length of the timed prompts, windows of the texts; question answering is timed on its own prompts, "
        "unless compiled (default: %(default)s)",
    )
    group.add_argument(
        "--new_tokens",
        type=flags.positive_int,
        default=32,
        help="of a timed request, and at most of an answer that is scored (default: %(default)s)",
    )
    group = parser.add_argument_group("decoding, timed beside plain decoding")
    which = group.add_mutually_exclusive_group()
    which.add_argument(
        "--compile", action="store_true", help="torch.compile with a static cache; its time has a column of its own"
    )
    which.add_argument(
        "--prompt_lookup",
        type=flags.positive_int,
        metavar="N",
        help="speculative: draft up to N tokens that followed the last ones earlier in the text",
    )
    which.add_argument("--assistant_model", metavar="NAME", help="speculative: draft with this smaller model")
    group.add_argument("--assistant_adapter", metavar="DIR", help="a peft adapter of the assistant, merged")
    flags.add_data_args(parser)
    flags.add_common_args(parser, auto_batch=True)
    args = flags.check_data_args(parser, parser.parse_args(argv))
    args.precision = args.precision or ("auto" if args.runtime == "torch" else "fp32")
    if args.new_tokens < 2:
        parser.error("--new_tokens must be at least 2: the decode speed counts the tokens after the first")
    if args.merge_adapter is not None and not args.adapter:
        parser.error("--merge_adapter and --no-merge_adapter belong to --adapter")
    if args.assistant_adapter and not args.assistant_model:
        parser.error("--assistant_adapter belongs to --assistant_model")
    if decoding_of(args) != "plain" and not args.latency_runs:
        parser.error(f"--latency_runs 0 leaves no request to time {decoding_of(args)} decoding on")
    if args.compile and args.runtime == "torch" and args.precision in ("int8", "nf4"):
        parser.error(f"--compile: transformers does not compile {args.precision} weights; use fp32, fp16 or bf16")
    allowed = RUNTIMES.get(args.runtime, ("auto", *flags.PRECISIONS))
    if args.precision not in allowed:
        others = [name for name, some in RUNTIMES.items() if args.precision in some]
        hint = f"; --runtime {' or '.join(others)} has" if others else ""
        parser.error(f"--runtime {args.runtime} has {', '.join(allowed)}, not --precision {args.precision}{hint}")
    if args.runtime != "torch" and args.merge_adapter is False:
        parser.error(f"--runtime {args.runtime} takes an adapter merged; leave out --no-merge_adapter")
    if args.runtime != "torch" and (args.device_map or decoding_of(args) not in ("plain", "compiled")):
        parser.error(f"--runtime {args.runtime} is for one device and plain decoding")
    if args.runtime in SERVED and (args.device not in ("auto", "cpu") or args.compile):
        parser.error(f"--runtime {args.runtime} compiles for the CPU by itself; leave out --device and --compile")
    if args.compute_dtype and args.precision != "nf4":
        parser.error(f"--compute_dtype belongs to --precision nf4, not {args.precision}")
    return args


# -------------------------------------------------------------------------------------------------------- the technique


def decoding_of(args):
    """The decoding method that the flags ask for: plain, compiled, prompt_lookup or assisted."""
    methods = {"compiled": args.compile, "prompt_lookup": args.prompt_lookup, "assisted": args.assistant_model}
    return next((name for name, wanted in methods.items() if wanted), "plain")


def variant(args, precision):
    """The row's variant: nf4, fp32_prompt_lookup4, bf16_compiled, int8_onnx, .."""
    method = decoding_of(args)
    parts = [precision, *([] if args.runtime == "torch" else [args.runtime])]
    return "_".join([*parts, *([] if method == "plain" else [f"{method}{args.prompt_lookup or ''}"])])


def decoding_options(args, model, tokenizer, device):
    """Options of `model.generate` for the method of the flags. UserError if the model cannot be decoded by it."""
    method = decoding_of(args)
    if getattr(properties.base_model(model), "_is_stateful", False) and method != "plain":
        raise utils.UserError(f"{method} decoding: transformers cannot take {args.model}'s recurrent state back")
    if method == "compiled":
        return decoding.compile_options(model, device)
    if method == "prompt_lookup":
        return {"prompt_lookup_num_tokens": args.prompt_lookup}
    if method == "assisted":
        precision = args.precision if args.precision not in ("int8", "nf4") else precisions.computed_in(device)
        return decoding.assistant_options(
            args.assistant_model, args.assistant_adapter, model, tokenizer, precision, device, args.trust_remote_code
        )
    return {}


def load_options(args, task, tokenizer, run):
    """The options of loading.load_model that say which model; UserError for one that the runtime cannot serve."""
    options = {"name": args.model, "adapter": args.adapter, "trust_remote_code": args.trust_remote_code}
    if loading.is_classifier(args.model, args.adapter, args.trust_remote_code):
        tasks.require_kind(task, "classification", "a model with a classification head")
        if args.compile:
            raise utils.UserError("--compile is for language models here, whose requests have one length")
        labels, assumed = adapters.head_labels(args.model, args.adapter, task.labels, args.trust_remote_code)
        run.note(assumed)
        options.update(kind="classifier", labels=labels, pad_token_id=tokenizer.pad_token_id)
    elif args.runtime in SERVED:
        raise utils.UserError(f"--runtime {args.runtime} is for a model with a classification head, of finetune.py")
    return options


def convert(args, task, run, options):
    """The file of the converted model in the run folder. Notes what it was made with."""
    texts = draw(task.train, min(runtimes.CALIBRATION, len(task.train)), args.seed, balanced=False)
    texts = [tuple(filter(None, (ex.text, ex.text_pair))) for ex in texts]
    if args.runtime == "openvino" and args.precision == "int8":
        if not texts:
            raise utils.UserError("--runtime openvino --int8 sees the ranges of activations on training texts")
        run.note(f"ranges of activations from {len(texts)} training texts, without their labels")
    file = runtimes.convert(args.runtime, args.precision, run.path("converted"), texts, **options)
    run.row["artifact_mb"] = utils.folder_mb(run.path("converted"))
    print(f"{file}: the model, with its tokenizer beside it")
    return file


def load(args, device, options, run):
    """The model in its precision, the adapter merged where that is exact. Notes what was done to it."""
    rounded = args.runtime == "torchao"
    model = loading.load_model(
        **options,
        precision="fp32" if rounded else args.precision,
        device=device,
        device_map=args.device_map,
        compute_dtype=args.compute_dtype,
        double_quant=args.double_quant,
        attention=args.attn_implementation,
    )
    model, merged = adapters.merge_adapter(model, True if rounded and args.adapter else args.merge_adapter)
    run.note(merged)
    if rounded:
        n, linear = runtimes.round_weights(model, args.precision)
        run.note(f"{n} of {linear} linear layers in {args.precision}")
    return model


def run_once(args):
    # 1. settings
    run = Run(args, __file__, "quantized")

    with run:
        # 2. seed and device
        utils.set_seed(args.seed)
        on_cpu = args.device_map == "cpu" or args.runtime in SERVED
        device = utils.pick_device("cpu" if on_cpu else args.device)
        args = precisions.settled(args, args.model, device)
        if args.precision == "int4_weights" and device != "cpu":
            raise utils.UserError("--precision int4_weights is for a CPU here; give --device cpu, or --nf4 on a GPU")
        run.row.update(
            variant=variant(args, args.precision),
            model=args.model,
            precision=args.precision,
            data_seed=args.data_seed,
            **utils.device_columns(device),
            k_shots=0,
        )
        precisions.check_precision(args.precision, device)

        # 3. data
        task = tasks.from_args(args)
        print(task.summary())
        run.row.update(task.row())

        # 4. model
        tokenizer = loading.load_tokenizer(args.model, args.trust_remote_code, args.thinking, args.adapter)
        which = load_options(args, task, tokenizer, run)
        file = convert(args, task, run, which) if args.runtime in SERVED else None
        with utils.measure() as loaded:
            model = runtimes.Session(file, args.runtime) if file else load(args, device, which, run)
        if file:
            run.note(f"converted in {model.seconds:.0f} s")
        run.row.update(**loaded.load_columns(), **properties.size_columns(model))
        if args.runtime == "torchao":
            run.row["model_gb"] = runtimes.weight_gb(model)
        run.use_labels(())
        run.row["variant"] = variant(args, run.row["precision"])  # a checkpoint may be saved in 4 bits, say

        # 5. adapt: nothing to train
        head = loading.is_classifier(args.model, args.adapter, args.trust_remote_code)
        options = {} if head else decoding_options(args, model, tokenizer, device)
        if not head:
            decoding_speed.check_context(args, model, task)

        # 6. evaluate
        classes = task.kind == "classification"
        chat = loading.uses_chat("auto", tokenizer, scoring=classes)
        common = {"batch_size": args.batch_size, "latency_runs": args.latency_runs, "chat": chat}
        if head:
            outcome = evaluate.by_head(model, tokenizer, task, args.batch_size, args.latency_runs)
        elif classes:
            outcome = evaluate.by_likelihood(model, tokenizer, task, **common)
            outcome.perplexity = lambda: perplexity.text_cells(model, tokenizer, task)
        else:
            if args.compile:  # prompts of many lengths would be compiled again and again: their latency stays empty
                common["latency_runs"] = 0
            length = args.new_tokens
            outcome = evaluate.by_generation(model, tokenizer, task, **common, max_new_tokens=length, decoding=options)

        # 7. row and report: the row is written by leaving the block
        record.outcome(run, task, outcome, model)
        if args.latency_runs and not head and (classes or options):
            with utils.measure() as spent:
                decoding_speed.measure(args, model, tokenizer, task, run, chat, options)
            for name, value in spent.memory_columns().items():  # the larger of the two passes
                run.row[name] = max(filter(None, [value, run.row[name]]), default=None)


def import_heavy():
    """Import what takes seconds, once the arguments are known to be right: --help and a wrong flag answer at once."""
    global adapters, decoding, decoding_speed, draw, evaluate, loading, perplexity, precisions, properties, record
    global runtimes, tasks
    from harness.data import tasks
    from harness.data.examples import draw
    from harness.evaluation import decoding_speed, evaluate, perplexity, record
    from harness.models import adapters, decoding, loading, precisions, properties, runtimes


@utils.clean_exit
def main(argv=None):
    args = parse_args(argv)
    names = ("model", "adapter", "assistant_model", "assistant_adapter")
    hub.check_names({f"--{name}": getattr(args, name) for name in names}, {"--dataset": flags.source(args)})
    import_heavy()
    run_once(args)


if __name__ == "__main__":
    main()
