"""Chunks and vectors in a table of PostgreSQL with pgvector (https://github.com/pgvector/pgvector), 0.8 or newer."""

import contextlib
import json

import numpy as np
import psycopg
import pyarrow as pa
from pgvector import psycopg as pgvector
from psycopg import sql

import utils
from harness.retrieval.chunking import Chunk

COLUMNS = ("document", "digest", "title", "source", "position", "text", "cut")  # of a chunk, besides id and embedding
MOST_DIMENSIONS = {"vector": 2000, "halfvec": 4000}  # that pgvector's HNSW takes
MOST_CANDIDATES = 1000  # of hnsw.ef_search
PAGE = 50_000  # rows that are read at once
# unit vectors are compared by inner product, which orders them as the cosine does; both operators give a distance
OPERATORS = {"cosine": ("<#>", "ip"), "l2": ("<->", "l2")}


def _names(columns):
    return sql.SQL(", ").join(map(sql.Identifier, columns))


class PostgresStore:
    """A table `name` with an id, a chunk and a vector a row; its comment holds the settings as JSON.

    Each `add` and `delete` is one transaction. Adds wait for each other (an advisory lock), so that two processes may
    add the same documents. Errors of the server are UserErrors that name it without its password.
    """

    block = 2000  # chunks in one add

    def __init__(self, url, name):
        self.public, self.name = utils.without_credentials(url), name
        self.table, self.index = sql.Identifier(name), sql.Identifier(f"{name}_hnsw")
        self.settings, self.checked, self.connection = None, False, None
        with self._errors():
            self.connection = psycopg.connect(url, autocommit=True, connect_timeout=10)
            self.connection.execute("create extension if not exists vector")
            pgvector.register_vector(self.connection)
            self.connection.execute("set client_min_messages = error")

    @contextlib.contextmanager
    def _errors(self):
        """UserError, without credentials, for what the server or the connection refuses."""
        try:
            yield
        except psycopg.Error as error:
            text = utils.without_credentials((str(error).strip().splitlines() or [type(error).__name__])[0])
            if self.connection and isinstance(error, psycopg.OperationalError):  # it has gone, or its disk is full
                text += "; what was confirmed is there: start the server and run the same command again"
            raise utils.UserError(f"--index_url {self.public}: {text}") from None

    @contextlib.contextmanager
    def _transaction(self):
        with self._errors(), self.connection.transaction(), self.connection.cursor() as cursor:
            yield cursor

    def _sql(self, text, **parts):
        """A statement with {table}, {index} and other names put in and quoted."""
        return sql.SQL(text).format(table=self.table, index=self.index, **parts)

    def version(self):
        """ "PostgreSQL 18.4, pgvector 0.8.5" """
        with self._transaction() as cursor:
            server = cursor.execute("show server_version").fetchone()[0].split()[0]
            extension = cursor.execute("select extversion from pg_extension where extname = 'vector'").fetchone()[0]
        return f"PostgreSQL {server}, pgvector {extension}"

    # ------------------------------------------------------------------------------------------------------- the table

    def read_settings(self):
        """The settings that the table was created with, None if there is no such table; UserError for another's."""
        with self._transaction() as cursor:
            comment = "select to_regclass(%s), obj_description(to_regclass(%s))"
            there, text = cursor.execute(comment, [f'"{self.name}"'] * 2).fetchone()
        if there is None:
            return None
        with contextlib.suppress(TypeError, ValueError):
            self.settings = json.loads(text)
        if not isinstance(self.settings, dict) or "made_with" not in self.settings:
            raise utils.UserError(
                f"--index_url {self.public} has a table {self.name} that is no index of this project; "
                "give another --index_name"
            )
        return self.settings

    def create(self, settings):
        """Make the table, unless another process just did. settings: dict with kind, metric, dimension, half, options,
        made_with.
        """
        dimension, kind = settings["dimension"], "halfvec" if settings["half"] else "vector"
        if settings["kind"] == "hnsw" and dimension > MOST_DIMENSIONS[kind]:
            halves = " (4000 with --half_vectors)" if kind == "vector" else ""
            raise utils.UserError(
                f"pgvector's hnsw takes at most {MOST_DIMENSIONS[kind]} dimensions{halves}, and the vectors have "
                f"{dimension}; use --index flat"
            )
        with self._transaction() as cursor:
            cursor.execute("select pg_advisory_xact_lock(hashtext(%s))", [self.name])
            if cursor.execute("select to_regclass(%s)", [f'"{self.name}"']).fetchone()[0] is None:
                columns = "id bigserial primary key, document text not null, digest text not null, title text, "
                columns += "source text, position int not null, text text not null, cut boolean"
                vector = sql.SQL(f", embedding vector({int(dimension)}) not null")
                unique = sql.SQL(", unique (document, position)")
                cursor.execute(self._sql("create table {table} ({columns}{vector}{unique})", columns=sql.SQL(columns),
                                         vector=vector, unique=unique))  # fmt: skip
                # 32 or 16 bits of noise do not compress: as they are, beside the other columns
                cursor.execute(self._sql("alter table {table} alter column embedding set storage plain"))
                comment = sql.Literal(json.dumps(settings))
                cursor.execute(self._sql("comment on table {table} is {comment}", comment=comment))
        self.read_settings()

    @property
    def _half(self):
        return "halfvec" if self.settings["half"] else "vector"

    def _column(self, exact):
        """The vectors as an exact search (32 bits) or the index (16 where --half_vectors asks for it) compares them."""
        if exact or not self.settings["half"]:
            return sql.SQL("embedding")
        return sql.SQL(f"(embedding::halfvec({int(self.settings['dimension'])}))")

    def finish(self):
        """Build the HNSW index where one belongs and is missing. Rows that are added later go into it one by one."""
        if self.settings["kind"] == "hnsw":
            try:
                self._build(parallel=True)
            except utils.UserError as error:  # the shared memory of a container is smaller than its disk
                if "No space left" not in str(error):
                    raise
                self._build(parallel=False)

    def _build(self, parallel):
        options = self.settings["options"]
        m, construction = options.get("hnsw_m") or 32, options.get("ef_construction") or 200
        operators = sql.SQL(f"{self._half}_{OPERATORS[self.settings['metric']][1]}_ops")
        with self._transaction() as cursor:
            cursor.execute("select pg_advisory_xact_lock(hashtext(%s))", [self.name])
            if cursor.execute("select to_regclass(%s)", [f'"{self.name}_hnsw"']).fetchone()[0] is None:
                if not cursor.execute(self._sql("select exists (select from {table})")).fetchone()[0]:
                    return
                # a graph that fits into this memory is built several times faster (pgvector's README)
                cursor.execute("set local maintenance_work_mem = '2GB'")
                cursor.execute("set local max_parallel_maintenance_workers = %s" % (2 if parallel else 0))
                cursor.execute(
                    self._sql(
                        "create index {index} on {table} using hnsw ({column} {operators}) "
                        f"with (m = {int(m)}, ef_construction = {int(construction)})",
                        column=self._column(exact=False),
                        operators=operators,
                    )
                )

    # -------------------------------------------------------------------------------------------------- add and delete

    def add(self, chunks, digests, vectors, cut, replacing=()):
        """Put chunks and vectors [N, D] in place of the documents `replacing`: all of it is there afterwards, or none.

        Documents that another process has added in the meantime are left as they are. Returns how many rows went in.
        """
        with self._transaction() as cursor:
            cursor.execute("select pg_advisory_xact_lock(hashtext(%s))", [self.name])
            if replacing:
                cursor.execute(self._sql("delete from {table} where document = any(%s)"), [list(replacing)])
            documents = list({chunk.document for chunk in chunks})
            there = self._sql("select distinct document from {table} where document = any(%s)")
            there = {document for (document,) in cursor.execute(there, [documents])}
            names = _names((*COLUMNS, "embedding"))
            n = 0
            with cursor.copy(self._sql("copy {table} ({names}) from stdin (format binary)", names=names)) as copy:
                copy.set_types(["text", "text", "text", "text", "int4", "text", "bool", "vector"])
                for i, chunk in enumerate(chunks):
                    if chunk.document not in there:
                        cells = (chunk.document, digests[i], chunk.title, chunk.source, chunk.position, chunk.text)
                        copy.write_row((*cells, None if cut is None else bool(cut[i]), vectors[i]))
                        n += 1
        return n

    def delete(self, documents):
        """Delete the chunks of these documents; returns how many those were."""
        with self._transaction() as cursor:
            return cursor.execute(self._sql("delete from {table} where document = any(%s)"), [list(documents)]).rowcount

    # ---------------------------------------------------------------------------------------------------------- reading

    def count(self):
        """How many chunks the server has confirmed."""
        with self._transaction() as cursor:
            return cursor.execute(self._sql("select count(*) from {table}")).fetchone()[0]

    def rows(self, schema, after=-1):
        """A pyarrow table of the chunks whose id is larger than `after`, in the order of their ids. Their texts stay on
        the server.
        """
        names = [name for name in schema.names if name != "text"]
        parts = [schema.empty_table()]
        with self._errors(), self.connection.transaction(), self.connection.cursor("rows") as cursor:
            cursor.execute(
                self._sql("select {names} from {table} where id > %s order by id", names=_names(names)), [after]
            )
            while found := cursor.fetchmany(PAGE):
                columns = dict(zip(names, zip(*found))) | {"text": [None] * len(found)}
                parts.append(pa.table({name: columns[name] for name in schema.names}, schema=schema))
        return pa.concat_tables(parts)

    def chunks(self, ids):
        """{id: Chunk} of these rows."""
        with self._transaction() as cursor:
            query = self._sql("select id, document, position, text, title, source from {table} where id = any(%s)")
            return {row[0]: Chunk(*row[1:]) for row in cursor.execute(query, [list(ids)])}

    def texts(self):
        """{id: "title text"} of all chunks."""
        with self._transaction() as cursor:
            query = self._sql("select id, title, text from {table}")
            return {id: f"{title or ''} {text}".strip() for id, title, text in cursor.execute(query)}

    def vectors(self, ids):
        """The vectors [N, D] of these rows."""
        with self._transaction() as cursor:
            query = self._sql("select id, embedding from {table} where id = any(%s)")
            found = {id: vector.to_numpy() for id, vector in cursor.execute(query, [list(ids)], binary=True)}
        return np.stack([found[id] for id in ids]).astype(np.float32)

    def search(self, queries, k, exact, candidates):
        """(ids [Q, K], distances [Q, K]) of the nearest rows, nearest first; id -1 where fewer were found.

        queries: [Q, D] float32. exact: compare all rows at 32 bits. candidates: hnsw.ef_search.
        """
        operator = sql.SQL(OPERATORS[self.settings["metric"]][0])
        served = self.settings["kind"] == "hnsw" and not exact
        kind = sql.SQL("halfvec" if self.settings["half"] and served else "vector")
        # the outer order breaks ties as the folder's index does; in the inner one it would rule the graph out
        query = self._sql(
            "select id, distance from (select id, {column} {operator} %s::{kind} as distance from {table} "
            "order by {column} {operator} %s::{kind} limit %s) nearest order by distance, id",
            column=self._column(not served),
            operator=operator,
            kind=kind,
        )
        ids, distances = np.full((len(queries), k), -1, np.int64), np.full((len(queries), k), np.inf, np.float32)
        with self._transaction() as cursor:
            if served:
                asked = min(MOST_CANDIDATES, max(candidates, k))
                cursor.execute(f"set local hnsw.ef_search = {int(asked)}")
                cursor.execute("set local enable_seqscan = off")
                self._check_used(cursor, query, queries[0], k)
            else:
                cursor.execute("set local enable_indexscan = off")
            for i, vector in enumerate(queries):
                # not prepared: a plan that was kept would not hear of the settings above
                found = cursor.execute(query, [vector, vector, k], prepare=False).fetchall()
                ids[i, : len(found)] = [id for id, _ in found]
                distances[i, : len(found)] = [distance for _, distance in found]
        return ids, distances

    def _check_used(self, cursor, query, vector, k):
        """UserError if the server would answer without the HNSW index (once a connection)."""
        if self.checked:
            return
        plan = cursor.execute(sql.SQL("explain ") + query, [vector, vector, k]).fetchall()
        if not any(f"{self.name}_hnsw" in line for (line,) in plan):
            raise utils.UserError(
                f"--index_url {self.public}: the server does not use the hnsw index of {self.name}; was it dropped, or "
                "is it being built?"
            )
        self.checked = True

    def gb(self):
        """GB on the server: the rows, their vectors and all indexes."""
        with self._transaction() as cursor:
            size = cursor.execute("select pg_total_relation_size(to_regclass(%s))", [f'"{self.name}"']).fetchone()[0]
        return size / utils.GB
