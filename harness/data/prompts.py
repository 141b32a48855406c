"""Templates, and the prompt of one example."""

import re
from dataclasses import replace

import utils
from harness.data import label_words as words_for

# sorted label names -> (instruction, template, words in the same order); words are what a language model reads and says
TEMPLATES = {
    # chosen on training examples of film reviews, which labels_used does not count (docs/prompts.md): SmolLM2-135M
    # scores higher with the quotation marks and without an instruction
    ("negative", "positive"): ("", 'Review: "{text}"\nSentiment:', ("negative", "positive")),
    ("contradiction", "entailment", "neutral"): (
        "Does the premise imply the hypothesis? Answer yes, no or maybe.",
        "Premise: {text}\nHypothesis: {text_pair}\nAnswer:",
        ("no", "yes", "maybe"),
    ),
    ("entailment", "not_entailment"): (
        "Does the first text imply or answer the second? Answer yes or no.",
        "First: {text}\nSecond: {text_pair}\nAnswer:",
        ("yes", "no"),
    ),
    ("entailment", "non-entailment"): (
        "Does the premise imply the hypothesis? Answer yes or no.",
        "Premise: {text}\nHypothesis: {text_pair}\nAnswer:",
        ("yes", "no"),
    ),
    ("equivalent", "not_equivalent"): (
        "Do the two sentences mean the same? Answer yes or no.",
        "First: {text}\nSecond: {text_pair}\nAnswer:",
        ("yes", "no"),
    ),
    ("duplicate", "not_duplicate"): (
        "Do the two questions ask the same? Answer yes or no.",
        "First: {text}\nSecond: {text_pair}\nAnswer:",
        ("yes", "no"),
    ),
    ("acceptable", "unacceptable"): (
        "Is the sentence grammatical? Answer yes or no.",
        "Sentence: {text}\nAnswer:",
        ("yes", "no"),
    ),
    ("no", "yes"): (
        "Answer the question about the passage with yes or no.",
        "Passage: {text}\nQuestion: {text_pair}\nAnswer:",
        ("no", "yes"),
    ),
}


QA_INSTRUCTION = "Answer the question with a few words."
QA_CONTEXT_INSTRUCTION = "Use the text to answer the question in a few words."
QA_TEMPLATE = "Question: {text}\nAnswer:"
CONTEXT_PART = "### Context:\n{context}\n\n"  # left out where an example has no context
INSTRUCTION_TEMPLATE = "### Instruction:\n{text}\n\n" + CONTEXT_PART + "### Response:"


def with_prompt(task, label_words=None, instruction=None, template=None):
    """The task with label words, instruction and template: those given, else those of TEMPLATES, else plain ones.

    label_words: in the order of task.labels, or ["auto"] for words out of the names. UserError for words or a template
    that do not fit the task.
    """
    paired = task.kind == "classification" and any(ex.text_pair is not None for ex in task.evaluation)
    words, usual = task.words, ("", INSTRUCTION_TEMPLATE)
    if task.kind == "classification":
        words, *usual = _classification_prompt(task, label_words, paired)
    elif task.kind == "qa":
        has_context = any(ex.context for ex in task.evaluation)
        usual = (QA_CONTEXT_INSTRUCTION if has_context else QA_INSTRUCTION, QA_TEMPLATE)
    instruction = with_descriptions(task, words, usual[0] if instruction is None else instruction)
    template = template or usual[1]
    if paired != ("{text_pair}" in template):
        problem = "no {text_pair}, the examples have two texts" if paired else "{text_pair}, the examples have one text"
        raise utils.UserError(f"--template {template!r} has {problem}")
    if "{text}" not in template:
        raise utils.UserError(f"--template {template!r} has no {{text}} in it")
    return replace(task, words=tuple(words), instruction=instruction, template=template)


def _classification_prompt(task, label_words, paired):
    """(words, instruction, template) of a classification task; paired: the examples have two texts."""
    automatic = label_words == [words_for.AUTO]
    label_words = None if automatic else label_words
    if label_words:
        _check_words(label_words, task.labels)
    order = sorted(range(len(task.labels)), key=lambda i: task.labels[i])
    known = TEMPLATES.get(tuple(task.labels[i] for i in order))
    if known is None and sorted(label_words or ()) == ["negative", "positive"]:
        known = TEMPLATES["negative", "positive"]
    if known:
        other_fields = ("{text_pair}" in known[1]) != paired
        asks_for_other_words = known[0] and label_words and set(label_words) != set(known[2])
        known = None if other_fields or asks_for_other_words else known
    words = list(label_words or (words_for.of_names(task.labels) if automatic else task.labels))
    if known and not label_words:
        for position, i in enumerate(order):
            words[i] = known[2][position]
    fields = "Text: {text}\nSecond text: {text_pair}\nLabel:" if paired else "Text: {text}\nLabel:"
    plain = f"Classify the text. Answer with one of: {', '.join(words)}.", fields
    instruction, template = (known or plain)[:2]
    return words, instruction or plain[0] if task.descriptions else instruction, template


def with_descriptions(task, words, instruction):
    """The instruction, and below it what --label_descriptions say of each label."""
    about = "\n".join(f"{word}: {text}" for word, text in zip(words, task.descriptions or ()))
    return "\n\n".join(filter(None, [instruction, about]))


def _check_words(label_words, labels):
    """UserError unless there is one word for each label, none of them empty or twice."""
    given = f"--label_words {','.join(label_words)}"
    if not all(label_words):
        raise utils.UserError(f"{given}: word {label_words.index('') + 1} is empty, which no model can score")
    if len(set(label_words)) < len(label_words):
        raise utils.UserError(f"{given}: a word is given twice")
    if len(label_words) != len(labels):
        names = ", ".join(labels)
        raise utils.UserError(f"--label_words names {len(label_words)} words for the {len(labels)} labels {names}")
    places = {label.lower(): i for i, label in enumerate(labels)}
    moved = [i for i, word in enumerate(label_words) if places.get(word.lower(), i) != i]
    if moved:
        raise utils.UserError(
            f"{given}: the label {labels[moved[0]]} would be called {label_words[moved[0]]}, as another label is; the "
            f"words stand in the order of the labels: {', '.join(labels)}"
        )


# other instructions and templates for `--search`: {words} are the label words, {fields} the text or both texts
FORMS = {
    "classification": (
        ("Classify the text. Answer with one of: {words}.", "{fields}\nLabel:"),
        ("", "{fields}\nLabel:"),
        ("Which of these fits best: {words}?", "{fields}\nAnswer:"),
        ("", "{fields}\nThe best description is:"),
        ("Categories: {words}", "Input: {fields}\nCategory:"),
    ),
    "qa": (
        (QA_INSTRUCTION, QA_TEMPLATE),
        ("", QA_TEMPLATE),
        ("", "Q: {text}\nA:"),
        ("Answer as briefly as you can.", "{text}\nShort answer:"),
    ),
    "instruction": (("", INSTRUCTION_TEMPLATE), ("Follow the instruction.", INSTRUCTION_TEMPLATE)),
}


def forms(task, instruction=None, template=None):
    """[F] Tasks that differ in instruction and template: the task's own, then those of FORMS.

    instruction, template: those that a person gave, which stay.
    """
    paired = "{text_pair}" in task.template
    fields = "First: {text}\nSecond: {text_pair}" if paired else "Text: {text}"
    found = {(task.instruction, task.template): task}
    for usual in FORMS[task.kind]:
        own, its = (part.replace("{words}", ", ".join(task.words)).replace("{fields}", fields) for part in usual)
        own, its = with_descriptions(task, task.words, own if instruction is None else instruction), template or its
        found.setdefault((own, its), replace(task, instruction=own, template=its))
    return list(found.values())


REASONS = 'Think step by step, then write "The answer is" and the answer.'


def with_reasons(task, chat):
    """The task whose prompts ask for reasons before the answer (Kojima et al. 2022)."""
    template = task.template if chat else f"{task.template} Let's think step by step."
    return replace(task, instruction=" ".join(filter(None, [task.instruction, REASONS])), template=template)


def fill(task, example, chat=False):
    """The example's own part of a prompt: passage and options if there are any, then the template.

    In a chat an instruction stands as it is, its context below it, unless the template is the person's own.
    """
    if task.kind == "instruction" and chat and task.template == INSTRUCTION_TEMPLATE:
        return "\n\n".join(filter(None, [example.text, example.context]))
    template = task.template
    if "{context}" in template and not example.context:
        template = template.replace(CONTEXT_PART, "")
    parts = {"{text_pair}": example.text_pair or "", "{text}": example.text, "{context}": example.context or ""}
    body = re.sub(r"\{(?:text_pair|text|context)\}", lambda match: parts[match[0]], template)
    if example.options:
        head, _, tail = body.rpartition("\n")
        body = "\n".join(filter(None, [head, *example.options, tail]))
    return body if "{context}" in task.template or not example.context else f"Text: {example.context}\n\n{body}"


def render(task, example, demonstrations=(), tokenizer=None):
    """(prompt, separator): the text before the answer, and what stands between it and the answer.

    With a tokenizer the prompt is a chat in the tokenizer's own template, one turn a demonstration, and the separator
    is empty; without one it is plain text. The instruction and the demonstrations come first and are the same for every
    example, so that their key-value cache can be shared.
    """
    if tokenizer is None:
        blocks = [task.instruction] if task.instruction else []
        separator = "\n" if task.template == INSTRUCTION_TEMPLATE else " "
        blocks += [f"{fill(task, demo)}{separator}{task.target(demo)}" for demo in demonstrations]
        return "\n\n".join([*blocks, fill(task, example)]), separator
    messages = []
    for demo in demonstrations:
        messages.append({"role": "user", "content": fill(task, demo, chat=True)})
        messages.append({"role": "assistant", "content": task.target(demo)})
    messages.append({"role": "user", "content": fill(task, example, chat=True)})
    if task.instruction:  # some chat templates allow no system turn
        messages[0]["content"] = f"{task.instruction}\n\n{messages[0]['content']}"
    return tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True), ""


def answer_end(tokenizer, chat):
    """The text that ends an answer: what closes an assistant's turn in a chat, or the end-of-sequence token."""
    mark = "0a1b2c3d"  # in no template
    turns = [{"role": "user", "content": mark}, {"role": "assistant", "content": mark}]
    end = tokenizer.apply_chat_template(turns, tokenize=False).rpartition(mark)[2].strip() if chat else ""
    return end or tokenizer.eos_token or ""


def with_instruction(task, instruction):
    """The task with another instruction, unless a person chose its instruction."""
    usual = ("", QA_INSTRUCTION, QA_CONTEXT_INSTRUCTION)
    return replace(task, instruction=instruction) if task.instruction in usual else task
