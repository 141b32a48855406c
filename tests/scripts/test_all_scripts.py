import pytest
from helpers import predictions

import finetune
import peft_finetune
import probe
import prompt_eval
import quantize_and_parallel
from harness.data import tasks
from harness.evaluation import prompting
from harness.results import store
from harness.training import collators


@pytest.mark.slow
def test_all_strategies_meet_the_same_examples(sentiment, tiny_bert, tiny_llama, tmp_path, out, monkeypatch):
    """No evaluation example is trained on or shown as a demonstration; the k examples are the same everywhere."""
    trained, shown = [], []
    prepare, render = collators.classification_data, prompting.render

    def noted(model, tokenizer, task, args, device):
        trained.extend([task.train, task.validation])
        return prepare(model, tokenizer, task, args, device)

    monkeypatch.setattr(collators, "classification_data", noted)
    monkeypatch.setattr(
        prompting, "render", lambda task, ex, demos=(), tok=None: shown.append(demos) or render(task, ex, demos, tok)
    )
    k = ["--dataset", sentiment, "--max_eval_samples", "25", "--data_seed", "3", *out]
    finetune.main(["--model", tiny_bert, "--max_train_samples", "4", "--max_steps", "1", *k])
    peft_finetune.main(["--model", tiny_bert, "--max_train_samples", "4", "--max_steps", "1", *k])
    prompt_eval.main(["--model", tiny_llama, "--k_shots", "4", *k])
    probe.main(["--features", "lm", "--model", tiny_llama, "--max_train_samples", "4", *k])
    quantize_and_parallel.main(["--model", tiny_llama, "--int8", "--new_tokens", "2", *k])
    rows = store.read_results(tmp_path / "results.csv")
    assert len(rows) == 5 and len({row["eval_id"] for row in rows}) == 1
    assert len({tuple(p["id"] for p in predictions(row)) for row in rows}) == 1
    assert [row["n_train"] for row in rows[:4]] == ["4", "4", "4", "4"]
    evaluated = {ex.key() for ex in tasks.load_task(sentiment).evaluation}
    assert len(trained) == 4 and not evaluated & {ex.key() for examples in trained for ex in examples}
    demonstrations = {tuple(ex.id for ex in demos) for demos in shown if demos}
    assert demonstrations == {tuple(ex.id for ex in trained[0])} and trained[0] == trained[2]
