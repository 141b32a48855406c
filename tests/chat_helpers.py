"""A faulty OpenAI-compatible endpoint, and what tests of chats read back."""

import contextlib
import http.server
import json
import socket
import time

import pytest
from helpers import SHARED

from harness.chat import benchmarks
from harness.results import store

needs_alpaca = pytest.mark.skipif(not (SHARED / "alpaca_eval").is_dir(), reason="no AlpacaEval data")
needs_mt_bench = pytest.mark.skipif(not (SHARED / "mt_bench").is_dir(), reason="no MT-Bench data")


def rows_in(tmp_path):
    return store.read_results(tmp_path / "results.csv")


def records_in(tmp_path, name):
    """The lines of all files of this name in the answers folders."""
    return [
        json.loads(line)
        for file in sorted((tmp_path / "answers").glob(f"*/{name}"))
        for line in file.read_text().splitlines()
    ]


def question(turns=("what is it",), references=()):
    return benchmarks.Question("7", tuple(turns), references=tuple(references))


def completion(content, logprobs=None, finish="stop", **more):
    """The body of a reply as an OpenAI-compatible endpoint sends it."""
    choice = {"index": 0, "finish_reason": finish, "message": {"role": "assistant", "content": content}}
    return {"choices": [{**choice, "logprobs": logprobs}], **more}


class Faulty(http.server.BaseHTTPRequestHandler):
    """An OpenAI-compatible endpoint that fails as `server.faults` says, one fault a request, and counts what it
    answered.
    """

    protocol_version = "HTTP/1.1"

    def log_message(self, *_):
        pass

    def do_POST(self):
        asked = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        with self.server.lock:
            fault = self.server.faults.pop(0) if self.server.faults else None
            self.server.bodies.append(asked)
            self.server.asked.append(
                ((asked.get("messages") or [{"content": ""}])[-1]["content"], self.headers["Authorization"])
            )
            text = self.server.content.pop(0) if self.server.content and fault is None else "B"
            sent = {name.lower(): value for name, value in self.headers.items()}
            self.server.headers.append({**sent, "path": self.path})
        if self.server.answer:  # the test's own function: body of the request -> (status, body, headers)
            return self.reply(*self.server.answer(asked))
        refused = next((name for name in self.server.refuses if name in asked), None)
        if refused:
            return self.reply(400, json.dumps({"error": {"message": f"Unsupported parameter: '{refused}'"}}))
        if fault == "drip":
            return self.drip()
        if fault == "stuck":
            time.sleep(20)
        if fault == "drop":
            self.connection.shutdown(socket.SHUT_RDWR)
            self.close_connection = True
            return
        if fault == "slow":
            time.sleep(1.5)
        if isinstance(fault, int):
            return self.reply(fault, json.dumps({"error": {"message": f"fault {fault}"}}), {"Retry-After": "0"})
        if fault == "no json":
            return self.reply(200, "<html>")
        content = "I cannot decide." if fault == "malformed" else text
        alternatives = [
            {"token": token, "logprob": value, "bytes": None} for token, value in self.server.logprobs.items()
        ]
        likely = {"content": [{**alternatives[0], "top_logprobs": alternatives}]} if alternatives else None
        self.reply(
            200,
            json.dumps(
                {
                    "id": "1",
                    "object": "chat.completion",
                    "created": 1,
                    "model": asked["model"],
                    "choices": [
                        {
                            "index": 0,
                            "finish_reason": "stop",
                            "message": {"role": "assistant", "content": content},
                            "logprobs": likely,
                        }
                    ],
                    "usage": {"prompt_tokens": 100, "completion_tokens": 1, "total_tokens": 101},
                }
            ),
        )

    def do_GET(self):
        self.reply(*self.server.listed)

    def drip(self):
        """A reply whose bytes come one by one, without end."""
        self.close_connection = True
        with contextlib.suppress(OSError):
            self.wfile.write(b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: 9999\r\n\r\n")
            while True:
                self.wfile.write(b" ")
                time.sleep(0.1)

    def reply(self, status, body, headers=()):
        data = body.encode()
        try:
            self.send_response(status)
            for key, value in {
                "Content-Type": "application/json",
                "Content-Length": str(len(data)),
                **dict(headers),
            }.items():
                self.send_header(key, value)
            self.end_headers()
            self.wfile.write(data)
        except OSError:  # the client had no patience
            self.close_connection = True


def judging_of(judge, requests):
    """What `judge.ask` keeps."""
    kept = []
    judge.ask(requests, lambda *found: kept.append(found))
    return kept


def free_port():
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return found.getsockname()[1]
