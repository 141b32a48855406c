"""The flags of an adapter, which peft_finetune.py has. Imports nothing heavy."""

from harness import arguments

ADALORA_LACKS = (
    "has neither --resume nor --early_stopping nor --tune: its importance scores are not in its checkpoints, and its "
    "schedule of ranks goes over all steps"
)
LORA_LIKE = ("lora", "dora", "rslora", "adalora")
# flag -> the methods that have it
BELONGS = dict.fromkeys(("init_r", "target_r", "tinit", "tfinal"), ("adalora",))
BELONGS.update(dict.fromkeys(("num_virtual_tokens", "init_text"), ("prompt_tuning", "prefix_tuning")))
BELONGS.update(bias=LORA_LIKE, dropout=(*LORA_LIKE, "miss", "oft", "vera"))
RANKS = {"vera": 256}  # --rank by default, 8 for the others; VeRA trains vectors of this length
RANKED = (*LORA_LIKE, "shira", "miss", "vera")
LEARNED_PROMPTS = ("prompt_tuning", "prefix_tuning")


def add_adapter_args(parser, methods):
    """The flags; methods: the names that --method takes besides qlora."""
    group = parser.add_argument_group("adapter")
    group.add_argument("--method", choices=("qlora", *methods), default="lora", help="see above (default: %(default)s)")
    group.add_argument(
        "--peft_config",
        metavar="FILE",
        help="instead of --method: any configuration that peft knows, JSON with peft_type and what differs from peft's "
        "defaults, or an adapter_config.json",
    )
    group.add_argument(
        "--quantize", choices=("none", "int8", "nf4"), help="the frozen base's weights (default: none, nf4 for qlora)"
    )
    group.add_argument("--rank", type=arguments.small_count, help="of the update matrices (default: 8, vera 256)")
    group.add_argument(
        "--alpha", type=arguments.positive_int, help="updates are scaled by alpha / rank (default: twice the rank)"
    )
    group.add_argument(
        "--dropout", type=arguments.fraction, default=0.05, help="on the adapter's input (default: %(default)s)"
    )
    group.add_argument(
        "--init",
        choices=("pissa", "olora", "eva", "loftq", "orthogonal"),
        help="how LoRA's weights begin (default: no update); pissa, olora: the base's main directions, eva: those of "
        "its inputs, loftq: what nf4 rounded away",
    )
    group.add_argument(
        "--loraplus_ratio",
        type=arguments.positive,
        metavar="R",
        help="LoRA+: learning rate of B over that of A (Hayou et al. 2024; default: 1)",
    )
    tokens_help = "LoRA also trains the embeddings of these tokens of the tokenizer"
    group.add_argument("--trainable_tokens", metavar="A,B,..", help=tokens_help)
    group.add_argument(
        "--bias", choices=("none", "all", "lora_only"), default="none", help="biases trained too (default: %(default)s)"
    )
    group.add_argument(
        "--target_modules",
        default="auto",
        metavar="auto|attention|mlp|all-linear|A,B,..",
        help="the linear layers to adapt; auto: query and value projections (default: %(default)s)",
    )
    group.add_argument(
        "--init_r", type=arguments.small_count, help="adalora: rank at the start (default: 1.5 times target_r)"
    )
    group.add_argument("--target_r", type=arguments.small_count, help="adalora: mean rank at the end (default: --rank)")
    group.add_argument(
        "--tinit", type=arguments.whole_number, help="adalora: steps before ranks shrink (default: a tenth of all)"
    )
    group.add_argument(
        "--tfinal", type=arguments.whole_number, help="adalora: steps with the final ranks (default: three tenths)"
    )
    group.add_argument(
        "--num_virtual_tokens", type=arguments.small_count, default=20, help="of a prompt (default: %(default)s)"
    )
    group.add_argument(
        "--init_text", help="a learned prompt begins as this text (default: the task's instruction, or random)"
    )


def check_adapter_args(parser, args):
    """Cross-checks that need no library; --method qlora becomes lora on nf4, --rank its default. Returns args."""
    if args.method == "qlora" and args.quantize == "none":
        parser.error("--method qlora is LoRA on a quantized base; for a base that is not, take --method lora")
    if args.method == "prefix_tuning" and args.gradient_checkpointing:
        parser.error("--gradient_checkpointing drops the cache that --method prefix_tuning learns; leave it out")
    if args.method == "qlora":
        args.method, args.quantize = "lora", args.quantize or "nf4"
    args.quantize = args.quantize or "none"
    lora = ("lora", "dora", "rslora")
    for name, methods in BELONGS.items():
        if getattr(args, name) != parser.get_default(name) and (args.peft_config or args.method not in methods):
            parser.error(f"--{name} belongs to --method {', '.join(methods)}")
    if args.peft_config and args.tune:
        parser.error("--tune varies LoRA's rank, alpha and layers, which --peft_config has; leave one of them out")
    if args.peft_config and (args.method != "lora" or args.rank or args.alpha or args.init):
        parser.error("--peft_config has its own method, rank, alpha and start; leave out --method, --rank, ..")
    if args.rank and args.method not in RANKED:
        parser.error(f"--rank belongs to {', '.join(RANKED)}; --method {args.method} has none")
    args.rank = args.rank or RANKS.get(args.method, 8)
    if args.alpha and args.method not in LORA_LIKE:
        parser.error(f"--alpha belongs to {', '.join(LORA_LIKE)}; --method {args.method} has no such scale")
    for flag in ("init", "loraplus_ratio", "trainable_tokens"):
        if getattr(args, flag) is not None and (args.method not in lora or args.peft_config):
            parser.error(f"--{flag} belongs to --method {', '.join(lora)}, qlora")
    if args.init == "loftq" and (args.quantize != "nf4" or args.tune or args.alpha not in (None, args.rank)):
        parser.error(
            "--init loftq is for an nf4 base (--method qlora), with --alpha as large as --rank, without --tune"
        )
    if args.init and args.init != "loftq" and args.quantize != "none":
        parser.error(f"--init {args.init} reads the base's weights, which must not be quantized")
    if args.init in ("pissa", "olora") and args.method == "dora":
        parser.error(f"--init {args.init} cannot be taken back out of DoRA's weights; use --method lora or rslora")
    if args.method == "adalora" and (args.resume or args.early_stopping or args.tune):
        parser.error(f"--method adalora {ADALORA_LACKS}")
    if args.method == "adalora" and (args.init_r or 10**9) < (args.target_r or args.rank):
        parser.error(f"--init_r {args.init_r} is below the target rank {args.target_r or args.rank}; ranks only shrink")
    if args.quantize != "none" and args.weights != "fp32":
        parser.error("--weights bf16 is for a base that is not quantized")
    return args
