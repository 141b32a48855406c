"""What a label's abbreviation stands for, by a causal language model: LOC is "location", beside HUM and NUM."""

import math
import re

import torch

from harness.models import engine

SHORT = re.compile(r"[A-Z]{3,6}")  # names that may be abbreviations; two letters can mean anything
SURE = 0.4  # the probability from which on an expansion is believed
HEAD = "Abbreviations and the words they stand for:\nINFO: information\nDEPT: department\nMGMT: management\n"


def vocabulary(tokenizer):
    """{lower-case word of three letters or more: its token id}: the words that the model says as one token."""
    found = {}
    for token, i in tokenizer.get_vocab().items():
        text = tokenizer.convert_tokens_to_string([token])
        text = " " + text if token.startswith("\u2581") else text  # SentencePiece
        if re.fullmatch(r" [a-z]{3,}", text):
            found[text[1:]] = i
    return found


def may_stand_for(short, words):
    """The words that an abbreviation may stand for: its first letter, and the others in their order."""
    return [word for word in words if word[0] == short[0] and len(word) > len(short) and _in_order(short[1:], word[1:])]


def _in_order(letters, word):
    rest = iter(word)
    return all(letter in rest for letter in letters)


@torch.inference_mode()
def expand(names, model, tokenizer):
    """{name: word} of those names that are abbreviations, as far as the model is SURE; the surest are asked first.

    What is found stands in the prompt of the next, so that the names of one data set explain each other. A name that is
    a word itself (SPAM) competes with what it may stand for. model: causal.
    """
    words, found = vocabulary(tokenizer), {}
    left = [name for name in dict.fromkeys(names) if SHORT.fullmatch(name)]
    while left:
        prompt = HEAD + "".join(f"{name}: {word}\n" for name, word in found.items())
        best = max((_likeliest(name, f"{prompt}{name}:", words, model, tokenizer) for name in left), default=None)
        if best[0] < SURE:
            break
        found[best[1]] = best[2]
        left.remove(best[1])
    said = {name: word for name, word in found.items() if word != name.lower()}
    return said if len(set(said.values())) == len(said) else {}


def _likeliest(name, prompt, words, model, tokenizer):
    """(probability, name, word) of the likeliest word after the prompt; (0.0, name, "") without any candidate."""
    short = name.lower()
    some = [*may_stand_for(short, words), *([short] if short in words else [])]
    if engine.is_engine(model) and some:
        ids = tokenizer(prompt).input_ids
        told = model.log_probs([ids], [[[words[word]] for word in some]])
        return max((math.exp(value), name, word) for value, word in zip(told, some))
    ids = tokenizer(prompt, return_tensors="pt").input_ids.to(model.device)
    scores = model(ids).logits[0, -1].float().softmax(-1) if some else {}
    return max(((float(scores[words[word]]), name, word) for word in some), default=(0.0, name, ""))
