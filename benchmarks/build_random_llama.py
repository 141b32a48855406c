"""A language model of Llama 2 7B's shape with random weights in bf16 (13 GB), for time and memory: its answers mean
nothing. The tokenizer is that of another model.

    python benchmarks/build_random_llama.py gpu/random-llama
"""

import json
from pathlib import Path

import common
import torch

import utils
from harness import flags


def parse_args(argv=None):
    parser = flags.ArgumentParser(__doc__)
    parser.add_argument("output", metavar="FOLDER", help="where the model goes")
    parser.add_argument("--layers", type=flags.positive_int, default=32, help="(default: %(default)s)")
    parser.add_argument("--hidden_size", type=flags.positive_int, default=4096, help="(default: %(default)s)")
    parser.add_argument(
        "--tokenizer", default="assets/models/SmolLM2-135M-Instruct", help="a model's folder (default: %(default)s)"
    )
    return parser.parse_args(argv)


@utils.clean_exit
def main(argv=None):
    args = parse_args(argv)
    origin = f"random weights in Llama 2 7B's shape; tokenizer of {Path(args.tokenizer).name}"
    source, file = (
        {"origin": origin, "layers": args.layers, "hidden_size": args.hidden_size},
        Path(args.output, "SOURCE.json"),
    )
    if file.is_file() and utils.read_json(file, dict, "FOLDER") == source:
        print(f"{args.output} is there")
        return
    tokenizer = utils.load_tokenizer(args.tokenizer)
    model = common.random_llama(len(tokenizer), args.layers, args.hidden_size, torch.bfloat16, "cpu")
    model.config.bos_token_id, model.config.eos_token_id = tokenizer.bos_token_id, tokenizer.eos_token_id
    model.save_pretrained(args.output)
    tokenizer.save_pretrained(args.output)
    file.write_text(json.dumps(source, indent=2) + "\n", encoding="utf-8")
    print(f"{args.output}: {model.num_parameters() / 1e9:.2f} billion parameters")


if __name__ == "__main__":
    main()
