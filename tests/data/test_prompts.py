from helpers import write_jsonl

import utils
from harness.data import tasks
from harness.data.examples import Example, draw
from harness.data.prompts import render


def test_nli_words_and_prompt(tmp_path):
    rows = [
        {"premise": f"p{i}", "hypothesis": "h", "gold_label": name}
        for i, name in enumerate(["entailment", "neutral", "contradiction", "-"] * 5)
    ]
    write_jsonl(tmp_path / "train.jsonl", rows)
    write_jsonl(tmp_path / "test.jsonl", [{"premise": "x", "hypothesis": "h", "gold_label": "neutral"}])
    task = tasks.load_task(str(tmp_path))
    assert task.labels == ("contradiction", "entailment", "neutral") and task.words == ("no", "yes", "maybe")
    assert len(task.train) + len(task.validation) == 15  # the rows without a majority label are left out
    prompt, separator = render(task, task.evaluation[0])
    assert (
        prompt.endswith("Premise: x\nHypothesis: h\nAnswer:")
        and separator == " "
        and task.target(task.evaluation[0]) == "maybe"
    )


def test_a_chat_prompt_has_a_turn_for_each_demonstration(sentiment, tiny_llama):
    task = tasks.load_task(sentiment, instruction="Say it.")
    demos = draw(task.train, 2, 0)
    prompt, separator = render(task, task.evaluation[0], demos, utils.load_tokenizer(tiny_llama))
    assert separator == "" and prompt.endswith("<|end|><|assistant|>")
    assert (
        prompt.count("<|user|>") == 3 and prompt.startswith("<s><|user|>Say it.\n\n") and prompt.count("Say it.") == 1
    )
    assert f"<|assistant|>{task.target(demos[1])}<|end|>" in prompt


def test_demonstrations_say_the_words_that_are_scored(sentiment):
    task = tasks.load_task(sentiment, label_words=["terrible", "great"])
    prompt, _ = render(task, task.evaluation[0], draw(task.train, 2, 0))
    assert "Sentiment: terrible" in prompt and "Sentiment: great" in prompt and "negative" not in prompt


def test_braces_in_a_text_are_left_alone(sentiment):
    task = tasks.load_task(sentiment)
    assert "{text_pair} {x}" in render(task, Example("1", "{text_pair} {x}"))[0]
