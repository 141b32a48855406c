"""Retrieval-augmented generation: documents -> chunks -> embeddings -> FAISS index -> retrieve -> prompt -> answer, each part measured.

Measures the retrieval (recall@k, nDCG@10, ...) and the answers (token F1, ...) on the same questions, with the time of each stage;
--baselines asks them also without retrieval, with random and with gold passages, one row each. A BEIR folder (corpus.jsonl,
queries.jsonl, qrels/) as --dataset measures the retrieval alone, of whole documents unless --chunk_tokens is given.

    # on a CPU, offline (after `python prepare_data.py demo`): about two minutes; with --baselines four rows
    python rag_eval.py --k 4 --chunk_tokens 64 --chunk_overlap 16 --max_eval_samples 60
    # how good is the retrieval: dense, BM25 or both fused?
    python rag_eval.py --retrieval_only --retriever hybrid --chunk_tokens 64
    # on a GPU, from the hub
    python rag_eval.py --embed_model all-MiniLM-L6-v2 --gen_model google/flan-t5-base --k 4
    # your own documents: text, Markdown, HTML, PDF, tables; indexed once, asked often
    python rag_eval.py --build_only --docs notes/ 'reports/*.pdf' --index_dir notes_index
    python rag_eval.py --interactive --index_dir notes_index
"""

import functools
import os
import re
import time
from pathlib import Path

import numpy as np

import utils
from harness import flags, hub
from harness.data import tasks
from harness.data.examples import Example, Task
from harness.data.prompts import QA_CONTEXT_INSTRUCTION, QA_INSTRUCTION, QA_TEMPLATE, render, with_instruction
from harness.evaluation import metrics, prompting, record
from harness.models import generation, loading, memory_forecast
from harness.results.run import Run
from harness.retrieval import qrels
from harness.retrieval.documents import (
    MAX_FILE_MB,
    SUFFIXES,
    Chunk,
    Document,
    Skipped,
    find_files,
    is_beir,
    read_documents,
)
from harness.retrieval.index import KINDS
from harness.retrieval.ranking import STEMMED
from harness.retrieval.retriever import Hit, Retriever, fill, read, summary
from harness.retrieval.session import HELP, Session

MODES = ("none", "gold", "random", "retrieved")  # of --baselines; those without an embedder first
SEARCHING = ("random", "retrieved")
NOT_FOUND = "not in the documents"
CITING = (
    "Use the numbered texts to answer the question in a few words, and give the number of the text you used, as in [1]."
)


def parse_args(argv=None):
    parser = flags.ArgumentParser(__doc__)
    add = parser.add_argument
    add(
        "--embed_model",
        default="assets/models/all-MiniLM-L6-v2",
        help="sentence-transformers name or folder (default: %(default)s)",
    )
    add("--gen_model", default="assets/models/SmolLM2-135M-Instruct", help="hub name or folder (default: %(default)s)")
    add("--precision", choices=loading.PRECISIONS, default="fp32", help="of the generator (default: %(default)s)")
    add("--interactive", action="store_true", help=f"{HELP}; no row is written")
    add(
        "--build_only",
        action="store_true",
        help="put --docs into --index_dir, or take --delete out of it, and stop; no row is written",
    )

    add = parser.add_argument_group("documents").add_argument
    add(
        "--docs",
        metavar="PATH",
        nargs="+",
        help=f"files, folders, globs or a BEIR folder; known are {' '.join(SUFFIXES)} "
        "(default: the data set's corpus.jsonl, else its passages)",
    )
    add(
        "--max_file_mb",
        type=flags.positive,
        default=MAX_FILE_MB,
        metavar="MB",
        help="larger files are skipped; tables, of a document a row, are not (default: %(default)s)",
    )
    add("--encoding", help="of text files that are not UTF-8, as in latin-1 (default: they are skipped)")
    add(
        "--chunk_tokens",
        type=flags.positive_int,
        metavar="N",
        help="most tokens of the embedder in a chunk (default: what it takes, at most 512)",
    )
    add(
        "--chunk_overlap",
        type=flags.whole_number,
        metavar="N",
        help="most tokens that neighbours share (default: 32, or a quarter of smaller chunks)",
    )
    add("--whole_documents", action="store_true", help="one chunk a document, cut to what the embedder takes")

    add = parser.add_argument_group("index").add_argument
    add("--index_dir", metavar="DIR", help="where the index lives; what is there already is not embedded again")
    add("--delete", metavar="ID", nargs="+", default=[], help="documents to forget, with --build_only")
    add("--prune", action="store_true", help="forget the documents of --index_dir that are no longer among --docs")
    add("--index", choices=("auto", *KINDS), default="auto", help="auto: by size and free memory, and says why")
    add("--metric", choices=("cosine", "l2"), default="cosine", help="(default: %(default)s)")
    add(
        "--mmap", action="store_true", help="map the index into memory instead of reading it; it cannot be changed then"
    )
    add(
        "--nlist",
        type=flags.positive_int,
        help="ivf, ivfpq: clusters (default: four times the root of the number of vectors)",
    )
    add(
        "--nprobe",
        type=flags.positive_int,
        help="ivf, ivfpq: clusters that are searched (default: a 16th of them, at least 32)",
    )
    add("--hnsw_m", "--M", type=flags.positive_int, help="hnsw: links of a vector (default: 32)")
    add(
        "--ef_construction",
        "--efConstruction",
        type=flags.positive_int,
        help="hnsw: candidates while building (default: 200)",
    )
    add("--ef_search", "--efSearch", type=flags.positive_int, help="hnsw: candidates while searching (default: 64)")
    add("--pq_m", "--m", type=flags.positive_int, help="ivfpq: bytes of a vector (default: a fourth of the dimensions)")

    add = parser.add_argument_group("retrieval").add_argument
    add(
        "--k", type=flags.whole_number, default=4, help="chunks in the prompt; 0 is no retrieval (default: %(default)s)"
    )
    add(
        "--retriever",
        choices=("dense", "bm25", "hybrid"),
        default="dense",
        help="hybrid fuses both rankings (default: %(default)s)",
    )
    add(
        "--language",
        choices=tuple(STEMMED),
        default="none",
        help="of BM25's stop words and stemmer (default: %(default)s)",
    )
    add(
        "--query_prompt",
        metavar="TEXT",
        help="put before each question, as some embedders want it (default: what the model says)",
    )
    add("--passage_prompt", metavar="TEXT", help="put before each passage (default: what the model says)")
    add("--reranker", metavar="MODEL", help="a sentence-transformers cross-encoder that orders the first ones again")
    add(
        "--rerank_depth",
        type=flags.positive_int,
        default=50,
        metavar="N",
        help="how many of them (default: %(default)s)",
    )
    add(
        "--mmr",
        type=flags.share,
        metavar="WEIGHT",
        help="maximal marginal relevance: 1 is likeness to the question alone, less is diverser",
    )
    add(
        "--min_score",
        type=float,
        help="a passage below is not used: the reranker's score where there is one, else cosine or minus "
        f"the squared distance (dense, hybrid), or BM25; without any the answer is '{NOT_FOUND}'",
    )
    add("--retrieval_only", action="store_true", help="measure the retrieval and generate nothing")
    add(
        "--baselines",
        action="store_true",
        help="four rows: no retrieval, random passages, retrieved ones, the gold passage",
    )
    add("--save_run", metavar="FILE", help="write the rankings as a TREC run")

    add = parser.add_argument_group("generation").add_argument
    add(
        "--prompt_format",
        choices=("plain", "chat", "auto"),
        default="auto",
        help="auto is chat where the tokenizer has a template",
    )
    add("--max_new_tokens", type=flags.positive_int, default=24, help="of an answer (default: %(default)s)")
    add(
        "--context_tokens",
        type=flags.positive_int,
        metavar="N",
        help="most tokens of all passages (default: what the model takes)",
    )
    add(
        "--citations", action="store_true", help="number the passages and ask for [1]; not scored as part of the answer"
    )
    flags.add_data_args(parser, dataset="assets/data/disfl_qa")
    flags.add_common_args(parser, auto_batch=True)
    args = flags.check_data_args(parser, parser.parse_args(argv))

    beir = is_beir(data_folder(args)) and not (args.build_only or args.interactive)
    if beir and not args.chunk_tokens:
        args.whole_documents = True  # one vector a document, as the published figures have it
    if (args.retrieval_only or beir) and (args.k == 0 or args.baselines):
        parser.error(
            "retrieval alone (--retrieval_only, or a BEIR folder) with --k 0 or --baselines leaves nothing to measure"
        )
    if beir and args.docs:
        parser.error("a BEIR folder as --dataset brings its documents; leave --docs out")
    if args.baselines and args.k == 0:
        parser.error("--baselines asks without retrieval anyway; give a --k of at least 1 for its other rows")
    if args.chunk_tokens and (args.chunk_overlap or 0) > args.chunk_tokens // 2:
        parser.error(f"--chunk_overlap {args.chunk_overlap} must be at most half of --chunk_tokens {args.chunk_tokens}")
    if args.chunk_tokens and args.whole_documents:
        parser.error("--chunk_tokens and --whole_documents exclude each other")
    if args.build_only and not (args.index_dir and (args.docs or args.delete)):
        parser.error("--build_only needs --index_dir, and --docs or --delete")
    if (args.delete and not args.build_only) or (args.prune and not (args.index_dir and args.docs)):
        parser.error("--delete goes with --build_only, --prune with --index_dir and --docs")
    if args.mmap and (not args.index_dir or args.build_only):
        parser.error("--mmap is for searching in an --index_dir")
    if args.build_only and args.interactive:
        parser.error("--build_only and --interactive exclude each other")
    if (args.build_only or args.interactive) and (args.baselines or args.save_run or args.retrieval_only):
        parser.error(
            "--baselines, --retrieval_only and --save_run are for measuring, not for --build_only or --interactive"
        )
    if args.reranker and args.k > args.rerank_depth:
        parser.error(f"--k {args.k} is above --rerank_depth {args.rerank_depth}")
    if args.hnsw_m == 1:
        parser.error("--hnsw_m must be at least 2")
    try:
        "".encode(args.encoding or "utf-8")
    except LookupError:
        parser.error(f"--encoding {args.encoding}: no such encoding")
    return args


# --------------------------------------------------------------------------------------------------------------- retrieval


def passages_of(mode, retriever, task, ranked, args):
    """[Q] lists of hits that go into the prompts: none, args.k random chunks, the retrieved ones, or the question's own passage."""
    if mode == "random":
        rng = np.random.default_rng(args.seed)
        rows = [
            rng.choice(len(retriever.index), min(args.k, len(retriever.index)), replace=False) for _ in task.evaluation
        ]
        return [[Hit(retriever.index.chunk(int(row)), 0.0, int(row)) for row in some] for some in rows]
    if mode == "gold":
        return [[Hit(Chunk("gold", 0, ex.context), 1.0, -1)] for ex in task.evaluation]
    return [hits[: args.k] for hits in ranked]  # of mode none: []


def hits_of(mode, retriever, task, passages, k, stages, i):
    """The passages of question i, retrieved anew where they are retrieved at all; the stages' milliseconds go to `stages`."""
    if mode != "retrieved":
        return passages[i]
    retriever.spent = {}
    hits = retriever.search([task.evaluation[i].text], k)[0]
    stages.append(retriever.spent)
    return hits


# -------------------------------------------------------------------------------------------------------------- generation


class Reader:
    """The generator: question and passages in, answer out."""

    def __init__(self, args, device, task):
        self.args, self.task = args, task
        self.tokenizer = utils.load_tokenizer(args.gen_model, args.trust_remote_code)
        self.chat = loading.uses_chat(args.prompt_format, self.tokenizer)
        self.model = loading.load_model(
            args.gen_model, precision=args.precision, device=device, trust_remote_code=args.trust_remote_code
        )
        limit = loading.context_length(self.model)
        self.room = limit and limit - (0 if self.model.config.is_encoder_decoder else args.max_new_tokens)
        self.options = {
            "stop": prompting.answer_stop(self.model, self.tokenizer, task.kind, self.chat),
            "add_special_tokens": not self.chat,
        }

    def _count(self, text):
        return len(self.tokenizer(text, verbose=False).input_ids)

    def prompt(self, question, hits):
        """(prompt, passages left out) with as many of the hits, the best first, as fit into the model and --context_tokens.

        The best passage stands last, beside the question: small models read what is near (Liu et al. 2024, lost in the middle).
        """
        texts = [
            f"[{n}] {hit.chunk.full}" if self.args.citations else hit.chunk.full for n, hit in enumerate(hits, start=1)
        ]
        with_passages = CITING if self.args.citations else QA_CONTEXT_INSTRUCTION
        for n in range(len(texts), -1, -1):
            context = "\n\n".join(reversed(texts[:n]))
            if n and self.args.context_tokens and self._count(context) > self.args.context_tokens:
                continue
            example = Example("question", question, context=context or None)
            asked = with_instruction(self.task, with_passages if n else QA_INSTRUCTION)
            prompt, _ = render(asked, example, (), self.tokenizer if self.chat else None)
            if self.room is None or n == 0 or self._count(prompt) <= self.room:
                return prompt, len(texts) - n
        raise AssertionError("unreachable")

    def answer(self, questions, passages, required, batch_size="auto", progress=None):
        """([Q] texts, inference.Answers of those that were generated or None, [Q] passages left out).

        required: a question without any passage is answered with NOT_FOUND, and nothing is generated.
        """
        built = [self.prompt(question, hits) for question, hits in zip(questions, passages)]
        asked = [i for i, hits in enumerate(passages) if hits or not required]
        texts, found = [NOT_FOUND] * len(questions), None
        if asked:
            found = generation.generate(
                self.model,
                self.tokenizer,
                [built[i][0] for i in asked],
                self.args.max_new_tokens,
                batch_size,
                progress=progress,
                **self.options,
            )
            for i, text in zip(asked, found.texts):
                texts[i] = text
        return texts, found, [left for _, left in built]

    def time(self, question, retrieve):
        """An inference.Timed request, alone, from text in to answer out; retrieve: question -> hits."""
        return generation.time_request(
            self.model,
            self.tokenizer,
            lambda: self.prompt(question, retrieve(question))[0],
            self.args.max_new_tokens,
            **self.options,
        )


def without_citations(answer):
    """(the answer without its [n] marks, the numbers they name)."""
    marks = [int(n) for n in re.findall(r"\[(\d+)\]", answer)]
    return " ".join(re.sub(r"\s*\[\d+\]", "", answer).split()), marks


# ------------------------------------------------------------------------------------------------------------- interactive


# ---------------------------------------------------------------------------------------------------------------- the rest


def corpus_of(args, task, skipped):
    """The documents: --docs, else the data set folder's corpus.jsonl, else the distinct passages of all its splits."""
    corpus = data_folder(args) / "corpus.jsonl"
    if args.docs:
        return read(args.docs, skipped, args)
    if corpus.is_file():
        return read_documents([corpus], skipped, bare_ids=True)
    return [Document(f"d{i}", "", text) for i, text in enumerate(task.passages)]


def data_folder(args):
    """The folder of the data set; one that does not exist where the splits are named by files."""
    return Path(flags.source(args) or "no folder", args.subset or "")


def build(args):
    """--build_only: change the index in --index_dir and tell what was done."""
    skipped = Skipped()
    documents = read(args.docs, skipped, args) if args.docs else []
    retriever = Retriever(args, utils.pick_device(args.device))
    if args.delete:
        print(f"{retriever.remove(args.delete)} chunks of {len(args.delete)} documents forgotten")
    if args.docs:
        start = time.perf_counter()
        found = fill(retriever, documents, args, skipped)
        took = time.perf_counter() - start
        rate = (
            f"; {took:.1f} s, {(found['added'] + found['updated']) / took:.1f} documents/s" if found["chunks"] else ""
        )
        print(summary(found, retriever, skipped) + rate)
    print(
        f"{retriever.index.why or 'index ' + retriever.index.kind}; {len(retriever.index)} chunks in {args.index_dir}"
    )


@utils.clean_exit
def main(argv=None):
    # 1. settings
    args = parse_args(argv)
    beir = is_beir(data_folder(args)) and not (args.build_only or args.interactive)
    if args.docs:
        find_files(args.docs)
    if args.save_run and (Path(args.save_run).is_dir() or not os.access(Path(args.save_run).parent, os.W_OK)):
        raise utils.UserError(f"--save_run {args.save_run}: give a file in a folder that is there and can be written")
    retrieval_only = args.retrieval_only or beir
    generator = None if retrieval_only or args.build_only else args.gen_model
    data = None if args.interactive or args.build_only else flags.source(args)
    hub.check_names(
        {"--embed_model": args.embed_model, "--gen_model": generator, "--reranker": args.reranker}, {"--dataset": data}
    )
    if args.build_only:
        return build(args)
    if args.interactive:
        return interact(args)

    retriever = reader = task = None
    for mode in MODES if args.baselines else ("retrieved" if args.k else "none",):
        run = Run(args, __file__, "prompting" if mode == "none" else "rag")

        with run:
            # 2. seed and device
            utils.set_seed(args.seed)
            device = utils.pick_device(args.device)
            run.row.update(
                model=args.embed_model if retrieval_only else args.gen_model,
                device=device,
                data_seed=args.data_seed,
                device_name=utils.device_name(device),
                precision=args.precision,
            )

            # 3. data
            if task is None:
                skipped = Skipped()
                task, documents, judgements = read_data(args, beir, skipped)
            run.row.update(task.row())
            questions = [ex.text for ex in task.evaluation]

            # 4. model: what this row needs, so that its load time and memory hold no other's
            loaded = (
                reader is not None or retriever is not None
            )  # by an earlier row: what the memory was before is not known
            with utils.measure() as load:
                reader = reader or (None if retrieval_only else Reader(args, device, task))
                retriever = retriever or (Retriever(args, device) if mode in SEARCHING else None)
            before = {"start_rss_gb": None} if loaded else {}
            run.row.update({**load.load_columns(), **before, **(loading.size_columns(reader.model) if reader else {})})

            # 5. adapt: build the index, or bring the one that was opened up to date
            relevant = [{} for _ in questions]
            if mode in SEARCHING:
                if mode == "random" or not args.baselines:
                    with utils.measure() as building:
                        indexed = fill(retriever, documents, args, skipped, whole=beir)
                        retriever.prepare()
                if not len(retriever.index):
                    raise utils.UserError(f"{task.name} has no passages to retrieve from; give documents with --docs")
                describe(run, retriever, indexed, building, skipped)
                relevant = (
                    [judgements[ex.id] for ex in task.evaluation]
                    if beir
                    else qrels.relevant_documents(task, documents, retriever.index.documents)
                )
            run.row["variant"] = variant(mode, args, retriever, retrieval_only)

            # 6. evaluate
            with utils.measure() as spent:
                searched = mode == "retrieved"
                ranked = (
                    retriever.search(questions, max(retriever.depth, args.k)) if searched else [[] for _ in questions]
                )
                passages = passages_of(mode, retriever, task, ranked, args)
                if reader:
                    texts, found, left_out = reader.answer(
                        questions, passages, mode != "none", args.batch_size, f"answering, {mode}"
                    )
            judged = [
                qrels.retrieval_scores(hits, rel, args.k) if rel and searched else {}
                for hits, rel in zip(ranked, relevant)
            ]
            record_ranking(run, args, retriever, questions, ranked, judged, task)
            extras = [
                {
                    "question": q,
                    "retrieved": [
                        {
                            "document": h.chunk.document,
                            "source": h.chunk.source,
                            "position": h.chunk.position,
                            "score": h.score,
                            "text": h.chunk.full,
                        }
                        for h in hits
                    ],
                    **scores,
                }
                for q, hits, scores in zip(questions, passages, judged)
            ]
            stages = []  # of each timed request, the milliseconds of its parts
            retrieve = functools.partial(hits_of, mode, retriever, task, passages, args.k, stages)
            timed = range(min(args.latency_runs, len(questions)))
            if reader:
                answers_of(
                    run, args, reader, task, mode, texts, found, left_out, passages, extras, spent, retrieve, timed
                )
            else:
                known = [scores for scores in judged if scores]
                if not known:
                    raise utils.UserError(
                        f"{task.name}: no question has a passage (a column passage or context) that stands among the "
                        "documents, so there is nothing to measure"
                    )
                record.record_retrieval(run, task, known, spent, utils.time_requests(retrieve, timed), extras)
            measured = stages[-len(timed) :] if len(timed) else []
            for name in ("embed", "search", "rerank"):
                if any(name in stage for stage in measured):
                    run.row[f"{name}_ms"] = float(np.mean([stage.get(name, 0.0) for stage in measured]))
            if reader and run.row.get("latency_ms_mean") is not None:
                parts = sum(run.row.get(f"{name}_ms") or 0.0 for name in ("embed", "search", "rerank"))
                run.row["generate_ms"] = run.row["latency_ms_mean"] - parts
            if retriever:  # the generator's forecast, where there is one, and what retrieval holds besides
                run.row["predicted_gb"] = (run.row.get("predicted_gb") or 0.0) + retriever.gb()

            # 7. row and report: written by leaving the block


def read_data(args, beir, skipped):
    """(task, documents, {query id: {document id: grade}} of a BEIR folder or None)."""
    if beir:
        documents, queries, judgements = qrels.load_beir(data_folder(args))
        examples = [Example(q, text) for q, text in list(queries.items())[: args.max_eval_samples]]
        return Task(args.dataset, None, "qa", evaluation=examples), documents, judgements
    task = tasks.from_args(args)
    print(task.summary())
    tasks.require_kind(task, "qa", "retrieval-augmented generation")
    if args.baselines and not all(ex.context for ex in task.evaluation):
        raise utils.UserError(
            f"{task.name}: --baselines needs the passage of each question, as a column passage or context"
        )
    return task, corpus_of(args, task, skipped) if args.k else [], None


def interact(args):
    """--interactive: a Session with the index, or with --docs, or with nothing yet."""
    device, skipped = utils.pick_device(args.device), Skipped()
    documents = read(args.docs, skipped, args) if args.docs else []
    retriever = Retriever(args, device)
    if args.index_dir and not documents and not len(retriever.index):
        raise utils.UserError(
            f"--index_dir {args.index_dir}: no index there; give --docs, or build it first with --build_only --docs PATH"
        )
    reader = Reader(args, device, Task("interactive", None, "qa", template=QA_TEMPLATE))
    if documents:
        print(summary(fill(retriever, documents, args, skipped), retriever, skipped))
    Session(retriever, reader, args.k).run()


def variant(mode, args, retriever, retrieval_only):
    """What the row calls this run: k4_flat, k4_hybrid_hnsw, k4_flat_rerank, no_retrieval, random_passages, gold_passage."""
    if mode != "retrieved":
        return {"none": "no_retrieval", "random": "random_passages", "gold": "gold_passage"}[mode]
    how = [] if args.retriever == "dense" else [args.retriever]
    kind = [] if args.retriever == "bm25" else [retriever.index.kind]
    more = [name for name, wanted in (("rerank", args.reranker), ("mmr", args.mmr is not None)) if wanted]
    return "_".join(["retrieval_only" if retrieval_only else f"k{args.k}", *how, *kind, *more])


def describe(run, retriever, found, building, skipped):
    """The index cells of the row, and the notes on what is in it."""
    index = retriever.index
    n = len(set(index.table["document"].to_pylist()))
    if found is None or not found["chunks"]:
        run.note(f"{n} documents in {len(index)} chunks, as the index had them")
    else:
        run.note(f"{n} documents in {len(index)} chunks, indexed in {building.seconds:.1f} s")
        run.row.update(
            index_seconds=building.seconds, documents_per_s=(found["added"] + found["updated"]) / building.seconds
        )
    if index.kind != "none":
        run.row["index_gb"] = index.gb()
    for text in (index.why, skipped.summary()):
        if text:
            print(text)
    if len(skipped):
        run.note(skipped.summary())


def record_ranking(run, args, retriever, questions, ranked, judged, task):
    """The retrieval cells of the row, the index's recall against exact search, and the TREC run."""
    known = [scores for scores in judged if scores]
    if known:
        if len(known) < len(questions):
            run.note(
                f"retrieval is scored on the {len(known)} of {len(questions)} questions whose passage is among the documents"
            )
        run.row.update({name: float(np.mean([scores[name] for scores in known])) for name in known[0]})
        run.headline = f"recall@{args.k} {run.row['recall_at_k']:.3f}, nDCG@10 {run.row['ndcg_at_10']:.3f}"
    if retriever and any(ranked) and args.retriever != "bm25":
        run.row["index_recall"] = retriever.index.recall(retriever.embed(questions, questions=True), 10)
    if args.save_run and any(ranked):
        qrels.write_run(args.save_run, [ex.id for ex in task.evaluation], ranked, run.row["variant"])
        run.note(f"rankings in {args.save_run}")


def answers_of(run, args, reader, task, mode, texts, found, left_out, passages, extras, spent, retrieve, timed):
    """The answers' quality, their citations, the requests' latencies, and what did not fit."""
    if args.citations:
        cited = [without_citations(text) for text in texts]
        texts = [text for text, _ in cited]
        for extra, (_, marks) in zip(extras, cited):
            extra["citations"] = marks
        wrong = sum(
            any(not 1 <= n <= len(hits) - left for n in marks)
            for (_, marks), hits, left in zip(cited, passages, left_out)
        )
        run.note(
            f"{sum(bool(marks) for _, marks in cited)} of {len(texts)} answers cite a passage, {wrong} of them one that was not given"
        )

    def request(i):  # -> (milliseconds, a Timed or None where the generator was not asked)
        if mode != "none" and not passages[i]:
            return utils.milliseconds(lambda: retrieve(i)), None
        asked = reader.time(task.evaluation[i].text, lambda _: retrieve(i))
        return asked.total_ms, asked

    timed = utils.one_by_one(request, timed)
    alone = [asked for _, asked in timed if asked]
    if len(alone) < len(timed):
        run.note(f"{len(timed) - len(alone)} of the {len(timed)} timed requests generated nothing")
    record.record_answers(run, task, texts, spent, [ms for ms, _ in timed], extras)
    if found:
        record.record_tokens(run, found, spent)
        memory_forecast.predict_inference(
            run, reader.model, found.batch_size, found.longest, "generated", len(found.prefix)
        )
        record.note_truncation(run, reader.room, 0, 0, found.truncated)
        run.row.update(
            ttft_ms=record.median([t.ttft_ms for t in alone]), tpot_ms=record.median([t.tpot_ms for t in alone])
        )
    if mode != "none":
        used = [hits[: len(hits) - left] for hits, left in zip(passages, left_out)]
        inside = [
            max((metrics.contains_answer(hit.chunk.full, ex.references) for hit in hits), default=0.0)
            for hits, ex in zip(used, task.evaluation)
        ]
        run.row["answer_in_context"] = float(np.mean(inside))
    unanswered = sum(mode != "none" and not hits for hits in passages)
    for text in (
        f"{sum(left_out)} passages of {sum(map(bool, left_out))} questions did not fit the context and were left out"
        if any(left_out)
        else "",
        f"{unanswered} questions without a passage above --min_score, answered '{NOT_FOUND}'" if unanswered else "",
    ):
        if text:
            print(text)
            run.note(text)


if __name__ == "__main__":
    main()
