"""Sentences for the row's note on what happened to prompts and answers, and what was generated beside an answer."""


def cuts(lengths, limit):
    """A sentence on texts of `lengths` tokens that were cut to `limit` (None: no limit), in a list; none for none."""
    cut = sum(n > (limit or n) for n in lengths)
    return [f"{cut} of {len(lengths)} evaluation texts were cut to {limit} tokens"] if cut else []


def truncation(room, shortened, lost, cut):
    """Sentences on prompts that were longer than the `room` tokens left by the model's context."""
    dropped = (
        f"{shortened} prompts were longer than the {room} tokens that the model's context leaves them: {lost} "
        "demonstrations left out, from the first on"
    )
    cut_left = f"{cut} prompts were cut on the left to fit the model's context"
    return [text for text, n in ((dropped, shortened), (cut_left, cut)) if n]


def with_thoughts(generated, answers, name="generated"):
    """[N] dicts for predictions.jsonl: what was generated, thoughts and reasons included, where it is more than the
    answer.
    """
    pairs = zip(generated, answers, strict=True)
    return [{} if text in (None, answer) else {name: text} for text, answer in pairs]


def unfinished(n, n_texts):
    """[a sentence on n of n_texts outputs that end within a thought]; [] without any."""
    cause = "a thinking model needs a larger --max_new_tokens, or --no-thinking"
    return [f"{n} of {n_texts} outputs end within a thought, so they are no answers: {cause}"] if n else []
