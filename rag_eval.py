"""Retrieval-augmented generation: documents -> chunks -> embeddings -> FAISS index -> retrieve -> prompt -> answer.

Measures the retrieval (recall@k, nDCG@10, ...) and the answers (token F1, ...) on the same questions, with the time of
each stage. --baselines also answers without retrieval, with random passages, with the gold passage and with as many
ranked passages as fit: one row each. --k_shots shows labelled questions first. A BEIR folder (corpus.jsonl,
queries.jsonl, qrels/) as --dataset measures retrieval alone, of whole documents unless --chunk_tokens is given.

    # on a CPU, offline (after `python prepare_data.py demo`): about two minutes; with --baselines five rows
    python rag_eval.py --k 4 --chunk_tokens 64 --chunk_overlap 16 --max_eval_samples 60
    # how good is the retrieval: dense, BM25 or both fused?
    python rag_eval.py --retrieval_only --retriever dense --chunk_tokens 64
    # on a GPU, from the hub
    python rag_eval.py --embed_model all-MiniLM-L6-v2 --gen_model google/flan-t5-base --k 4
    # your own documents: text, Markdown, HTML, PDF, tables; indexed once, asked often
    python rag_eval.py --build_only --docs notes/ 'reports/*.pdf' --index_dir notes_index
    python rag_eval.py --interactive --index_dir notes_index
"""

from types import SimpleNamespace

import utils
from harness import engine_flags, flags, hub
from harness.results import outputs
from harness.results.run import Run
from harness.retrieval import files, index_flags

MODES = ("none", "gold", "random", "all", "retrieved")  # the rows of --baselines; those without an embedder come first
VARIANTS = {"none": "no_retrieval", "gold": "gold_passage", "random": "random_passages", "all": "all_that_fits"}
SEARCHING = ("random", "all", "retrieved")  # the modes that need the index


def parse_args(argv=None):
    parser = flags.ArgumentParser(__doc__)
    count, count_or_0 = ({"type": kind, "metavar": "N"} for kind in (flags.positive_int, flags.whole_number))

    add = parser.add_argument
    add("--embed_model", default="assets/models/all-MiniLM-L6-v2", help="name or folder (default: %(default)s)")
    add("--gen_model", default="assets/models/SmolLM2-135M-Instruct", help="name or folder (default: %(default)s)")
    add("--adapter", metavar="DIR", help="a peft adapter to put on the generator, merged where that is exact")
    flags.add_precision_args(parser, "of the generator")
    engine_flags.add_engine_args(parser, "the generator")
    add("--interactive", action="store_true", help="ask questions and add documents at a prompt; writes no row")
    add("--build_only", action="store_true", help="add --docs to the index, or --delete from it; writes no row")

    add = parser.add_argument_group("documents").add_argument
    add(
        "--docs",
        metavar="PATH",
        nargs="+",
        help=f"files, folders, globs or a BEIR folder; types: {' '.join(files.SUFFIXES)} "
        "(default: the data set's corpus.jsonl, else its passages)",
    )
    add(
        "--max_file_mb",
        type=flags.positive,
        metavar="MB",
        default=files.MAX_FILE_MB,
        help="skip larger files, not tables",
    )
    add("--chunk_tokens", **count, help="most tokens of a chunk (default: as many as the embedder takes, at most 512)")
    add(
        "--chunk_overlap",
        **count_or_0,
        help="most tokens that neighbours share (default: 32, or a quarter of smaller chunks)",
    )
    add("--whole_documents", action="store_true", help="one chunk per document, cut to what the embedder takes")

    index_flags.add_index_args(parser)

    add = parser.add_argument_group("retrieval").add_argument
    add("--k", **count_or_0, default=4, help="chunks in the prompt, 0: no retrieval (default: %(default)s)")
    add(
        "--retriever",
        choices=("dense", "bm25", "hybrid"),
        default="hybrid",
        help="hybrid fuses both rankings (default: %(default)s)",
    )
    add(
        "--language", choices=flags.BM25_LANGUAGES, default="none", help="BM25's stop words and stemmer (default: none)"
    )
    add("--query_prompt", metavar="TEXT", help="prefix of each question for the embedder (default: the model's own)")
    add("--passage_prompt", metavar="TEXT", help="prefix of each passage (default: the model's own)")
    add("--reranker", metavar="MODEL", help="sentence-transformers cross-encoder that reorders the first results")
    add("--rerank_depth", **count, default=50, help="how many results it reorders (default: %(default)s)")
    add("--mmr", type=flags.share, metavar="LAMBDA", help="MMR lambda: 1 = relevance only, lower = more diverse")
    add(
        "--min_score",
        type=float,
        help="drop passages with a lower score: the reranker's; without one the cosine or minus the squared distance "
        "(dense, hybrid) or BM25's. Without any passage the answer is 'not in the documents'",
    )
    add("--retrieval_only", action="store_true", help="measure the retrieval, generate nothing")
    add(
        "--baselines",
        action="store_true",
        help="five rows: no, gold and random passages, all that fit (--context_tokens), and the retrieved ones",
    )
    add("--save_run", metavar="FILE", help="write the rankings as a TREC run")

    add = parser.add_argument_group("generation").add_argument
    add("--prompt_format", choices=("plain", "chat", "auto"), default="auto", help="auto: chat if there is a template")
    add("--max_new_tokens", **count, help="of an answer (default: 32; numbers: 256)")
    add("--context_tokens", **count, help="most tokens of all passages (default: as many as the model takes)")
    add("--k_shots", **count, help="labelled questions to show before each, with their own passage and their answer")
    add("--citations", action="store_true", help="number the passages and ask for [1]; the marks are not scored")
    flags.add_data_args(parser, dataset="assets/data/disfl_qa")
    flags.add_common_args(parser, auto_batch=True)
    return check_args(parser, flags.check_data_args(parser, parser.parse_args(argv)))


def check_args(parser, args):
    """Cross-checks that need no library. Returns args."""
    measures = not (args.build_only or args.interactive)
    beir = measures and files.is_beir(files.data_folder(args))
    if beir and not args.chunk_tokens:
        args.whole_documents = True  # one vector per document, as in the published figures
    if (args.retrieval_only or beir) and (args.k == 0 or args.baselines):
        parser.error(
            "retrieval alone (--retrieval_only, or a BEIR folder) with --k 0 or --baselines leaves nothing to measure"
        )
    if beir and args.docs:
        parser.error("a BEIR folder as --dataset has its own documents; leave --docs out")
    if args.adapter and (args.retrieval_only or beir or args.build_only):
        parser.error("--adapter belongs to the generator, and nothing is generated here")
    if args.k_shots and (args.retrieval_only or beir or not measures):
        parser.error("--k_shots shows questions and answers to the generator, which answers none of the data here")
    if args.baselines and args.k == 0:
        parser.error("--baselines asks without retrieval anyway; give a --k of at least 1 for its other rows")
    if args.chunk_tokens and (args.chunk_overlap or 0) > args.chunk_tokens // 2:
        parser.error(f"--chunk_overlap {args.chunk_overlap} must be at most half of --chunk_tokens {args.chunk_tokens}")
    if args.chunk_tokens and args.whole_documents:
        parser.error("--chunk_tokens and --whole_documents exclude each other")
    index_flags.check_index_args(parser, args)
    engine_flags.check_engine_args(parser, args)
    if args.build_only and args.interactive:
        parser.error("--build_only and --interactive exclude each other")
    if not measures and (args.baselines or args.save_run or args.retrieval_only):
        parser.error("--baselines, --retrieval_only and --save_run measure; leave out --build_only and --interactive")
    if args.reranker and args.k > args.rerank_depth:
        parser.error(f"--k {args.k} is above --rerank_depth {args.rerank_depth}")
    return args


def variant(mode, args, retriever, retrieval_only):
    """The row's name for this run: k4_flat, k4_hybrid_hnsw, k4_flat_rerank, no_retrieval, random_passages, ..."""
    suffix = (f"_{args.k_shots}_shot" if args.k_shots else "") + ("_adapter" if args.adapter else "")
    if mode != "retrieved":
        return VARIANTS[mode] + suffix
    parts = ["retrieval_only" if retrieval_only else f"k{args.k}"]
    parts += [] if args.retriever == "dense" else [args.retriever]
    parts += [] if args.retriever == "bm25" else [retriever.index.kind]
    parts += [args.index_url.partition("://")[0].replace("http", "milvus")] if args.index_url else []
    parts += ["rerank"] if args.reranker else []
    parts += ["mmr"] if args.mmr is not None else []
    return "_".join(parts) + suffix


# ---------------------------------------------------------------------------------------------------------------- run


def run_once(args, mode, shared):
    """Measure one of MODES and write its row. shared: what the rows of --baselines share; the first one loads it."""
    # 1. settings
    beir = files.is_beir(files.data_folder(args))
    retrieval_only, searches = args.retrieval_only or beir, mode in SEARCHING
    run = Run(args, __file__, "rag" if mode != "none" else "peft" if args.adapter else "prompting")
    with run:
        # 2. seed and device
        utils.set_seed(args.seed)
        device = utils.pick_device(args.device)
        args = precisions.settled(args, None if retrieval_only else args.gen_model, device)
        run.row.update(
            model=args.embed_model if retrieval_only else args.gen_model,
            data_seed=args.data_seed,
            **utils.device_columns(device),
            precision=args.precision,
        )

        # 3. data
        if shared.task is None:
            shared.skipped = Skipped()
            shared.task, shared.documents, shared.judgements = corpus.read_data(args, shared.skipped)
        task = shared.task
        run.row.update(task.row())
        demos = draw(task.train, args.k_shots or 0, args.data_seed, balanced=False)
        run.use_labels(demos)  # no other answers, but those that an adapter was trained with
        if args.k_shots:
            run.row.update(k_shots=args.k_shots, n_train=args.k_shots)

        # 4. model: only what this row needs, so that its load time and memory are its own
        loaded = shared.reader is not None or shared.retriever is not None
        with utils.measure() as load:
            if shared.reader is None and not retrieval_only:
                shared.reader = Reader(args, device, task)
            if shared.retriever is None and searches:
                shared.retriever = Retriever(args, device)
        reader, retriever = shared.reader, shared.retriever
        run.row.update(load.load_columns())
        if loaded:
            run.row["start_rss_gb"] = None  # the memory without the models of earlier rows is not known
        if reader:
            run.row.update(properties.size_columns(reader.model))
            if reader.merged:
                run.note(reader.merged)

        # 5. adapt: build the index, or update the one that was opened
        relevant, own = [{} for _ in task.evaluation], [None for _ in task.evaluation]
        if searches:
            if shared.building is None:
                with utils.measure() as shared.building:
                    shared.indexed = corpus.fill(retriever, shared.documents, args, shared.skipped, whole=beir)
                    retriever.prepare()
            if not len(retriever.index):
                raise utils.UserError(f"{task.name} has no passages to retrieve from; give documents with --docs")
            record.index(run, retriever, shared.indexed, shared.building, shared.skipped)
        if mode in measure.RANKING:
            relevant, own = measure.judged(task, shared.documents, shared.judgements, retriever.index.documents)
            if any(own):
                run.note(f"{len(own) - own.count(None)} queries are documents, too, and do not find themselves")
        if reader:
            index = retriever.index if searches else None
            reader.fewer = set()
            reader.demonstrations = raft.demonstrations(demos, mode, task, shared.documents, index)
        run.row["variant"] = variant(mode, args, retriever, retrieval_only)

        # 6. evaluate
        outcome = measure.questions(args, mode, task, retriever, reader, relevant, own)

        # 7. row and report: the row is written by leaving the block
        if mode in measure.RANKING:
            record.ranking(run, args, task, retriever, outcome)
        if reader:
            record.answers(run, args, task, mode, reader, outcome)
        else:
            record.retrieval(run, task, outcome)
        record.stages(run, outcome.requests, generates=reader is not None)
        run.row.update(outcome.memory)
        if reader and engines.is_engine(reader.model):
            run.row["engine"] = reader.model.name
            if mode == shared.last:  # the others have the same generator

                def with_hf():
                    hf, n = agreement.hf_args(args), args.engine_check
                    theirs = Reader(hf, device, task)
                    theirs.demonstrations = reader.demonstrations
                    asked = task.evaluation[:n], outcome.passages[:n], mode != "none"
                    return evaluate.Outcome(theirs.answer(*asked)[0], {}, None, [])

                found = evaluate.Outcome(outcome.texts, {}, None, [])
                agreement.record(run, reader.model, found, with_hf if args.engine_check else None)
        if retriever:  # the generator's forecast, if there is a generator, and what retrieval holds besides
            run.row["predicted_gb"] = (run.row.get("predicted_gb") or 0.0) + retriever.gb()


@utils.clean_exit
def main(argv=None):
    args = parse_args(argv)
    if args.docs:
        files.find_files(args.docs)
    if args.save_run:
        outputs.check(args.save_run, "run", "--save_run")
    measures = not (args.build_only or args.interactive)
    generates = args.interactive or (measures and not (args.retrieval_only or files.is_beir(files.data_folder(args))))
    models = {"--embed_model": args.embed_model, "--reranker": args.reranker}
    models.update({"--gen_model": args.gen_model, "--adapter": args.adapter} if generates else {})
    hub.check_names(models, {"--dataset": flags.source(args) if measures else None})

    # heavy modules, now that the arguments are checked
    global Reader, Retriever, Skipped, agreement, corpus, draw, engines, evaluate, measure, precisions, properties
    global raft, record
    from harness.data.examples import draw
    from harness.evaluation import agreement, evaluate
    from harness.models import engines, precisions, properties
    from harness.retrieval import corpus, measure, raft, record, session
    from harness.retrieval.documents import Skipped
    from harness.retrieval.reader import Reader
    from harness.retrieval.retriever import Retriever

    if args.build_only:
        return corpus.build(args)
    if args.interactive:
        return session.interact(args)
    modes = MODES if args.baselines else ("retrieved" if args.k else "none",)
    shared = SimpleNamespace(task=None, reader=None, retriever=None, building=None, last=modes[-1])
    for mode in modes:
        run_once(args, mode, shared)


if __name__ == "__main__":
    main()
