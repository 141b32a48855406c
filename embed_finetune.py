"""Train the retrieval itself: an embedder (bi-encoder), or a reranker (cross-encoder), on questions and their passages.

Each training question has its own passage, and hard negatives: what BM25 ranks high and is not the answer. Retrieval is
measured before and after, on the evaluation questions and, with --eval_ood, on other data: training can hurt both. The
model is saved for rag_eval.py (--embed_model, --reranker).

    --train     from                  loss                                             default epochs, rate, negatives
    embedder    an embedder           MultipleNegativesRankingLoss (Henderson 2017)                      3  2e-5     1
    reranker    any encoder, and its  binary cross-entropy (Nogueira and Cho 2019)                       3  2e-5     4
                head may be new

Data are questions with passages, or a BEIR folder with qrels/train.tsv. For pairs without answers name the passage
twice: --context_column passage --answer_column passage. The settings were not searched.

    # on a CPU, offline (after `python prepare_data.py demo`): minutes
    python embed_finetune.py --chunk_tokens 64 --eval_ood assets/data/boolq
    python embed_finetune.py --train reranker --chunk_tokens 64 --rerank_depth 20
    python rag_eval.py --chunk_tokens 64 --embed_model runs/RUN_ID/model
    # on a GPU, from the hub
    python embed_finetune.py --model BAAI/bge-base-en-v1.5 --dataset BEIR_DIR --batch_size 64 --bf16
    python embed_finetune.py --train reranker --model microsoft/MiniLM-L12-H384-uncased --dataset BEIR_DIR --bf16
"""

from dataclasses import asdict, replace
from types import SimpleNamespace

import utils
from harness import flags, hub
from harness.results.run import Run
from harness.retrieval import files

NEGATIVES = {"embedder": 1, "reranker": 4}  # --hard_negatives by default
RERANK_DEPTH = 50  # the default of rag_eval.py
UNUSED = ("instruction", "template", "label_words", "label_descriptions", "max_validation_samples", "thinking")
# flags that say something about --dataset and nothing about --eval_ood
OF_DATASET = ("subset", "train_file", "validation_file", "test_file", "columns", "label_budget", "max_train_samples")
OF_DATASET += tuple(f"{role}_column" for role in ("text", "text_pair", "label", "question", "context"))
OF_DATASET += ("options_column", "answer_column", "cluster_column")
OF_DATASET = dict.fromkeys(OF_DATASET)


def parse_args(argv=None):
    parser = flags.ArgumentParser(__doc__)
    add = parser.add_argument
    add("--train", choices=tuple(NEGATIVES), default="embedder", help="(default: %(default)s)")
    add("--model", default="assets/models/all-MiniLM-L6-v2", help="where it begins (default: %(default)s)")
    add = parser.add_argument_group("training").add_argument
    add("--negatives", choices=("bm25", "dense", "hybrid"), default="bm25", help="who finds them (default: bm25)")
    add("--hard_negatives", type=flags.small_count, metavar="N", help="of each question (default: see above)")
    add("--epochs", type=flags.positive_int, default=3, help="(default: %(default)s)")
    add("--learning_rate", type=flags.positive, default=2e-5, help="peak learning rate (default: %(default)s)")
    add("--warmup", type=flags.fraction, default=0.1, help="share of the steps that warm up (default: %(default)s)")
    add("--max_length", type=flags.token_count, help="in training, tokens of a text (default: as the model takes)")
    add("--bf16", action="store_true", help="mixed precision with bfloat16")
    add = parser.add_argument_group("retrieval; the flags are those of rag_eval.py").add_argument
    add("--embed_model", metavar="MODEL", help="reranker: ranks first (default: that of rag_eval.py)")
    add("--retriever", choices=("dense", "bm25", "hybrid"), default="dense", help="measured (default: dense)")
    add("--rerank_depth", type=flags.positive_int, metavar="N", help="reranker: results it orders (default: 50)")
    add("--k", type=flags.positive_int, default=4, help="chunks of a prompt, for recall@k (default: %(default)s)")
    add("--query_prompt", metavar="TEXT", help="of an embedder, saved with it: 'query: ' (default: the model's own)")
    add("--passage_prompt", metavar="TEXT", help="the same, before each passage")
    add("--chunk_tokens", type=flags.positive_int, metavar="N", help="most tokens of a chunk (default: as rag_eval.py)")
    flags.add_study_args(parser, "measure the retrieval of other data, before and after: questions or a BEIR folder")
    flags.add_data_args(parser, dataset="assets/data/disfl_qa")
    flags.add_common_args(parser)
    args = flags.check_data_args(parser, parser.parse_args(argv))
    if args.train == "embedder" and (args.embed_model or args.retriever == "bm25"):
        parser.error("--train embedder measures --model by its vectors; leave out --embed_model and --retriever bm25")
    if args.train == "embedder" and args.rerank_depth:
        parser.error("--rerank_depth belongs to --train reranker")
    if args.train == "reranker" and args.k > (args.rerank_depth or RERANK_DEPTH):
        parser.error(f"--k {args.k} is above --rerank_depth {args.rerank_depth or RERANK_DEPTH}")
    if args.train == "reranker" and (args.query_prompt is not None or args.passage_prompt is not None):
        parser.error("--query_prompt and --passage_prompt belong to --train embedder")
    for name in UNUSED:
        if getattr(args, name) is not None:
            parser.error(f"--{name} does nothing here; leave it out")
    if args.repeats > 1 and not (args.label_budget or args.max_train_samples):
        parser.error("--repeats draws labels anew: give --label_budget or --max_train_samples")
    args.hard_negatives = args.hard_negatives or NEGATIVES[args.train]
    return args


# ------------------------------------------------------------------------------------------------------- the technique


def load(args, device):
    """(the model to train, the embedder's prompts or None)."""
    if args.train == "reranker":
        if has_head(args) and folder.configuration(args.model, args.trust_remote_code).num_labels != 1:
            raise utils.UserError(f"--model {args.model} has several outputs; a reranker has one")
        return sentence_transformer.load(CrossEncoder, args.model, "--model", device, args, new_head=True), None
    embedder = Embedder(corpus.settings(args, embed_model=args.model), device)
    for name, of_questions in (("query", True), ("document", False)):  # saved with the model
        embedder.model.prompts[name] = embedder.prompts[of_questions]
    return embedder.model, embedder.prompts


def has_head(args):
    """True if --model is a cross-encoder already."""
    return folder.kind_of(folder.configuration(args.model, args.trust_remote_code)) == "classifier"


def train(args, model, triples, prompts):
    """Train the model in place, on texts of at most --max_length tokens; returns the mean loss."""
    longest = model.max_seq_length
    sentence_transformer.limit_tokens(model, f"--model {args.model}", args.max_length)
    if args.train == "reranker":
        loss = retrieval.train_reranker(model, triples, args)
    else:
        loss = retrieval.train_embedder(model, triples, args, prompts)
    model.max_seq_length = longest  # it is served, and was measured before, with its own
    return loss


def training_triples(args, data, device):
    """([N] labelled Examples, [P] Triples with hard negatives of them); UserError where there is none to train on."""
    miner = Retriever(corpus.settings(data.settings, retriever=args.negatives, reranker=None), device)
    corpus.fill(miner, data.documents, miner.args, Skipped(), whole=data.beir)
    known = miner.index.documents
    if data.beir:
        wanted = args.label_budget or args.max_train_samples
        place = files.data_folder(args)
        examples, judgements = pairs.beir_examples(place, wanted, args.data_seed, data.task.evaluation)
        relevant, own = [judgements[ex.id] for ex in examples], qrels.own_documents(examples, judgements, known)
    else:
        examples = [*data.task.train, *data.task.validation]  # nothing is chosen on validation examples
        relevant = qrels.relevant_documents(replace(data.task, evaluation=examples), data.documents, known)
        own = [None] * len(examples)
    triples = []
    if len(miner.index):
        triples = pairs.mine(examples, relevant, own, miner, args.hard_negatives, args.seed)
    if not triples:
        raise utils.UserError(
            f"{data.task.name}: no training question has a passage (a column passage or context) among the documents, "
            f"and {args.hard_negatives} others beside it"
        )
    return examples, triples


def forecast(run, args, model, triples, device):
    """predicted_gb: of an embedder's batch all texts are held until the gradients, of a reranker's all pairs."""
    texts = max(([t.question, *t.negatives, t.positive] for t in triples), key=lambda some: sum(map(len, some)))
    lengths = [len(model.tokenizer(text, verbose=False).input_ids) for text in texts]
    if args.train == "reranker":
        rows, longest = args.batch_size, lengths[0] + max(lengths[1:])
    else:
        rows, longest = args.batch_size * len(texts), max(lengths)
    limits = [n for n in (longest, model.max_seq_length, args.max_length) if n]
    shape = meta_device.Shape(rows, min(limits))
    options = {"mixed": args.bf16, "device": device}
    config = model.transformers_model.config
    memory_forecast.record(run, memory_forecast.training, config, "classifier", shape, **options)


def read(args, dataset):
    """The evaluation questions of a data set and their documents: settings, task, documents, judgements, beir."""
    settings = corpus.settings(args, dataset=dataset, kind="qa")
    if args.train == "embedder":
        settings.embed_model = args.model
    beir = files.is_beir(files.data_folder(settings))
    settings.whole_documents = beir and not args.chunk_tokens
    task, documents, judgements = corpus.read_data(settings, Skipped())
    return SimpleNamespace(settings=settings, task=task, documents=documents, judgements=judgements, beir=beir)


def measured(data, device, latency_runs, **models):
    """(Retriever, RagOutcome) of the evaluation questions, with other models than the settings'."""
    settings = corpus.settings(data.settings, latency_runs=latency_runs, **models)
    retriever = Retriever(settings, device)
    corpus.fill(retriever, data.documents, settings, Skipped(), whole=data.beir)
    relevant, own = measure.judged(data.task, data.documents, data.judgements, retriever.index.documents)
    return retriever, measure.questions(settings, "retrieved", data.task, retriever, None, relevant, own)


def compare(run, data, before, after):
    """Note and return what training changed: nDCG@10 of the same questions before and after, with a paired interval."""
    known = [i for i, scores in enumerate(before.scores) if scores]
    values = [[outcome.scores[i]["ndcg_at_10"] for i in known] for outcome in (before, after)]
    change = stats.paired(*values, [data.task.evaluation[i].cluster for i in known])
    first, second = (float(np.mean(some)) for some in values)
    interval = "" if change.low is None else f" [{change.low:+.3f}, {change.high:+.3f}]"
    run.note(f"nDCG@10 on {data.task.name}: {first:.3f} before, {second:.3f} after, {change.delta:+.3f}{interval}")
    return {"data": data.task.name, "before": first, "after": second, **asdict(change)}


# ---------------------------------------------------------------------------------------------------------------- run


def run_once(args):
    # 1. settings
    run = Run(args, __file__, "rag")
    with run:
        # 2. seed and device
        utils.set_seed(args.seed)
        device = utils.pick_device(args.device)
        run.row.update(
            variant=f"{args.train}_{args.negatives}_{args.hard_negatives}",
            model=args.model,
            data_seed=args.data_seed,
            **utils.device_columns(device),
            precision="fp32",
        )

        # 3. data
        data = [read(args, args.dataset)]
        if args.eval_ood:
            data.append(read(SimpleNamespace(**{**vars(args), **OF_DATASET}), args.eval_ood))
        run.row.update(data[0].task.row())

        # 4. model, and what is found before
        with utils.measure() as loaded:
            model, prompts = load(args, device)
        run.row.update(**loaded.load_columns(), **properties.size_columns(model.transformers_model, trained=True))
        begin = {"reranker": args.model} if args.train == "reranker" and has_head(args) else {}
        if args.train == "reranker" and not begin:
            run.note("before: without a reranker")
        befores = [measured(part, device, 0, **begin)[1] for part in data]
        for part, before in zip(data, befores):
            if not before.known:
                raise utils.UserError(f"{part.task.name}: no evaluation question has a passage among the documents")

        # 5. adapt
        with utils.measure() as mining:
            examples, triples = training_triples(args, data[0], device)
        print(f"{len(triples)} questions with their passage and {args.hard_negatives} others to train on")
        run.row["n_train"] = len(examples)
        run.use_labels(examples)
        forecast(run, args, model, triples, device)
        utils.set_seed(args.seed)
        with utils.measure() as training:
            loss = train(args, model, triples, prompts)
        run.row.update(train_seconds=mining.seconds + training.seconds, **training.memory_columns())
        model.save_pretrained(str(run.path("model")), create_model_card=False)
        run.row["artifact_mb"] = utils.folder_mb(run.path("model"))
        run.note(f"{len(triples)} pairs, mean loss {loss:.3f}")

        # 6. evaluate: the saved model, as rag_eval.py serves it
        trained = {"reranker" if args.train == "reranker" else "embed_model": str(run.path("model"))}
        retriever, after = measured(data[0], device, args.latency_runs, **trained)
        changes = [compare(run, data[0], befores[0], after)]
        if args.eval_ood:
            changes.append(compare(run, data[1], befores[1], measured(data[1], device, 0, **trained)[1]))
            run.row["score_ood"] = changes[1]["after"]
        run.write_json("comparison.json", changes)
        if told := retriever.told_cut():
            run.note(told)

        # 7. row and report: the row is written by leaving the block
        record.ranking(run, retriever.args, data[0].task, retriever, after)
        record.retrieval(run, data[0].task, after)
        record.stages(run, after.requests, generates=False)
        run.row.update(after.memory)
        run.headline = f"nDCG@10 {changes[0]['before']:.3f} before, trained in {run.row['train_seconds']:.0f} s"


def import_heavy():
    """Import what takes seconds, once the arguments are known to be right: --help and a wrong flag answer at once."""
    global CrossEncoder, Embedder, Retriever, Skipped, corpus, folder, measure, memory_forecast, meta_device, np
    global pairs, properties, qrels, record, retrieval, sentence_transformer, stats
    import numpy as np
    from sentence_transformers import CrossEncoder

    from harness.models import folder, memory_forecast, meta_device, properties, sentence_transformer
    from harness.results import stats
    from harness.retrieval import corpus, measure, pairs, qrels, record
    from harness.retrieval.documents import Skipped
    from harness.retrieval.embedder import Embedder
    from harness.retrieval.retriever import Retriever
    from harness.training import retrieval


@utils.clean_exit
def main(argv=None):
    args = parse_args(argv)
    models = {"--model": args.model, "--embed_model": args.embed_model}
    hub.check_names(models, {"--dataset": flags.source(args), "--eval_ood": args.eval_ood})
    import_heavy()
    for once in flags.repeats(args):
        run_once(once)


if __name__ == "__main__":
    main()
