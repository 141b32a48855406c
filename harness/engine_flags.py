"""--engine and its flags."""

import json

from harness import flags

OF_URLS = ("served_model", "engine_key_env", "engine_workers", "engine_prices", "engine_max_cost", "engine_plain_http")


def add_engine_args(parser, of="the model", compares=True):
    """--engine of a script that asks a language model. of: which one; compares: with transformers on some examples."""
    add = parser.add_argument_group("engine").add_argument
    what = f"what computes {of}: hf (transformers), vllm (in this process), or a server's address with its /v1, which "
    what += "is asked for completions of --model's tokens"
    add("--engine", default="hf", metavar="hf|vllm|URL", help=f"{what} (default: %(default)s)")
    check = "so many examples are answered by hf, too, and the row says how many agree; 0: none (default: %(default)s)"
    if compares:
        add("--engine_check", type=flags.whole_number, default=20, metavar="N", help=check)
    options = """options of vLLM's LLM class as JSON, as in '{"tensor_parallel_size": 2, "max_model_len": 8192}'"""
    add("--vllm_args", type=json_object, default={}, metavar="JSON", help=options)
    add("--served_model", metavar="NAME", help="the server's name for it (default: --model's)")
    key = "environment variable with the server's key (default: OPENAI_API_KEY for openai.com, else no key is sent)"
    add("--engine_key_env", metavar="NAME", help=key)
    workers = "requests in progress at a time (default: %(default)s)"
    add("--engine_workers", type=flags.positive_int, default=8, metavar="N", help=workers)
    add("--engine_timeout", type=flags.positive, default=120.0, metavar="S", help="seconds for a reply (default: 120)")
    prices = "USD per million tokens, in and out"
    add("--engine_prices", nargs=2, type=flags.non_negative, metavar=("IN", "OUT"), help=prices)
    add("--engine_max_cost", type=flags.positive, metavar="USD", help="stop before it can cost more")
    add("--engine_plain_http", action="store_true", help="allow http:// to another machine")


def json_object(text):
    """A JSON object of the command line."""
    value = json.loads(text)
    if not isinstance(value, dict):
        raise ValueError
    return value


def check_engine_args(parser, args):
    """Cross-checks that need no library. Returns args."""
    url = args.engine.startswith(("http://", "https://"))
    if args.engine not in ("hf", "vllm") and not url:
        parser.error("--engine: give hf, vllm, or an address that begins with http:// or https://")
    if args.vllm_args and args.engine != "vllm":
        parser.error("--vllm_args belongs to --engine vllm")
    given = [name for name in OF_URLS if getattr(args, name) != parser.get_default(name)]
    if given and not url:
        parser.error(f"--{given[0]} belongs to --engine URL")
    if args.engine_max_cost and not args.engine_prices:
        parser.error("--engine_max_cost needs --engine_prices")
    if args.engine != "hf" and getattr(args, "attn_implementation", None):
        parser.error("--attn_implementation is of --engine hf")
    return args
