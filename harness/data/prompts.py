"""Templates, and the prompt of one example."""

import re
from dataclasses import replace

import utils

# label names -> (instruction, template, words in the order of the sorted names); words are what a language model reads and says
TEMPLATES = {
    # chosen on training examples: SmolLM2-135M is better off with the quotation marks and without an instruction
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


INSTRUCTION_TEMPLATE = "### Instruction:\n{text}\n\n### Context:\n{context}\n\n### Response:"  # without its middle where there is no context


def with_prompt(task, label_words, instruction, template):
    """Fill in the instruction, the template and the label words: the flags', else those of TEMPLATES, else plain ones."""
    if task.kind == "classification":
        pair = any(ex.text_pair is not None for ex in task.evaluation)
        order = sorted(range(len(task.labels)), key=lambda i: task.labels[i])
        names = tuple(task.labels[i] for i in order)
        words, known = list(task.labels), TEMPLATES.get(names)
        if label_words and not all(label_words):
            raise utils.UserError(
                f"--label_words {','.join(label_words)}: word {label_words.index('') + 1} is empty, which no model can score"
            )
        if label_words and len(set(label_words)) < len(label_words):
            raise utils.UserError(f"--label_words {','.join(label_words)}: a word stands there twice")
        if known is None and sorted(label_words or ()) == ["negative", "positive"]:
            known = TEMPLATES["negative", "positive"]
        if known and (
            ("{text_pair}" in known[1]) != pair or (known[0] and label_words and set(label_words) != set(known[2]))
        ):
            known = None  # a template for other fields, or an instruction that asks for other words
        if known and not label_words:
            for position, i in enumerate(order):
                words[i] = known[2][position]
        if label_words:
            words = list(label_words)
        if len(words) != len(task.labels):
            raise utils.UserError(
                f"--label_words names {len(words)} words for the {len(task.labels)} labels {', '.join(task.labels)}"
            )
        default = (
            f"Classify the text. Answer with one of: {', '.join(words)}.",
            "Text: {text}\nSecond text: {text_pair}\nLabel:" if pair else "Text: {text}\nLabel:",
        )
        task.words = tuple(words)
        task.instruction, task.template = (known or default)[:2]
    elif task.kind == "qa":
        has_context = any(ex.context for ex in task.evaluation)
        task.instruction, task.template = QA_CONTEXT_INSTRUCTION if has_context else QA_INSTRUCTION, QA_TEMPLATE
    else:
        task.instruction, task.template = "", INSTRUCTION_TEMPLATE
    task = replace(
        task, instruction=task.instruction if instruction is None else instruction, template=template or task.template
    )
    paired = task.kind == "classification" and any(ex.text_pair is not None for ex in task.evaluation)
    if paired != ("{text_pair}" in task.template):
        which = (
            "has no {text_pair}, the examples have two texts"
            if paired
            else "has {text_pair}, the examples have one text"
        )
        raise utils.UserError(f"--template {task.template!r} {which}")
    if "{text}" not in task.template:
        raise utils.UserError(f"--template {task.template!r} has no {{text}} in it")
    return task


def fill(task, example, chat=False):
    """The example's own part of a prompt: passage and options where there are any, then the template.

    In a chat an instruction without a template of the person's own stands as it is, its context below it.
    """
    if task.kind == "instruction" and chat and task.template == INSTRUCTION_TEMPLATE:
        return "\n\n".join(filter(None, [example.text, example.context]))
    template = task.template
    if "{context}" in template and not example.context:
        template = template.replace("### Context:\n{context}\n\n", "")
    parts = {"{text_pair}": example.text_pair or "", "{text}": example.text, "{context}": example.context or ""}
    body = re.sub(r"\{(?:text_pair|text|context)\}", lambda found: parts[found[0]], template)
    if example.options:
        head, _, tail = body.rpartition("\n")
        body = "\n".join(filter(None, [head, *example.options, tail]))
    return body if "{context}" in task.template or not example.context else f"Text: {example.context}\n\n{body}"


def render(task, example, demonstrations=(), tokenizer=None):
    """(prompt, separator): the text before the answer, and what stands between it and the answer.

    With a tokenizer the prompt is a chat in the tokenizer's own template, a turn for each demonstration, and the separator
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
        messages += [
            {"role": "user", "content": fill(task, demo, chat=True)},
            {"role": "assistant", "content": task.target(demo)},
        ]
    messages.append({"role": "user", "content": fill(task, example, chat=True)})
    if task.instruction:
        messages[0] = {"role": "user", "content": f"{task.instruction}\n\n{messages[0]['content']}"}
    return tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True), ""


def answer_end(tokenizer, chat):
    """The text that ends an answer: what the chat template closes the assistant's turn with, or the end-of-sequence token."""
    mark = "0a1b2c3d"  # in no template
    turns = [{"role": "user", "content": mark}, {"role": "assistant", "content": mark}]
    end = tokenizer.apply_chat_template(turns, tokenize=False).rpartition(mark)[2].strip() if chat else ""
    return end or tokenizer.eos_token or ""


def with_instruction(task, instruction):
    """The task with another instruction; its own where a person chose one."""
    return (
        task
        if task.instruction not in ("", QA_INSTRUCTION, QA_CONTEXT_INSTRUCTION)
        else replace(task, instruction=instruction)
    )
