"""Decoding methods beside plain greedy decoding: compiled with a static cache, prompt lookup, an assistant model.

`measure` times each request by plain decoding and by the other method in turns, and compares their outputs.
"""

import statistics

from transformers import CompileConfig

import utils
from harness.models import adapters, generation, loading, properties


def compile_options(model, device):
    """Options of `model.generate` for torch.compile with a static cache. UserError for a model partly off the GPU."""
    places = set(getattr(model, "hf_device_map", {}).values())
    if len(places) > 1 and places & {"cpu", "disk"}:
        raise utils.UserError(
            "--compile: transformers does not compile a model that is partly on the processor or on disk"
        )
    config = CompileConfig()
    if device == "cpu":
        config = CompileConfig(mode="default")  # there are no CUDA graphs
        config._compile_all_devices = True  # generate() compiles for GPUs alone, unless told so
    return {"cache_implementation": "static", "compile_config": config}


def assistant_options(name, adapter, model, tokenizer, precision, device, trust_remote_code):
    """Options of `model.generate` for speculative decoding with the drafts of a smaller model (Leviathan et al. 2023).

    adapter: of the assistant, merged into it. UserError if only one of the two models has an encoder.
    """
    assistant = loading.load_model(
        name, precision=precision, device=device, adapter=adapter, trust_remote_code=trust_remote_code
    )
    assistant, _ = adapters.merge_adapter(assistant)
    if assistant.config.is_encoder_decoder != model.config.is_encoder_decoder:
        raise utils.UserError(f"--assistant_model {name}: one of the two models has an encoder, the other has none")
    vocabularies = {some.config.get_text_config().vocab_size for some in (assistant, model)}
    if len(vocabularies) == 1:
        return {"assistant_model": assistant}
    theirs = loading.load_tokenizer(name, trust_remote_code)  # drafts cross over as text
    return {"assistant_model": assistant, "tokenizer": tokenizer, "assistant_tokenizer": theirs}


class Forwards:
    """Counts the target model's forwards and their tokens, from which the acceptance of drafts follows."""

    def __init__(self, model):
        self.calls = self.tokens = 0
        self.handle = properties.base_model(model).register_forward_pre_hook(self._count, with_kwargs=True)

    def _count(self, module, args, kwargs):
        self.calls += 1
        self.tokens += kwargs["decoder_input_ids" if "decoder_input_ids" in kwargs else "input_ids"].shape[1]


def measure(model, tokenizer, prompts, new_tokens, options, **request):
    """Time each prompt by plain decoding and, with `options`, by another method, in turns. Returns (plain, other,
    cells).

    plain, other: lists of generation.Timed. cells: speedup, total time of plain over the other method;
    greedy_agreement, share of prompts with the same answer; compile_seconds, of the one shape that is timed;
    acceptance_rate, accepted over drafted tokens (those behind the first mismatch or beyond the last token allowed
    count as rejected); accepted_length, new tokens a forward of the model, its own token included, so 1 or more.
    """

    def timed(prompt, **extra):
        return generation.time_request(model, tokenizer, prompt, new_tokens, **request, **extra)

    warm_up = [timed(prompts[0], **extra) for extra in ({}, {}, options, options)]
    plain, other, counted = [], [], []
    for prompt in prompts:
        plain.append(timed(prompt))
        if options:
            counted.append(Forwards(model))
            other.append(timed(prompt, **options))
            counted[-1].handle.remove()
    if not options:
        return plain, [], {}
    cells = {
        "speedup": sum(t.total_ms for t in plain) / sum(t.total_ms for t in other),
        "greedy_agreement": statistics.mean(p.answer.ids == o.answer.ids for p, o in zip(plain, other)),
    }
    if "compile_config" in options:
        slow = sum(t.total_ms for t in warm_up[2:]) - 2 * statistics.median(t.total_ms for t in other)
        cells["compile_seconds"] = slow / 1000
    if (
        "cache_implementation" not in options and "assistant_early_exit" not in options
    ):  # drafts by another model or text
        cells.update(acceptance(model, other, counted))
    return plain, other, cells


def acceptance(model, timed, counted):
    """acceptance_rate and accepted_length of speculative requests. counted: the Forwards of each."""
    gained, passes = sum(t.arrived for t in timed), sum(f.calls for f in counted)
    begun = sum(1 if model.config.is_encoder_decoder else t.answer.prompt_tokens for t in timed)
    # a pass reads the drafted tokens behind the newest one, in the first pass behind the prompt
    drafted = sum(f.tokens for f in counted) - begun - (passes - len(timed))
    return {"acceptance_rate": (gained - passes) / drafted if drafted else None, "accepted_length": gained / passes}
