"""A probe: frozen features of the texts and a small head on them, logistic regression or k nearest neighbours.

Nothing of the model is trained, so a probe takes seconds and is the yardstick of everything that takes longer. What
regulates the head (C; of kNN the number of neighbours, metric and weights) is chosen by stratified cross-validation on
the training labels; the validation split is not looked at. --head names takes no label at all: the nearest of the
labels' names or descriptions. --tune contrastive is SetFit (Tunstall et al. 2022): the embedder is first trained on
pairs of the labelled texts, by the setfit package with its authors' settings.

    --features   what a text becomes
    embedder     the unit vector of a sentence-transformers model (Reimers and Gurevych 2019)
    lm           a causal language model's last hidden state at the end of prompt_eval.py's zero-shot prompt
    tfidf        TF-IDF of words and pairs of words and of 2 to 5 characters: the floor, without any model

Pairs of texts become (u, v, |u - v|, u * v) of their two vectors (Conneau et al. 2017), of TF-IDF too; to a language
model a pair is one prompt. Dense features are standardized. The probe is saved as safetensors and JSON.

    # on a CPU, offline (after `python prepare_data.py demo`): seconds
    python probe.py --max_train_samples 500
    python probe.py --features lm --max_train_samples 100 --max_eval_samples 400
    python probe.py --features tfidf --head knn --repeats 3 --max_train_samples 500
    python probe.py --head names --label_words "a bad film,a good film"
    python probe.py --tune contrastive --max_train_samples 16 --max_eval_samples 400
    # score a saved probe again, without training
    python probe.py --probe runs/RUN_ID
    # on a GPU, from the hub
    python probe.py --model BAAI/bge-base-en-v1.5 --dataset glue --subset mnli
    python probe.py --features lm --model meta-llama/Llama-2-7b-hf --precision bf16 --dataset glue --subset sst2
"""

import argparse
from dataclasses import replace
from pathlib import Path

import utils
from harness import flags, hub
from harness.results.run import Run

OWN = ("features", "head", "max_length", "precision", "tune")  # flags that a saved probe answers for itself
ENCODER = "encoder"  # where a tuned encoder is saved, beside probe.json
NAMED = "This is {}."  # what --head names embeds of a label's word
MODELS = {"embedder": "assets/models/all-MiniLM-L6-v2", "lm": "assets/models/SmolLM2-135M-Instruct", "tfidf": None}


def parse_args(argv=None):
    parser = flags.ArgumentParser(__doc__)
    group = parser.add_argument_group("probe")
    group.add_argument("--features", choices=MODELS, default="embedder", help="see above (default: %(default)s)")
    group.add_argument(
        "--head",
        choices=("logreg", "knn", "names"),
        default="logreg",
        help="on the features; names: zero-shot, by the embeddings of the labels (default: %(default)s)",
    )
    group.add_argument(
        "--tune", choices=("contrastive",), help="train the embedder on pairs of the labelled texts first (SetFit)"
    )
    group.add_argument(
        "--max_steps", type=flags.step_count, help="of --tune: most optimizer steps (default: 2.5 a label)"
    )
    group.add_argument(
        "--model", help="hub name or folder (default: the demo's MiniLM for embedder, its SmolLM2 for lm)"
    )
    group.add_argument(
        "--probe", type=flags.user_path, metavar="DIR", help="score the probe of a run's folder, and train none"
    )
    group.add_argument(
        "--max_length",
        type=flags.token_count,
        help="tokens a text is cut to (default: 512, or what the model takes; of a prompt: what the model takes)",
    )
    flags.add_precision_args(group, "of a language model's weights")
    group.add_argument(
        "--prompt_format",
        choices=("plain", "chat", "auto"),
        default="auto",
        help="of --features lm; chat: the tokenizer's chat template; auto: plain, as where labels are scored "
        "(default: %(default)s)",
    )
    flags.add_study_args(parser)
    flags.add_data_args(parser)
    flags.add_common_args(parser, auto_batch=True)
    args = flags.check_data_args(parser, parser.parse_args(argv))
    given = [name for name in (*OWN, "prompt_format") if getattr(args, name) != parser.get_default(name)]
    if args.probe and given:
        parser.error(f"--probe brings its own {given[0]}; leave --{given[0]} out")
    narrow = args.precision not in ("auto", "fp32")  # which an embedder has
    of_lm = {"precision": narrow, "prompt_format": "prompt_format" in given}
    of_lm["attn_implementation"] = args.attn_implementation
    if args.features != "lm" and any(of_lm.values()):
        parser.error(f"--{next(name for name, wrong in of_lm.items() if wrong)} belongs to --features lm")
    if args.features == "tfidf" and (args.model or args.max_length):
        parser.error("--features tfidf has no model and reads whole texts; leave out --model and --max_length")
    if args.head == "names" and (args.features != "embedder" or args.tune):
        parser.error("--head names compares embeddings and learns nothing; leave out --features and --tune")
    if args.tune and (args.features != "embedder" or args.head != "logreg"):
        parser.error("--tune contrastive is for --features embedder and --head logreg")
    if args.max_steps and not args.tune:
        parser.error("--max_steps belongs to --tune contrastive; nothing else here is trained in steps")
    if args.head == "names" and args.label_words is None:
        args.label_words = ["auto"]
    if not args.probe:
        args.model = args.model or MODELS[args.features]
    return args


# -------------------------------------------------------------------------------------------------------- the technique


def texts_of(examples, task, tokenizer, chat):
    """The texts [N] that stand for N examples, in one list, or in two for pairs; a prompt each with a tokenizer."""
    if tokenizer:
        return [[render(task, ex, (), tokenizer if chat else None)[0] for ex in examples]]
    return tfidf.texts_of(examples)


def train(extract, texts, labels, args):
    """The Head on the features of the training texts, and of TF-IDF its vocabulary."""
    if args.features == "tfidf":
        extract.fit([text for part in texts for text in part])
    if args.tune:
        if len(set(labels)) < 2:
            raise utils.UserError(f"--tune contrastive compares classes; the {len(labels)} labels are all of one")
        contrastive.tune(extract.encoder, texts[0], labels, args.seed, max_steps=args.max_steps)
    vectors = tfidf.vectors_of(extract, texts, progress="features")
    return frozen_heads.fit(vectors, labels, args.head, args.seed, tuned=bool(args.tune))


def from_names(extract, task):
    """The Head of --head names: of each label its description, or its word in a sentence."""
    return frozen_heads.from_names(extract(task.descriptions or [NAMED.format(word) for word in task.words]))


def load_extractor(args, device, tokenizer, chat, state=None):
    """The frozen features of the flags. state: of a saved TF-IDF."""
    if args.features == "tfidf":
        return tfidf.TfIdf(state)
    return features.LastStates(args, device, tokenizer, chat) if tokenizer else features.Embeddings(args, device)


def size_columns(extract):
    """The size cells of a row, and the precision where the checkpoint is saved quantized; none for TF-IDF."""
    cells = {} if extract.model is None else properties.size_columns(extract.model)
    return {**cells, "precision": extract.precision}


def saved_probe(args):
    """(the arguments with what the probe of --probe brings along, the contents of its probe.json, its folder).

    UserError where there is none.
    """
    places = [Path(args.probe) / "probe", Path(args.probe)]
    folder = next((place for place in places if (place / "probe.json").is_file()), None)
    if folder is None:
        raise utils.UserError(f"--probe {args.probe}: it has no probe.json; give the folder of a run of probe.py")
    about = {"tune": None, **utils.read_json(folder / "probe.json", dict, "--probe")}  # older ones have no tune
    missing = [name for name in (*OWN, "model", "labels", "n_texts", "prompt") if name not in about]
    if missing:
        raise utils.UserError(f"--probe {folder / 'probe.json'} says nothing of {', '.join(missing)}")
    if about["tune"] and args.model:
        raise utils.UserError(f"--probe {folder} has an encoder of its own; leave out --model")
    if args.model and Path(args.model).name != Path(about["model"] or "").name:
        on = about["model"] or "TF-IDF, without a model"
        raise utils.UserError(f"--probe {folder} was trained on {on}; --model {args.model} is another; leave it out")
    own = str(folder / ENCODER) if about["tune"] else about["model"]
    known = {**{name: about[name] for name in OWN}, "model": args.model or own}
    return argparse.Namespace(**{**vars(args), **known}), about, folder


def load_probe(about, folder, task, n_texts):
    """(the Head of a saved probe with the labels in the task's order, its TF-IDF's state, the task with its prompt)."""
    if sorted(about["labels"]) != sorted(task.labels):
        raise utils.UserError(
            f"--probe {folder} was trained for the labels {', '.join(about['labels'])}; {task.name} has "
            f"{', '.join(task.labels)}"
        )
    if about["n_texts"] != n_texts:
        raise utils.UserError(
            f"--probe {folder} was trained on examples of {about['n_texts']} texts; {task.name}'s have {n_texts}"
        )
    head, state = frozen_heads.load(folder, about)
    head.classes = [task.labels.index(about["labels"][i]) for i in head.classes]
    prompt = {name: about["prompt"][name] for name in ("instruction", "template")}
    return head, state, replace(task, **prompt)


def variant(args):
    """What the row calls this run: embedder_logreg, lm_knn, ...; checkpoint where it was trained by another."""
    return "checkpoint" if args.probe else "_".join(filter(None, (args.features, args.head, args.tune)))


def count_cuts(run, extract, texts):
    """Note how many texts are cut. Returns (tokens of the longest, of all as they are read); (0, None) for TF-IDF."""
    if extract.model is None:
        return 0, None
    lengths = [n for part in texts for n in extract.lengths(part)]
    for text in remarks.cuts(lengths, extract.limit):
        run.note(text)
    return max(lengths), sum(min(n, extract.limit or n) for n in lengths)


def save_probe(run, args, task, n_texts, chat, head, extract):
    """The head, and what `--probe` needs besides, in the run folder: safetensors and JSON, no pickle."""
    if not run.main:
        return
    about = {
        **{name: getattr(args, name) for name in (*OWN, "model")},
        "labels": list(task.labels),
        "labels_used": run.row["labels_used"],
        "n_texts": n_texts,
        "prompt": {"instruction": task.instruction, "template": task.template, "chat": chat},
    }
    frozen_heads.save(run.path("probe"), head, about, extract.state() if args.features == "tfidf" else None)
    if args.tune:
        extract.encoder.save(str(run.path("probe") / ENCODER), create_model_card=False)
    run.row["artifact_mb"] = utils.folder_mb(run.path("probe"))


def run_once(args, about=None, folder=None):
    # 1. settings
    run = Run(args, __file__, "probe")

    with run:
        # 2. seed and device
        utils.set_seed(args.seed)
        device = utils.pick_device(args.device)
        args = precisions.settled(args, args.model if args.features == "lm" else None, device)
        run.row.update(
            variant=variant(args),
            model=args.model,
            data_seed=args.data_seed,
            **utils.device_columns(device),
            precision=args.precision if args.model else None,
        )

        # 3. data
        task = tasks.from_args(args)
        tasks.require_kind(task, "classification", "a probe")
        print(task.summary())
        other = tasks.out_of_domain(args, task)
        n_texts = 1 + (task.evaluation[0].text_pair is not None)
        if n_texts == 2 and (args.tune or args.head == "names"):
            raise utils.UserError("--tune contrastive and --head names are for examples of one text, not for pairs")
        run.row.update(task.row())

        # 4. model
        head, state = None, None
        if about:
            head, state, task = load_probe(about, folder, task, n_texts)
            run.row["labels_used"] = about.get("labels_used")
        tokenizer, chat = None, False
        if args.features == "lm":
            tokenizer = loading.load_tokenizer(args.model, args.trust_remote_code, args.thinking)
            wanted = args.prompt_format if not about else "chat" if about["prompt"]["chat"] else "plain"
            chat = loading.uses_chat(wanted, tokenizer, scoring=True)
        with utils.measure() as load:
            extract = load_extractor(args, device, tokenizer, chat, state)
        run.row.update(**load.load_columns(), **size_columns(extract))

        def texts(examples):
            return texts_of(examples, task, tokenizer, chat)

        longest, tokens = count_cuts(run, extract, texts(task.evaluation))
        features.forecast(run, extract, longest, tuned=bool(args.tune and not about))

        # 5. adapt
        if head is None:
            labelled = task.train if args.head != "names" else []
            run.use_labels(labelled)
            with utils.measure() as training:
                if labelled:
                    head = train(extract, texts(labelled), [ex.label for ex in labelled], args)
                else:
                    head = from_names(extract, task)
            run.row.update(train_seconds=training.seconds, **training.memory_columns(), n_train=len(labelled))
            save_probe(run, args, task, n_texts, chat, head, extract)
        tuned = run.row.get("total_params") or 0 if args.tune else 0
        run.row["trainable_params"] = 0 if about else head.n_params + tuned
        for text in head.notes:
            run.note(text)
        if len(head.classes) < len(task.labels):
            lacking = len(task.labels) - len(head.classes)
            run.note(f"{lacking} of {len(task.labels)} labels have no training example and are never predicted")

        # 6. evaluate
        def classify(examples, size, progress=None):
            vectors = tfidf.vectors_of(extract, texts(examples), size, progress)
            return head.log_probs(vectors, len(task.labels))

        outcome = evaluate.by_probabilities(classify, task, extract.batch_size, args.latency_runs, other, device=device)
        if tokenizer:
            outcome.cells.update(prompt_tokens=tokens, generated_tokens=0, batch_size=extract.largest)

        # 7. row and report: the row is written by leaving the block
        record.outcome(run, task, outcome, other=other)
        if not about:
            run.headline = f"trained in {run.row['train_seconds']:.1f} s"


def import_heavy(tune):
    """Import what takes seconds, once the arguments are known to be right: --help and a wrong flag answer at once.

    tune: --tune, which needs the setfit package.
    """
    global contrastive, evaluate, features, frozen_heads, loading, precisions, properties, record, remarks, render
    global tasks, tfidf
    from harness.data import tasks
    from harness.data.prompts import render
    from harness.evaluation import evaluate, record, remarks
    from harness.models import features, frozen_heads, loading, precisions, properties, tfidf

    if tune:
        from harness.training import contrastive


@utils.clean_exit
def main(argv=None):
    args, saved = parse_args(argv), ()
    if args.probe:
        args, *saved = saved_probe(args)
    hub.check_names({"--model": args.model}, {"--dataset": flags.source(args), "--eval_ood": args.eval_ood})
    import_heavy(args.tune)
    for once in flags.repeats(args):
        run_once(once, *saved)


if __name__ == "__main__":
    main()
