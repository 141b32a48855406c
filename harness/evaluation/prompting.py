"""Prompts that fit the model, where an answer stops, and label priors for calibration."""

import bisect

import numpy as np

from harness.data.examples import Example
from harness.data.prompts import answer_end, render
from harness.evaluation.demonstrations import of_each


def fit_prompts(task, examples, demonstrations, tokenizer, chat, room):
    """Render the examples' prompts, each with as many of the last demonstrations as leave it at most `room` tokens.

    demonstrations: a list for all, or a demonstrations.Nearest; room: None for no limit. Returns ([N] prompts, the
    separator before an answer, prompts that lost demonstrations, the demonstrations they lost). A prompt that is too
    long with none of them is left as it is, to be cut later.
    """
    prompts, shortened, lost = [], 0, 0

    def rendered(example, shown):
        return render(task, example, shown, tokenizer if chat else None)

    def fits(example, shown):
        prompt = rendered(example, shown)[0]
        # a token is a byte at least, so that most prompts need no counting
        return (
            len(prompt.encode()) < room
            or len(tokenizer(prompt, add_special_tokens=not chat, verbose=False).input_ids) <= room
        )

    for example, shown in zip(examples, of_each(demonstrations, examples)):
        start = 0
        if room is not None and shown and not fits(example, shown):
            start = bisect.bisect_left(
                range(len(shown)), True, key=lambda n, ex=example, some=shown: fits(ex, some[n:])
            )
            shortened, lost = shortened + 1, lost + start
        prompt, separator = rendered(example, shown[start:])
        prompts.append(prompt)
    return prompts, separator, shortened, lost


CONTENT_FREE = ("N/A", "", "[MASK]")  # the inputs of contextual calibration, as in its paper


def contextual_prior(task, score):
    """Log label prior [L]: the mean probability of each label after inputs without content (Zhao et al. 2021).

    score: examples -> log-probabilities [N, L].
    """
    blank = [
        Example("content-free", text, text if task.evaluation[0].text_pair is not None else None)
        for text in CONTENT_FREE
    ]
    return np.log(np.exp(score(blank)).mean(axis=0))


def batch_prior(log_probs):
    """Log label prior [L]: the mean probability of each label over a batch of inputs (Zhou et al. 2024)."""
    return np.log(np.exp(log_probs).mean(axis=0))


def label_prior(method, task, inputs=None):
    """The `prior` of evaluate.by_likelihood for --calibrate none, contextual or batch.

    inputs: the Examples whose inputs the prior of batch calibration is estimated on; None for the evaluation inputs
    themselves, which is transductive.
    """
    return {
        "none": None,
        "contextual": lambda score, _: contextual_prior(task, score),
        "batch": lambda score, log_probs: batch_prior(log_probs if inputs is None else score(inputs)),
    }[method]


def task_stop(model, tokenizer, task, chat, reasons=False):
    """answer_stop of a task; reasons: they come before the answer.

    Reasons, and solutions whose last number counts, have several lines: in a plain prompt they end where the next
    example would begin, with the first words of the template.
    """
    if chat or model.config.is_encoder_decoder or not (reasons or task.answer_format == "number"):
        return answer_stop(model, tokenizer, task.kind, chat)
    head = task.template.partition("{")[0].strip()
    context = ("\n\nText:",) if any(ex.context for ex in task.evaluation[:1]) else ()
    return (f"\n\n{head}", *context) if head else ("\n\n\n", *context)


def answer_stop(model, tokenizer, kind, chat):
    """Where an answer ends besides its end-of-sequence token. kind: of the task.

    A plain prompt's answer is one line, a plain instruction's response ends before the next heading; a chat template
    may close a turn with a text that is no special token.
    """
    if model.config.is_encoder_decoder:
        return ()
    if chat:
        end = answer_end(tokenizer, chat)
        return () if end in tokenizer.all_special_tokens else (end,)
    return ("\n###",) if kind == "instruction" else ("\n",)


def answer_length(args, task):
    """Most new tokens of an answer: --max_new_tokens, or 256 for instructions and solutions that end in a number, and
    32 for other questions.
    """
    return args.max_new_tokens or (256 if task.kind == "instruction" or task.answer_format == "number" else 32)
