"""What a thinking model writes before its answer: never a part of the answer."""

import re

# how models mark a thought: <think> (DeepSeek-R1, Qwen3, SmolLM3), <thought> (EXAONE), <seed:think> (Seed-OSS),
# [THINK] (Magistral), <|START_THINKING|> (Command A), <|begin_of_thought|> (OpenThinker), ◁think▷ (Kimi-VL)
NAMES = "(?:seed:|longcat_)?(?:think|thinking|thoughts?|reasoning|reflection|analysis|scratchpad|inner_monologue)"
CHANNEL = r"<\|channel\|>\s*"  # gpt-oss: a channel for the thoughts, and one for the answer
OPENED = (
    rf"<{NAMES}>|\[THINK\]|◁think▷|<\|(?:begin_of_thought|start_thinking|thinking)\|>"
    rf"|{CHANNEL}(?:analysis|commentary)\b(?:(?!<\|message\|>).)*<\|message\|>"
)
CLOSED = (
    rf"</{NAMES}>|\[/THINK\]|◁/think▷|<\|(?:end_of_thought|end_thinking|/thinking)\|>"
    rf"|{CHANNEL}final\b(?:(?!<\|message\|>).)*<\|message\|>"
)
MARK = re.compile(rf"(?<!`)(?:(?P<opened>{OPENED})|{CLOSED})", re.I | re.S)  # in backquotes a tag is only spoken of
AT_THE_END = re.compile(rf"(?:{OPENED})\s*\Z", re.I | re.S)
# what some models put around the answer behind a thought
WRAPPED = re.compile(r"<(answer|solution|response)>(.*?)(?:</\1>|\Z)", re.I | re.S)
TOKEN = re.compile(rf"(?:{OPENED}|{CLOSED}|<\|channel\|>|<\|message\|>)\Z", re.I | re.S)  # a single token of a mark


def opens(prompt):
    """True if a prompt ends with the mark that begins a thought, as some chat templates write it."""
    return AT_THE_END.search(prompt) is not None


def split(text, opened=False):
    """(a generated text without its thoughts, True if a thought has no end, where the text behind the last one begins).

    opened: the thought began in the prompt. A text without a thought is returned as it is.
    """
    if not opened and not MARK.search(text):
        return text, False, 0
    parts, inside, start = [], opened, 0
    for mark in MARK.finditer(text):
        if mark["opened"] and not inside:
            parts.append(text[start : mark.start()])
        elif not mark["opened"] and not inside:  # the thought began before the text
            parts = []
        inside, start = bool(mark["opened"]), mark.end()
    if inside:
        start = len(text)
    answer = "".join([*parts, text[start:]]).strip()
    wrapped = WRAPPED.search(answer)
    return (wrapped[2].strip() if wrapped else answer), inside, len(text) - len(text[start:].lstrip())


def answer_of(text, opened=False):
    """A generated text without its thoughts; what is left of an unfinished thought is what stood before it, or ''."""
    return split(text, opened)[0]


def decoder(tokenizer):
    """A function of token ids -> their text without special tokens, except those that mark thoughts."""
    added = tokenizer.added_tokens_decoder.items()
    kept = {i for i, token in added if token.special and TOKEN.match(token.content)}
    if not kept:
        return lambda ids: tokenizer.decode(ids, skip_special_tokens=True)
    skipped = ({i for i, token in added if token.special} | set(tokenizer.all_special_ids)) - kept
    return lambda ids: tokenizer.decode([i for i in ids if i not in skipped])
