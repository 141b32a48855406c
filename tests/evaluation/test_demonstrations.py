import numpy as np
from helpers import loaded

from harness.data import tasks
from harness.data.examples import Example
from harness.data.prompts import render
from harness.evaluation import prompting
from harness.evaluation.demonstrations import Nearest

PLACES = {"east": (1, 0), "north-east": (0.8, 0.6), "north": (0, 1), "west": (-1, 0), "south\nfar": (0, -1)}


def embed(texts):
    return np.array([PLACES[text] for text in texts], dtype=float)


def pool():
    pair = Example("train-4", "south", "far", label=0)
    return [*(Example(f"train-{i}", text, label=i % 2) for i, text in enumerate(list(PLACES)[:4])), pair]


def test_the_nearest_stands_last_and_no_example_shows_itself():
    nearest = Nearest(embed, pool(), 2)
    (shown,) = nearest([Example("test-0", "south\nfar")])  # one text, not the pair of the pool
    assert shown[-1].text == "south"
    (shown,) = nearest([Example("test-0", "east")])  # a copy of one of the pool
    assert [ex.text for ex in shown] == ["north", "north-east"]
    (shown,) = nearest([pool()[0]])  # an example of the pool
    assert [ex.text for ex in shown] == ["north", "north-east"]
    (shown,) = nearest.of(5)([pool()[4]])
    assert len(shown) == 4 and shown[-1].text != "south" and len(nearest) == 2
    assert nearest.of(0)([Example("test-0", "east")]) == [[]]


def test_each_prompt_has_its_own_demonstrations(sentiment, tiny_llama):
    _, tokenizer = loaded(tiny_llama)
    task = tasks.load_task(sentiment)
    words = sorted({word for ex in [*task.train, *task.evaluation] for word in ex.text.split()})

    def bag(texts):
        counts = np.array([[text.split().count(word) for word in words] for text in texts], dtype=float)
        return counts / np.linalg.norm(counts, axis=1, keepdims=True)

    nearest, some = Nearest(bag, task.train, 3), task.evaluation[:5]
    prompts, *_ = prompting.fit_prompts(task, some, nearest, tokenizer, False, None)
    assert prompts == [render(task, ex, shown)[0] for ex, shown in zip(some, nearest(some))]
    assert len({prompt.split("\n\n")[0] for prompt in prompts}) > 1
    # what does not fit goes from the front, so the nearest stays
    room = len(tokenizer(prompts[0]).input_ids) - 1
    (short,), _, shortened, lost = prompting.fit_prompts(task, some[:1], nearest, tokenizer, False, room)
    assert (shortened, lost) == (1, 1) and prompts[0].endswith(short)
