"""RAFT: what a training question is shown, and that it is answered as rag_eval.py would ask it."""

from types import SimpleNamespace

import pytest
from helpers import predictions

import finetune
import peft_finetune
import rag_eval
from harness.data import tasks
from harness.results import store
from harness.retrieval import raft
from harness.retrieval.chunking import Chunk
from harness.retrieval.documents import Document


def shown(questions, tiny_embedder, *flags):
    """(task as it was, task with passages, row, notes)."""
    args = finetune.parse_args(["--dataset", questions, "--embed_model", tiny_embedder, "--context", *flags])
    run, task = SimpleNamespace(row={}, notes=[]), tasks.load_task(questions)
    run.note = run.notes.append
    made, trained = raft.with_passages(run, args, task, "cpu")
    assert args.max_length is None and trained.max_length > 1024 and trained.latency_runs == 0
    return task, made, run


@pytest.mark.parametrize("gold_share", [0.0, 0.5, 1.0])
def test_training_questions_have_their_passage_as_often_as_asked(questions, tiny_embedder, gold_share):
    task, made, run = shown(questions, tiny_embedder, "retrieved", "--k", "3", "--gold_share", str(gold_share))
    own = [ex.context in new.context for ex, new in zip(task.train, made.train)]
    assert abs(sum(own) / len(own) - gold_share) <= 0.35 and (gold_share == 0.5 or sum(own) == gold_share * len(own))
    assert all(len(ex.context.split("\n\n")) == 3 for ex in made.train), "three passages in any case"
    places = {new.context.split("\n\n").index(ex.context) for ex, new, has in zip(task.train, made.train, own) if has}
    assert gold_share == 0 or len(places) > 1, "not always in one place"
    assert [ex.references for ex in made.train] == [ex.references for ex in task.train]
    assert run.row["train_seconds"] > 0 and f"the right one for {sum(own)}" in run.notes[0]


def test_gold_trains_on_the_own_passage_and_answers_with_retrieved_ones(questions, tiny_embedder):
    task, made, _ = shown(questions, tiny_embedder, "gold", "--k", "2")
    assert made.train == task.train
    assert all(len(ex.context.split("\n\n")) == 2 for ex in made.evaluation)


@pytest.mark.parametrize("script", [finetune, peft_finetune])
def test_rag_eval_serves_it_with_the_same_prompts(script, questions, tiny_llama, tiny_embedder, tmp_path, out):
    rag = ["--dataset", questions, "--embed_model", tiny_embedder, "--k", "3", "--retriever", "hybrid", *out]
    rag += ["--max_validation_samples", "0"]  # the order of the passages breaks ties
    flags = ["--model", tiny_llama, "--context", "retrieved", "--max_steps", "6", "--no-forgetting"]
    script.main([*rag, *flags, "--learning_rate", "1e-2", "--max_new_tokens", "5"])
    (row,) = store.read_results(tmp_path / "results.csv")
    assert row["variant"] == ("full_raft_k3" if script is finetune else "lora_r8_raft_k3")
    trained = f"{row['run_dir']}/model" if script is finetune else tiny_llama
    adapter = [] if script is finetune else ["--adapter", f"{row['run_dir']}/adapter"]
    served = ["--results", str(tmp_path / "served.csv"), "--max_new_tokens", "5"]
    rag_eval.main([*rag, "--gen_model", trained, *adapter, *served])
    (again,) = store.read_results(tmp_path / "served.csv")
    assert [p["prediction"] for p in predictions(again)] == [p["prediction"] for p in predictions(row)]
    assert [p["cluster"] for p in predictions(again)] == [p["cluster"] for p in predictions(row)]
    assert again["score"] == row["score"] and again["eval_id"] == row["eval_id"]
    assert again["labels_used"] == row["labels_used"] == "20"


@pytest.mark.parametrize(
    "flags, said",
    [
        (["--k", "3"], "--k belongs to --context"),
        (["--context", "gold", "--gold_share", "0.5"], "--gold_share belongs to --context retrieved"),
    ],
)
def test_flags_without_their_context_are_refused(flags, said, capsys):
    with pytest.raises(SystemExit) as stopped:
        finetune.parse_args(flags)
    assert stopped.value.code == 2 and said in capsys.readouterr().err


@pytest.mark.parametrize("mode", ["none", "gold", "retrieved"])
def test_demonstrations_have_what_their_prompts_have(mode, questions):
    task = tasks.load_task(questions)
    examples = [task.train[0], task.train[1]]
    answer = examples[0].references[0]
    chunks = [Chunk("p0", 0, "of another city"), Chunk("p0", 1, f"it is {answer}"), Chunk("p1", 0, "no answer here")]
    documents = [Document(f"p{i}", "", ex.context) for i, ex in enumerate(examples)]
    names = [chunk.document for chunk in chunks]
    index = SimpleNamespace(
        documents={doc.id: doc.digest for doc in documents},
        table={"document": SimpleNamespace(to_pylist=lambda: names)},
        chunk=chunks.__getitem__,
    )
    made = raft.demonstrations(examples, mode, task, documents, index)
    contexts = {
        "none": [None, None],
        "gold": [ex.context for ex in examples],
        "retrieved": [f"it is {answer}", "no answer here"],
    }
    assert [ex.context for ex in made] == contexts[mode]
    assert [(ex.id, ex.references) for ex in made] == [(ex.id, ex.references) for ex in examples]
