import importlib

import pytest

import adaptive_selector
from harness.selector import rules


@pytest.mark.parametrize(
    "limits", ["", "--data_size 500 --memory_gb 7 --params_b 8", "--model m --dataset d --memory_gb 17 --params_b 8"]
)
def test_the_command_to_run_next_parses(limits):
    args = adaptive_selector.parse_args(limits.split())
    args.params_b, args.data_size = args.params_b or 0.14, args.data_size or 0
    for strategy in rules.COMMANDS:
        words = rules.command(strategy, args).split()
        parsed = importlib.import_module(words[1].removesuffix(".py")).parse_args(words[2:])
        assert args.dataset in (None, parsed.dataset) and args.model in (
            None,
            getattr(parsed, "gen_model", None) or parsed.model,
        )
