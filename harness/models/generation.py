"""Greedy generation in batches, and one timed request."""

import bisect
import copy
import time
from dataclasses import dataclass

import numpy as np
import torch
from transformers import LogitsProcessor, LogitsProcessorList, StoppingCriteria, StoppingCriteriaList

import utils
from harness.models import batching, engine, memory_forecast, prefix_cache, properties, scoring, thoughts

# plain greedy decoding, whatever the model's generation_config says (BART: 4 beams, Qwen2.5: a repetition penalty)
GREEDY = {"do_sample": False, "num_beams": 1, "repetition_penalty": 1.0, "no_repeat_ngram_size": 0}


@dataclass
class Answers:
    """Generated texts, in the order of the prompts."""

    texts: list  # [N] as generated, a thinking model's thoughts included
    answers: list  # [N] the texts without thoughts: what is scored; "" where a thought was not finished
    unfinished: int  # texts that end within a thought
    ids: list  # [N] the new token ids, with the end-of-sequence token, to the end of the stop string
    prompt_tokens: int  # over all prompts
    truncated: int  # prompts that were cut on the left to fit the model's context
    longest: int  # tokens of the longest prompt, plus max_new_tokens
    prefix: list  # token ids that all prompts begin with, as in LabelScores
    batch_size: int  # the most prompts of one batch

    @property
    def new_tokens(self):
        """Number of new tokens over all prompts."""
        return sum(map(len, self.ids))


@torch.inference_mode()
def generate(
    model,
    tokenizer,
    prompts,
    max_new_tokens=32,
    batch_size="auto",
    stop=(),
    add_special_tokens=True,
    progress=None,
    prefix=None,
    **options,
):
    """The Answers of decoder-only models (padded on the left) and encoder-decoder models (on the right).

    stop: an answer ends before the first of these strings; the end-of-sequence token ends it too. prefix: a Prefix
    computed before, used if all prompts begin with it; else their common prefix is computed once. options: for
    `model.generate`; without them decoding is greedy.
    """
    # no padding on the left, where it would enter a recurrent state or come between a learned prompt and the text
    alike = getattr(properties.base_model(model), "_is_stateful", False) or properties.learns_prompt(model)
    rows, truncated = prompt_ids(model, tokenizer, prompts, max_new_tokens, add_special_tokens)
    texts, new, read = [None] * len(rows), [None] * len(rows), thoughts.decoder(tokenizer)
    opened = list(map(thoughts.opens, prompts))  # the chat template has begun a thought
    ended = _ids_of(model.generation_config.eos_token_id)
    shared = min(prefix_cache.common_prefix(rows), min(map(len, rows)) - 1)  # a token is left to predict from
    if prefix is None or rows[0][:shared][: len(prefix.ids)] != prefix.ids:
        worth = len(rows) > 1 and shared >= prefix_cache.MIN_SHARED_PREFIX and "cache_implementation" not in options
        worth = worth and prefix_cache.shares_prefix(model, max(map(len, rows)) + max_new_tokens)
        prefix = prefix_cache.prefill(model, rows[0][:shared]) if worth else prefix_cache.Prefix()
    length, decoder_only = len(prefix.ids), not model.config.is_encoder_decoder

    def work(batch):
        rest = [rows[i][length:] for i in batch]
        ids, mask = batching.pad_rows(rest, tokenizer.pad_token_id, model.device, left=decoder_only)
        cached = {}
        if length:  # [prefix, padding, rest of the prompt]
            head = torch.tensor([prefix.ids], device=model.device).expand(len(batch), -1)
            ids, mask = torch.cat([head, ids], 1), torch.cat([torch.ones_like(head), mask], 1)
            cached["past_key_values"] = cache = prefix.cache if len(batch) == 1 else copy.deepcopy(prefix.cache)
            if len(batch) > 1:
                cache.batch_repeat_interleave(len(batch))
        begin = ids.shape[1] if decoder_only else 1  # of the new tokens in the output
        if stop:
            within = [opened[i] for i in batch]
            options["stopping_criteria"] = StoppingCriteriaList([_StopAt(read, stop, begin, within)])
        try:
            out = model.generate(
                input_ids=ids,
                attention_mask=mask,
                max_new_tokens=max_new_tokens,
                pad_token_id=tokenizer.pad_token_id,
                logits_processor=LogitsProcessorList([_Finite()]),
                **{**GREEDY, **options},
                **cached,
            )
        finally:
            prefix_cache.crop(prefix, length)
        for i, tokens in zip(batch, out[:, begin:].tolist()):
            texts[i], new[i] = _finished(read, tokens, ended, stop, opened[i])

    if engine.is_engine(model):
        sampled = options.get("do_sample", False)
        seed = torch.randint(2**31, ()).item() if sampled else None
        temperature = options.get("temperature", 1.0) if sampled else 0.0
        marks = () if any(opened) else stop  # within a thought a stop string stops nothing
        for i, tokens in enumerate(model.generate(rows, max_new_tokens, marks, temperature, seed)):
            texts[i], new[i] = _finished(read, tokens, ended, stop, opened[i])
        return _answers(texts, new, opened, rows, truncated, max_new_tokens, [], len(rows))
    lengths = [len(row) + max_new_tokens for row in rows]
    largest = batching.in_batches(lengths, batch_size, memory_forecast.padded_tokens(model), work, progress, alike)
    common = rows[0][:shared] if decoder_only else []
    return _answers(texts, new, opened, rows, truncated, max_new_tokens, common, largest)


def _answers(texts, new, opened, rows, truncated, max_new_tokens, common, largest):
    """The Answers of generated texts [N] and token ids [N]; opened: [N] bools, the prompt has begun a thought."""
    answers, unfinished, _ = zip(*map(thoughts.split, texts, opened))
    sizes = sum(map(len, rows)), truncated, max(map(len, rows)) + max_new_tokens, common, largest
    return Answers(texts, list(answers), sum(unfinished), new, *sizes)


def joined(parts):
    """The LabelScores or the Answers of consecutive parts of the examples -> those of all examples."""
    if len(parts) == 1:
        return parts[0]
    whole = {
        "prompt_tokens": sum(part.prompt_tokens for part in parts),
        "truncated": sum(part.truncated for part in parts),
        "longest": max(part.longest for part in parts),
        "prefix": min((part.prefix for part in parts), key=len),
        "batch_size": max(part.batch_size for part in parts),
    }
    if isinstance(parts[0], Answers):
        lists = {name: [x for part in parts for x in getattr(part, name)] for name in ("texts", "answers", "ids")}
        return Answers(**lists, unfinished=sum(part.unfinished for part in parts), **whole)
    width, tables = max(part.total.shape[1] for part in parts), {}  # the most labels of a prompt
    for name, filler in (("total", -np.inf), ("mean", -np.inf), ("n_tokens", 0)):
        missing = [((0, 0), (0, width - part.total.shape[1])) for part in parts]
        padded = [np.pad(getattr(part, name), more, constant_values=filler) for part, more in zip(parts, missing)]
        tables[name] = np.concatenate(padded)
    return scoring.LabelScores(**tables, **whole, positions=max(part.positions for part in parts))


def _finished(read, tokens, ended, stop, opened):
    """(text, token ids) of an answer up to its first token of `ended` (end of sequence) or its first stop string.

    read: token ids -> text; opened: as thoughts.split takes it. A stop string within a thought stops nothing.
    """
    end = next((n for n, token in enumerate(tokens) if token in ended), len(tokens))
    text, tokens = read(tokens[:end]), tokens[: end + 1]
    if _holds(text, stop, opened):
        whole = tokens
        tokens = tokens[: bisect.bisect_left(range(end), True, key=lambda n: _holds(read(whole[:n]), stop, opened))]
        start = thoughts.split(text, opened)[2]
        text = text[: min(at for mark in stop if (at := text.find(mark, start)) >= 0)]
    return text.strip(), tokens


def prompt_ids(model, tokenizer, prompts, max_new_tokens, add_special_tokens):
    """(token ids of prompts, number of those cut on the left to leave room for new tokens). UserError without room."""
    limit = properties.context_length(model)
    room = None if limit is None else limit if model.config.is_encoder_decoder else limit - max_new_tokens
    if room is not None and room < 1:
        raise utils.UserError(
            f"{max_new_tokens} new tokens leave no room for a prompt: the model's context is {limit} tokens"
        )
    rows = tokenizer(list(prompts), add_special_tokens=add_special_tokens, verbose=False).input_ids
    return [row[-room:] if room else row for row in rows], sum(len(row) > room for row in rows) if room else 0


def _ids_of(token):
    """The token ids of a generation_config entry, which is None, an id or a list, as a set."""
    return set() if token is None else set(token) if isinstance(token, (list, tuple)) else {token}


def _holds(text, stop, opened):
    """True if a generated text contains one of the stop strings behind its thoughts."""
    return any(mark in text for mark in stop) and any(mark in text[thoughts.split(text, opened)[2] :] for mark in stop)


class _Finite(LogitsProcessor):
    """RunFailed where logits are no numbers: their largest would be token 0, again and again, without a word."""

    def __call__(self, input_ids, scores):
        scoring.check_finite(scores.max().item())
        return scores


class _StopAt(StoppingCriteria):
    """Ends a row when its new text contains a stop string.

    transformers' StopStringCriteria looks only at the last token, and so misses a string inside the several tokens that
    speculative decoding accepts at once; it also prepares the whole vocabulary again in every call of `generate`.
    The last tokens are enough to see a stop string, and the device sends no others.
    read: token ids -> text; opened: [B] bools, the prompt has begun a thought.
    """

    def __init__(self, read, stop, start, opened, window=64):
        self.read, self.stop, self.start, self.opened, self.window = read, stop, start, opened, window

    def __call__(self, input_ids, scores, **kwargs):
        last = input_ids[:, max(self.start, input_ids.shape[1] - self.window) :].tolist()
        done = [any(mark in self.read(row) for mark in self.stop) for row in last]
        if any(done):  # whether a thought surrounds it is seen in the whole text
            new = input_ids[:, self.start :].tolist()
            done = [
                hit and _holds(self.read(row), self.stop, opened) for row, hit, opened in zip(new, done, self.opened)
            ]
        return torch.tensor(done, device=input_ids.device)


class _Clock:
    """A streamer for `generate` that records when tokens arrive, the device synchronised."""

    def __init__(self):
        self.times, self.tokens = [], []

    def put(self, value):
        utils.synchronize()
        self.times.append(time.perf_counter())
        self.tokens.append(value.numel())

    def end(self):
        pass


@dataclass
class Timed:
    """One request alone, the device synchronised."""

    ttft_ms: float  # from text in to the first (of speculative decoding: accepted) tokens; None of several samples
    total_ms: float  # from text in to text out
    tpot_ms: float  # the time after those divided by the tokens after those; None for an answer in one piece
    arrived: int  # tokens that were generated, also those after the end of the answer
    answer: Answers


def time_request(model, tokenizer, prompt, max_new_tokens=32, exact=False, samples=1, **options):
    """One Timed request. prompt: a text, or a function that makes it within the measured time (templates, retrieval).

    samples: so many answers in one batch, whose tokens are not timed; exact: exactly max_new_tokens are generated,
    whatever would end the answer earlier. options: of `generate`.
    """
    clock = _Clock()
    if exact:
        options["min_new_tokens"] = max_new_tokens
    utils.synchronize()
    start = time.perf_counter()
    text = prompt() if callable(prompt) else prompt
    if engine.is_engine(model):
        answer = generate(model, tokenizer, [text] * samples, max_new_tokens, **options)
        return Timed(None, 1000 * (time.perf_counter() - start), None, answer.new_tokens, answer)
    if samples > 1:
        answer = generate(model, tokenizer, [text] * samples, max_new_tokens, samples, **options)
        utils.synchronize()
        return Timed(None, 1000 * (time.perf_counter() - start), None, answer.new_tokens, answer)
    answer = generate(model, tokenizer, [text], max_new_tokens, 1, streamer=clock, **options)
    utils.synchronize()
    total = time.perf_counter() - start
    first, last = clock.times[1], clock.times[-1]  # times[0] is the prompt's echo
    later = sum(clock.tokens[2:])
    return Timed(
        1000 * (first - start),
        1000 * total,
        1000 * (last - first) / later if later else None,
        sum(clock.tokens[1:]),
        answer,
    )
