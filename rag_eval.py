"""Retrieval-augmented generation: documents -> chunks -> embeddings -> exact FAISS index -> top k -> prompt -> answer.

Measures the retrieval (recall@k, MRR, nDCG@10) and the answers (token F1, exact match) on the same questions; --k 0 asks them
without retrieval. A BEIR folder (corpus.jsonl, queries.jsonl, qrels/) as --dataset measures the retrieval alone, of whole documents
unless --chunk_tokens is given.

    # on a CPU, offline (after `python prepare_data.py demo`): about two minutes, then the same questions without retrieval
    python rag_eval.py --k 4 --chunk_tokens 64 --chunk_overlap 16 --max_eval_samples 60
    python rag_eval.py --k 0 --max_eval_samples 60
    # on a GPU, from the hub
    python rag_eval.py --embed_model all-MiniLM-L6-v2 --gen_model google/flan-t5-base --k 4
    # your own documents: .txt, .md, .jsonl files or a folder of them; ask, and `add` more
    python rag_eval.py --interactive --docs notes/
"""

import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np

import evaluation
import metrics
import models
import tasks
import utils

RANKED = 100  # chunks that are ranked for MRR and nDCG@10, whatever k is
HELP = "ask a question, or: add TEXT, add PATH, quit"


def parse_args(argv=None):
    parser = utils.ArgumentParser(__doc__)
    parser.add_argument(
        "--embed_model",
        default="assets/models/all-MiniLM-L6-v2",
        help="sentence-transformers name or folder (default: %(default)s)",
    )
    parser.add_argument("--gen_model", default="assets/models/SmolLM2-135M-Instruct", help="hub name or folder (default: %(default)s)")
    parser.add_argument("--precision", choices=models.PRECISIONS, default="fp32", help="of the generator (default: %(default)s)")
    group = parser.add_argument_group("retrieval")
    group.add_argument("--docs", metavar="PATH", help="documents: a .txt, .md or .jsonl file, or a folder "
                       "(default: the data set's corpus.jsonl, else its passages)")  # fmt: skip
    group.add_argument("--k", type=utils.whole_number, default=4, help="chunks in the prompt; 0 is no retrieval (default: %(default)s)")
    group.add_argument(
        "--chunk_tokens",
        type=utils.positive_int,
        metavar="N",
        help="tokens of the embedder per chunk (default: what it takes at once)",
    )
    group.add_argument(
        "--chunk_overlap",
        type=utils.whole_number,
        default=32,
        metavar="N",
        help="tokens that neighbours share (default: %(default)s)",
    )
    group.add_argument("--whole_documents", action="store_true", help="one chunk a document, cut to what the embedder takes")
    group.add_argument("--retrieval_only", action="store_true", help="measure the retrieval and generate nothing")
    group.add_argument("--interactive", action="store_true", help=f"{HELP}; no row is written")
    group = parser.add_argument_group("generation")
    group.add_argument(
        "--prompt_format",
        choices=("plain", "chat", "auto"),
        default="auto",
        help="auto is chat where the tokenizer has a template",
    )
    group.add_argument("--max_new_tokens", type=utils.positive_int, default=24, help="of an answer (default: %(default)s)")
    tasks.add_data_args(parser, dataset="assets/data/disfl_qa")
    utils.add_common_args(parser, auto_batch=True)
    args = tasks.check_data_args(parser, parser.parse_args(argv))
    if args.retrieval_only and args.k == 0:
        parser.error("--retrieval_only with --k 0 leaves nothing to measure")
    if args.chunk_tokens and args.chunk_overlap >= args.chunk_tokens:
        parser.error(f"--chunk_overlap {args.chunk_overlap} must be below --chunk_tokens {args.chunk_tokens}")
    return args


@dataclass(frozen=True)
class Document:
    id: str
    title: str
    text: str


@dataclass(frozen=True)
class Chunk:
    document: str  # the document's id
    position: int  # of its first character in the document
    text: str


# --------------------------------------------------------------------------------------------------------------- documents


def read_documents(path):
    """Documents of a file or a folder, in the order of their names; empty texts are left out."""
    path = Path(path)
    if path.is_dir():
        files = [path / "corpus.jsonl"] if (path / "corpus.jsonl").is_file() else sorted(path.rglob("*"))
        found = [doc for file in files if file.suffix in (".txt", ".md", ".jsonl") for doc in read_documents(file)]
        if not found:
            raise tasks.DataError(f"--docs {path}: no .txt, .md or .jsonl document with text in this folder")
        return found
    if path.suffix == ".jsonl":
        rows = tasks.read_table(path)
        strange = next((row for row in rows if not isinstance(row.get("text"), str)), None)
        if strange:
            raise tasks.DataError(f"{path}: documents want a column text (and _id, title); one has {', '.join(strange)}")
        found = [Document(str(row.get("_id", f"{path.stem}-{i}")), row.get("title") or "", row["text"]) for i, row in enumerate(rows)]
    elif path.suffix in (".txt", ".md"):
        try:
            found = [Document(str(path), "", path.read_text(encoding="utf-8"))]
        except (OSError, UnicodeDecodeError) as error:
            raise tasks.DataError(f"{path} cannot be read as UTF-8 text: {error}") from None
    else:
        raise tasks.DataError(f"--docs {path}: give a .txt, .md or .jsonl file, or a folder of them")
    return [doc for doc in found if doc.text.strip()]


def split_into_chunks(documents, tokenizer, size, overlap):
    """Windows of `size` tokens, the title's included, that share `overlap`, cut at token borders; size None: whole documents."""
    chunks = []
    for doc in documents:
        if size is None:
            chunks.append(Chunk(doc.id, 0, f"{doc.title} {doc.text}".strip()))
            continue
        room = max(size - len(tokenizer(doc.title, add_special_tokens=False).input_ids), overlap + 1)
        spans = tokenizer(doc.text, add_special_tokens=False, return_offsets_mapping=True, truncation=False, verbose=False).offset_mapping
        head = f"{doc.title} " if doc.title else ""
        for start in range(0, max(len(spans) - overlap, 1), room - overlap):
            window = spans[start : start + room]
            if window:
                chunks.append(Chunk(doc.id, window[0][0], head + doc.text[window[0][0] : window[-1][1]]))
    return chunks


def load_beir(folder, split="test"):
    """(documents, {query id: text}, {query id: {document id: grade}}) of a BEIR folder (Thakur et al. 2021)."""
    folder = Path(folder)
    queries = {row.get("_id"): row.get("text") for row in tasks.read_table(folder / "queries.jsonl")}
    judgements = {}
    for row in tasks.read_table(folder / "qrels" / f"{split}.tsv", columns=["query", "document", "grade"]):
        if row["grade"].lstrip("-").isdigit() and int(row["grade"]) > 0:  # the header line is no judgement
            judgements.setdefault(row["query"], {})[row["document"]] = int(row["grade"])
    lost = [query for query in judgements if not queries.get(query)]
    if lost or not judgements:
        raise tasks.DataError(f"{folder}: {len(judgements)} queries are judged, of which {len(lost)} are not in queries.jsonl")
    return read_documents(folder), {q: queries[q] for q in judgements}, judgements


# --------------------------------------------------------------------------------------------------------------- retrieval


class Retriever:
    """Chunks with their exact index: inner products of unit vectors, so that distance = 1 - cosine similarity."""

    def __init__(self, name, device, args):
        models.quiet()
        import faiss
        from sentence_transformers import SentenceTransformer

        try:
            self.embedder = SentenceTransformer(
                name, device=device, trust_remote_code=args.trust_remote_code, model_kwargs={"use_safetensors": True}
            )
        except (OSError, ValueError) as error:
            if utils.is_out_of_memory(error):
                raise
            raise utils.UserError(f"--embed_model {name} cannot be loaded: {str(error).splitlines()[0]}") from None
        limit = self.embedder.max_seq_length - 2  # its two special tokens
        if args.chunk_tokens and args.chunk_tokens > limit:
            raise utils.UserError(f"--chunk_tokens {args.chunk_tokens}: {name} takes {limit} tokens at once")
        self.size = None if args.whole_documents else args.chunk_tokens or limit
        self.overlap = min(args.chunk_overlap, limit // 2)
        self.batch_size, self.chunks = 32 if args.batch_size == "auto" else max(args.batch_size, 32), []
        dimension = getattr(self.embedder, "get_embedding_dimension", self.embedder.get_sentence_embedding_dimension)()
        self.index = faiss.IndexFlatIP(dimension)

    def embed(self, texts, progress=False):
        """Unit vectors [N, D], float32."""
        return self.embedder.encode(texts, batch_size=self.batch_size, normalize_embeddings=True, show_progress_bar=progress)

    def add(self, documents):
        """Chunk, embed and index documents; returns the number of chunks."""
        chunks = split_into_chunks(documents, self.embedder.tokenizer, self.size, self.overlap)
        if chunks:
            self.index.add(np.ascontiguousarray(self.embed([chunk.text for chunk in chunks], len(chunks) > 200), dtype=np.float32))
            self.chunks += chunks
        return len(chunks)

    def search(self, questions, k):
        """For each question its k nearest (chunk, distance), the nearest first."""
        k = min(k, len(self.chunks))
        if not k:
            return [[] for _ in questions]
        similarities, ids = self.index.search(np.ascontiguousarray(self.embed(questions), dtype=np.float32), k)
        return [[(self.chunks[i], 1 - float(s)) for i, s in zip(row, sims)] for row, sims in zip(ids, similarities)]


def retrieval_scores(hits, relevant, k):
    """recall_at_k, mrr and ndcg_at_10 for one question, by document: a document counts where its best chunk stands."""
    ranked = list(dict.fromkeys(chunk.document for chunk, _ in hits))
    in_prompt = list(dict.fromkeys(chunk.document for chunk, _ in hits[:k]))
    return {"recall_at_k": metrics.recall_at_k(in_prompt, relevant, k), "mrr": metrics.reciprocal_rank(ranked, relevant),
            "ndcg_at_10": metrics.ndcg_at_k(ranked, relevant, 10)}  # fmt: skip


def relevant_documents(task, documents):
    """For each evaluation question {document id: 1} of its own passage; {} where the documents do not hold it."""
    by_text = {" ".join(doc.text.split()): doc.id for doc in documents}
    ids = [by_text.get(" ".join((ex.context or "").split())) for ex in task.evaluation]
    return [{} if found is None else {found: 1} for found in ids]


# -------------------------------------------------------------------------------------------------------------- generation


def build_prompt(task, question, passages, tokenizer, chat, room):
    """The prompt with as many of the passages (nearest first) as fit into `room` tokens. Returns (prompt, passages left out).

    The nearest passage stands last, beside the question: small models read what is near (Liu et al. 2024, lost in the middle).
    """
    for n in range(len(passages), -1, -1):
        context = "\n\n".join(reversed(passages[:n]))
        instruction = tasks.QA_CONTEXT_INSTRUCTION if n else tasks.QA_INSTRUCTION
        example = tasks.Example("question", question, context=context or None)
        prompt, _ = tasks.render(tasks.with_instruction(task, instruction), example, (), tokenizer if chat else None)
        if room is None or n == 0 or len(tokenizer(prompt, verbose=False).input_ids) <= room:
            return prompt, len(passages) - n
    raise AssertionError("unreachable")


class Reader:
    """The generator: question and chunks in, answer out."""

    def __init__(self, args, device, task):
        self.args, self.task = args, task
        self.tokenizer = utils.load_tokenizer(args.gen_model, args.trust_remote_code)
        self.chat = models.uses_chat(args.prompt_format, self.tokenizer)
        self.model = models.load_model(args.gen_model, precision=args.precision, device=device, trust_remote_code=args.trust_remote_code)
        limit = models.context_length(self.model)
        self.room = limit and limit - (0 if self.model.config.is_encoder_decoder else args.max_new_tokens)

        self.options = {"stop": evaluation.answer_stop(self.model, self.tokenizer, task, self.chat), "add_special_tokens": not self.chat}

    def prompt(self, question, hits):
        """(prompt, passages left out) for a question and its retrieved (chunk, distance)."""
        return build_prompt(self.task, question, [chunk.text for chunk, _ in hits], self.tokenizer, self.chat, self.room)

    def answer(self, questions, hits, batch_size="auto", progress=None):
        """(inference.Answers, passages left out)."""
        import inference

        built = [self.prompt(question, found) for question, found in zip(questions, hits)]
        found = inference.generate(self.model, self.tokenizer, [prompt for prompt, _ in built], self.args.max_new_tokens, batch_size,
                                   progress=progress, **self.options)  # fmt: skip
        return found, sum(left for _, left in built)

    def time(self, question, retrieve):
        """An inference.Timed request, alone, from text in to answer out; retrieve: question -> hits."""
        import inference

        return inference.time_request(self.model, self.tokenizer, lambda: self.prompt(question, retrieve(question))[0],
                                      self.args.max_new_tokens, **self.options)  # fmt: skip


def interact(retriever, reader, k):
    """Ask and add until `quit` or the end of input; a bad line is answered, never fatal."""
    empty = "no documents yet, so answers come from the model alone" if not retriever.chunks else f"{len(retriever.chunks)} chunks indexed"
    print(f"{empty}; {HELP}", flush=True)
    for line in sys.stdin:
        line = line.strip()
        if line in ("quit", "exit"):
            break
        try:
            if line.startswith("add "):
                what = line[4:].strip()
                documents = read_documents(what) if Path(what).exists() else [Document(f"typed-{len(retriever.chunks)}", "", what)]
                print(f"{retriever.add(documents)} chunks added, {len(retriever.chunks)} in all", flush=True)
            elif line in ("", "help", "add"):
                print(HELP, flush=True)
            else:
                hits = retriever.search([line], k)
                print(reader.answer([line], hits)[0].texts[0])
                for chunk, distance in hits[0]:
                    print(f"    {distance:.3f}  {chunk.document}  {' '.join(chunk.text.split())[:80]}", flush=True)
        except (utils.UserError, tasks.DataError, OSError) as error:
            print(f"that did not work: {error}", flush=True)


@utils.clean_exit
def main(argv=None):
    # 1. settings
    args = parse_args(argv)
    beir = (data_folder(args) / "queries.jsonl").is_file()
    if beir and not args.chunk_tokens:
        args.whole_documents = True  # one vector a document, as the published figures have it
    if args.docs and not Path(args.docs).exists():
        raise utils.UserError(f"--docs {args.docs}: no such file or folder")
    retrieval_only = args.retrieval_only or beir
    generator, data = None if retrieval_only else args.gen_model, None if args.interactive else tasks.source(args)
    models.check_names({"--embed_model": args.embed_model, "--gen_model": generator}, {"--dataset": data})
    if args.interactive:
        device = utils.pick_device(args.device)
        retriever = Retriever(args.embed_model, device, args)
        reader = Reader(args, device, tasks.Task("interactive", None, "qa", template=tasks.QA_TEMPLATE))
        if args.docs:
            retriever.add(read_documents(args.docs))
        return interact(retriever, reader, args.k)
    run = utils.Run(args, __file__, "rag" if args.k else "prompting")

    with run:
        # 2. seed and device
        utils.set_seed(args.seed)
        device = utils.pick_device(args.device)
        run.row.update(
            variant=("retrieval_only_flat" if retrieval_only else f"k{args.k}_flat") if args.k else "no_retrieval",
            model=args.embed_model if retrieval_only else args.gen_model,
            device=device,
            device_name=utils.device_name(device),
            precision=args.precision,
            data_seed=args.data_seed,
        )

        # 3. data
        if beir:
            documents, queries, judgements = load_beir(data_folder(args))
            queries = dict(list(queries.items())[: args.max_eval_samples])
            task = tasks.Task(args.dataset, None, "qa", evaluation=[tasks.Example(q, text) for q, text in queries.items()])
            relevant = [judgements[q] for q in queries]
        else:
            task = tasks.from_args(args)
            print(task.summary())
            tasks.require_kind(task, "qa", "retrieval-augmented generation")
            documents = corpus_of(args, task)
            relevant = relevant_documents(task, documents)
        run.row.update(task.row())
        questions = [ex.text for ex in task.evaluation]

        # 4. model
        with utils.measure() as loading:
            retriever = Retriever(args.embed_model, device, args) if args.k else None
            reader = None if retrieval_only else Reader(args, device, task)
        run.row.update(load_seconds=loading.seconds, **(models.size_columns(reader.model) if reader else {}))

        # 5. adapt: build the index
        if retriever:
            with utils.measure() as building:
                retriever.add(documents)
            run.note(f"{len(documents)} documents in {len(retriever.chunks)} chunks, indexed in {building.seconds:.1f} s")

        # 6. evaluate
        with utils.measure() as spent:
            ranked = retriever.search(questions, max(RANKED, args.k)) if retriever else [[] for _ in questions]
            if reader:
                answers, left_out = reader.answer(questions, [hits[: args.k] for hits in ranked], args.batch_size, "answering")
        judged = [retrieval_scores(hits, rel, args.k) if rel and retriever else {} for hits, rel in zip(ranked, relevant)]
        known = [scores for scores in judged if scores]
        if known:
            if len(known) < len(questions):
                run.note(f"retrieval is scored on the {len(known)} of {len(questions)} questions whose passage is among the documents")
            run.row.update({name: float(np.mean([scores[name] for scores in known])) for name in known[0]})
            run.headline = f"recall@{args.k} {run.row['recall_at_k']:.3f}, nDCG@10 {run.row['ndcg_at_10']:.3f}"
        extras = [
            {"question": q, "retrieved": [{"document": c.document, "distance": d, "text": c.text} for c, d in hits[: args.k]], **scores}
            for q, hits, scores in zip(questions, ranked, judged)
        ]

        def retrieve(question):
            return retriever.search([question], args.k)[0] if retriever else []

        if reader:
            timed = utils.one_by_one(lambda question: reader.time(question, retrieve), questions[: args.latency_runs])
            evaluation.record_answers(run, task, answers.texts, spent, [t.total_ms for t in timed], extras)
            evaluation.record_tokens(run, answers, spent)
            evaluation.note_truncation(run, reader.room, 0, 0, answers.truncated)
            run.row.update(ttft_ms=evaluation.median([t.ttft_ms for t in timed]), tpot_ms=evaluation.median([t.tpot_ms for t in timed]))
            if left_out:
                run.note(f"{left_out} retrieved passages did not fit the context and were left out")
        elif not known:
            raise tasks.DataError(f"{task.name}: no question whose passage stands among the documents, so there is nothing to measure")
        else:
            latencies = utils.time_requests(retrieve, questions[: args.latency_runs])
            evaluation.record_retrieval(run, task, known, spent, latencies, extras)

        # 7. row and report: written by leaving the block


def corpus_of(args, task):
    """The documents: --docs, else the data set folder's corpus.jsonl, else the distinct passages of all its splits."""
    if args.k == 0:
        return []
    corpus = data_folder(args) / "corpus.jsonl"
    if args.docs or corpus.is_file():
        return read_documents(args.docs or corpus)
    if not task.passages:
        raise tasks.DataError(f"{task.name} has no passages to retrieve from; give documents with --docs")
    return [Document(f"d{i}", "", text) for i, text in enumerate(task.passages)]


def data_folder(args):
    """The folder of the data set; one that does not exist where the splits are named by files."""
    return Path(tasks.source(args) or "no folder", args.subset or "")


if __name__ == "__main__":
    main()
