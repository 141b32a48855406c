import pytest
from helpers import write_jsonl

import context_distill
import finetune
import peft_finetune
import prompt_eval


@pytest.mark.parametrize(
    "flags, message",
    [
        ("finetune.py --model assets/nowhere", "no such file or folder"),
        ("finetune.py --model BERT --dataset ./nowhere", "--dataset ./nowhere: no such file or folder"),
        ("finetune.py --model BERT --dataset DATA --epochs 0", "--epochs: must be a number above 0, or auto, not 0"),
        ("finetune.py --model BERT --dataset DATA --lr 1", "here it is called --learning_rate"),
        ("finetune.py --model BERT --dataset DATA --max_train 1", "unrecognized arguments"),
        ("finetune.py --model BERT --dataset DATA --test_file x.tsv", "exclude each other"),
        ("finetune.py --model BERT --dataset mine.csv", "--dataset mine.csv: no such file or folder"),
        ("finetune.py --model BERT --test_file ONE_LABEL", "has the one label a"),
        ("finetune.py --model BERT --dataset DATA --fp16", "--fp16 needs a CUDA GPU"),
        ("finetune.py --model BERT --dataset DATA --fp16 --bf16", "not allowed with"),
        ("finetune.py --model BERT --dataset DATA --device cuda", "torch sees no CUDA GPU"),
        ("finetune.py --model BERT --dataset DATA --device xpu:1", "--device xpu:1: torch sees no XPU GPU"),
        ("finetune.py --model BERT --dataset DATA --device cuda:one", "'cuda:one' is no device; give auto, cpu, cuda"),
        (
            "prompt_eval.py --model LLAMA --dataset DATA --device cpu --attn_implementation flash_attention_2",
            "computes in 16 bits, not in fp32",
        ),
        ("finetune.py --model BERT --dataset DATA --label_column colour", "no such column; there are text, label"),
        ("finetune.py --model BERT --dataset DATA --max_train_samples 9999", "the data have 160"),
        ("finetune.py --model BERT --dataset DATA --label_budget 161", "has 160 labelled training examples"),
        ("finetune.py --model BERT --dataset DATA --label_budget 0", "--label_budget: must be a whole number"),
        (
            "finetune.py --model BERT --dataset DATA --label_budget 9 --max_train_samples 5",
            "leave out --max_train_samples",
        ),
        (
            "prompt_eval.py --model LLAMA --dataset DATA --label_budget 9 --max_validation_samples 0",
            "leave out --max_validation_samples",
        ),
        ("prompt_eval.py --model LLAMA --dataset DATA --calibrate_on train", "belongs to --calibrate batch"),
        (
            "prompt_eval.py --model LLAMA --dataset DATA --calibrate batch --calibrate_on test",
            "takes train, unlabelled, unlabelled FILE or evaluation, not test",
        ),
        (
            "prompt_eval.py --model LLAMA --dataset DATA --label_budget 9 --calibrate batch --calibrate_on train",
            "leave out --calibrate_on",
        ),
        (
            "prompt_eval.py --model LLAMA --dataset DATA --label_budget 4 --k_shots 4 --calibrate batch",
            "--calibrate_on train: no example is left besides the 4 demonstrations",
        ),
        (
            "prompt_eval.py --model LLAMA --dataset DATA --calibrate batch --calibrate_on unlabelled EMPTY",
            "empty.jsonl",
        ),
        ("finetune.py --model BERT --dataset DATA --resume", "no unfinished run with these flags"),
        ("finetune.py --model BERT --dataset QUESTIONS", "an encoder without a language-model head"),
        ("finetune.py --model BERT --test_file DATA/nowhere.tsv", "no such file"),
        ("finetune.py --model BERT --dataset DATA --results BROKEN", "is not a results CSV"),
        ("finetune.py --model BERT --dataset DATA --results /nowhere/at/all.csv", "there is no folder"),
        ("finetune.py --model BERT --dataset DATA --latency_runs -1", "must be a whole number of at least 0"),
        ("prompt_eval.py --model LLAMA --dataset DATA --label_words x,x", "a word is given twice"),
        ("prompt_eval.py --model LLAMA --dataset DATA --label_words bad,", "word 2 is empty"),
        (
            "prompt_eval.py --model LLAMA --dataset DATA --batch_size few",
            "must be a whole number of at least 1, or auto, not few",
        ),
        ("finetune.py --model BERT --dataset DATA --batch_size auto", "must be a whole number of at least 1, not auto"),
        ("prompt_eval.py --model LLAMA --dataset DATA --no-merge_adapter", "belong to --adapter"),
        ("quantize_and_parallel.py --model LLAMA --dataset DATA --compile --prompt_lookup 3", "not allowed with"),
        (
            "quantize_and_parallel.py --model LLAMA --dataset DATA --assistant_adapter DATA",
            "belongs to --assistant_model",
        ),
        (
            "quantize_and_parallel.py --model LLAMA --dataset DATA --assistant_model ./nowhere",
            "--assistant_model ./nowhere: no such file",
        ),
        ("quantize_and_parallel.py --model LLAMA --dataset DATA --assistant_model BERT", "cannot be prompted"),
        ("quantize_and_parallel.py --model LLAMA --dataset DATA --compile --nf4", "does not compile nf4 weights"),
        (
            "quantize_and_parallel.py --model LLAMA --dataset DATA --new_tokens 1000",
            "does not fit the model's context of 1024",
        ),
        (
            "quantize_and_parallel.py --model LLAMA --dataset DATA --assistant_model T5",
            "one of the two models has an encoder",
        ),
        (
            "quantize_and_parallel.py --model LLAMA --dataset DATA --compile --latency_runs 0",
            "no request to time compiled decoding on",
        ),
        ("prompt_eval.py --model LLAMA --dataset QUESTIONS --max_new_tokens 2000", "leave no room for a prompt"),
        (
            "rag_eval.py --embed_model EMBEDDER --dataset QUESTIONS --retrieval_only --reranker CLASSIFIER",
            "has several outputs; a reranker has one",
        ),
        ("quantize_and_parallel.py --model CLASSIFIER --dataset QUESTIONS", "a model with a classification head"),
        ("prompt_eval.py --model CLASSIFIER --dataset DATA", "was trained for the labels good, bad"),
        (
            "rag_eval.py --embed_model EMBEDDER --dataset QUESTIONS --docs PICTURE --retrieval_only",
            "of an unknown type .png",
        ),
        ("rag_eval.py --baselines --k 0", "asks without retrieval anyway"),
        ("rag_eval.py --build_only --docs FILE", "--build_only needs --index_dir"),
        ("rag_eval.py --mmap", "--mmap is for searching in an --index_dir"),
        ("rag_eval.py --chunk_tokens 20 --chunk_overlap 15", "at most half of --chunk_tokens 20"),
        ("rag_eval.py --encoding klingon", "no such encoding"),
        (
            "rag_eval.py --embed_model EMBEDDER --gen_model LLAMA --dataset QUESTIONS --reranker ./nowhere",
            "--reranker ./nowhere",
        ),
        (
            "rag_eval.py --embed_model EMBEDDER --gen_model LLAMA --dataset QUESTIONS --index ivfpq",
            "at least 256 vectors",
        ),
        (
            "rag_eval.py --embed_model EMBEDDER --gen_model LLAMA --dataset QUESTIONS --index_dir FILE",
            "is a file; give a folder",
        ),
        (
            "rag_eval.py --embed_model EMBEDDER --index_dir NEW --build_only --delete nobody",
            "no document 'nobody' in the index",
        ),
        (
            "prompt_eval.py --model LLAMA --dataset DATA --adapter ./nowhere",
            "--adapter ./nowhere: no such file or folder",
        ),
        ("peft_finetune.py --model BERT --dataset DATA --target_modules q_proj", "bert has dense, key, query, value"),
        (
            "peft_finetune.py --model BERT --dataset DATA --rank 0",
            "--rank: must be a whole number of at least 1, not 0",
        ),
        ("probe.py --features lm --model BERT --dataset DATA", "is no causal language model"),
        ("probe.py --model LLAMA --dataset QUESTIONS", "a probe here is for classification data"),
        ("probe.py --features tfidf --model LLAMA", "has no model and reads whole texts"),
        ("probe.py --model EMBEDDER --precision bf16", "--precision belongs to --features lm"),
        ("probe.py --probe DATA --head knn", "brings its own head"),
        ("probe.py --probe DATA --dataset DATA", "it has no probe.json"),
        ("probe.py --model EMBEDDER --dataset DATA --max_train_samples 1", "all 1 training examples have one label"),
        ("prompt_eval.py --model BERT --dataset DATA", "cannot be prompted"),
        ("prompt_eval.py --model LLAMA --dataset DATA --k_shots 161", "161 training examples or demonstrations"),
        ("prompt_eval.py --model LLAMA --dataset DATA --adapter DATA", "no adapter_config.json"),
        ("prompt_eval.py --model LLAMA --dataset DATA --label_words a,b,c", "names 3 words for the 2 labels"),
        ("prompt_eval.py --model LLAMA --dataset DATA --precision fp16", "fp16 needs a CUDA GPU"),
        (
            "prompt_eval.py --model LLAMA --dataset DATA --scoring generate --calibrate batch",
            "--calibrate works on label likelihoods",
        ),
        ("prompt_eval.py --model LLAMA --dataset EMPTY", "every split is empty"),
        ("rag_eval.py --embed_model EMBEDDER --gen_model LLAMA --dataset DATA", "recognised as classification"),
        (
            "rag_eval.py --embed_model EMBEDDER --gen_model LLAMA --docs ./nowhere",
            "--docs ./nowhere: no such file or folder",
        ),
        (
            "rag_eval.py --embed_model EMBEDDER --gen_model LLAMA --dataset QUESTIONS --chunk_tokens 900",
            "takes 30 tokens of a passage at once",
        ),
        ("rag_eval.py --k 0 --retrieval_only", "nothing to measure"),
        ("rag_eval.py --k_shots 2 --retrieval_only", "--k_shots shows"),
        ("quantize_and_parallel.py --model LLAMA --dataset DATA --fp16", "fp16 needs a CUDA GPU"),
        ("quantize_and_parallel.py --model LLAMA --dataset DATA --int8 --nf4", "not allowed with"),
        (
            "quantize_and_parallel.py --model LLAMA --dataset DATA --int8 --compute_dtype bf16",
            "belongs to --precision nf4",
        ),
    ],
)
def test_bad_input_is_one_line_and_nothing_is_written(
    flags,
    message,
    tmp_path,
    capsys,
    tiny_bert,
    tiny_llama,
    tiny_t5,
    tiny_embedder,
    tiny_classifier,
    sentiment,
    questions,
):
    import importlib

    import torch

    if torch.cuda.is_available() and "CUDA" in message:
        pytest.skip("a GPU is here")
    (tmp_path / "broken.csv").write_text("a,b\n1,2\n")
    (tmp_path / "empty.jsonl").write_text("")
    (tmp_path / "picture.png").write_bytes(b"PNG")
    (tmp_path / "one.csv").write_text("text,label\nx,a\ny,a\n")
    names = {
        "BERT": tiny_bert,
        "LLAMA": tiny_llama,
        "T5": tiny_t5,
        "EMBEDDER": tiny_embedder,
        "DATA": sentiment,
        "QUESTIONS": questions,
    }
    names.update(
        BROKEN=f"{tmp_path}/broken.csv",
        EMPTY=f"{tmp_path}/empty.jsonl",
        ONE_LABEL=f"{tmp_path}/one.csv",
        FILE=f"{tmp_path}/one.csv",
        PICTURE=f"{tmp_path}/picture.png",
        NEW=f"{tmp_path}/new",
        CLASSIFIER=tiny_classifier,
    )
    script, *argv = [names.get(word, word.replace("DATA/", sentiment + "/")) for word in flags.split()]
    given = [] if "--results" in argv else ["--results", str(tmp_path / "results.csv")]
    with pytest.raises(SystemExit) as exit_:
        importlib.import_module(script.removesuffix(".py")).main([*argv, *given, "--runs_dir", str(tmp_path / "runs")])
    said = capsys.readouterr().err.strip()
    assert exit_.value.code == 2 and message in said and len(said.splitlines()) == 1, said
    assert not (tmp_path / "results.csv").exists() and not any((tmp_path / "runs").glob("*/*"))
    assert (tmp_path / "broken.csv").read_text() == "a,b\n1,2\n"


@pytest.mark.parametrize(
    "script, flags, message",
    [
        (peft_finetune, "--model LLAMA --dataset QUESTIONS --rank 0", "must be a whole number of at least 1"),
        (
            peft_finetune,
            "--model LLAMA --dataset QUESTIONS --target_modules q_proj,nothing",
            "--target_modules nothing: no such linear layer",
        ),
        (
            peft_finetune,
            "--model LLAMA --dataset QUESTIONS --max_train_samples 5000",
            "5000 training examples or demonstrations are asked",
        ),
        (peft_finetune, "--model LLAMA --dataset EMPTY", "no example with a label or answer"),
        (peft_finetune, "--model BERT --dataset SENTIMENT --method prompt_tuning", "not for a head"),
        (
            peft_finetune,
            "--model LLAMA --dataset QUESTIONS --method adalora --max_steps 4 --tinit 2 --tfinal 2",
            "none of the 4 steps",
        ),
        (peft_finetune, "--model LLAMA --dataset QUESTIONS --method adalora --init_r 2", "ranks only shrink"),
        (
            peft_finetune,
            "--model LLAMA --dataset QUESTIONS --method ia3 --target_modules all-linear",
            "name the layers",
        ),
        (finetune, "--model T5 --dataset QUESTIONS --padding_free", "--padding_free is for causal models"),
        (finetune, "--model LLAMA --dataset QUESTIONS --optim paged_adamw_8bit", "needs a CUDA GPU"),
        (finetune, "--model LLAMA --dataset QUESTIONS --eval_ood SENTIMENT", "for classification data"),
        (finetune, "--model BERT --dataset SENTIMENT --eval_ood NLI", "its examples have 2 texts"),
        (finetune, "--model BERT --dataset SENTIMENT --repeats 2 --resume", "leave out --repeats"),
        (prompt_eval, "--model LLAMA --dataset QUESTIONS --scoring likelihood", "have no options to choose from"),
        (context_distill, "--model T5 --dataset QUESTIONS --k_shots 2", "for causal models"),
        (context_distill, "--model LLAMA --dataset QUESTIONS --k_shots 2 --calibrate batch", "for classification data"),
        (context_distill, "--model LLAMA --dataset QUESTIONS --k_shots 2 --unlabelled 3", "needs at least twelve"),
    ],
)
def test_one_line_each(script, flags, message, request, tmp_path, out, capsys, nli):
    write_jsonl(tmp_path / "empty.jsonl", [{"instruction": "say", "response": ""}] * 3)
    names = {"EMPTY": str(tmp_path / "empty.jsonl"), "NLI": str(nli / "hans")}
    for word, fixture in (
        ("LLAMA", "tiny_llama"),
        ("BERT", "tiny_bert"),
        ("T5", "tiny_t5"),
        ("QUESTIONS", "questions"),
        ("SENTIMENT", "sentiment"),
    ):
        names[word] = request.getfixturevalue(fixture)
    with pytest.raises(SystemExit) as exit_:
        script.main([*[names.get(word, word) for word in flags.split()], *out])
    said = capsys.readouterr().err.strip().splitlines()
    assert exit_.value.code == 2 and message in said[-1] and len(said) == 1, said
    assert not (tmp_path / "results.csv").exists() and not (tmp_path / "runs").exists()
