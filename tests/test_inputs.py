import os
import socket

import pytest

import utils
from harness import inputs


def test_pipes_devices_and_sockets_are_no_inputs(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "link").symlink_to(tmp_path / "pipe")
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind(str(tmp_path / "s"))
    for path in (tmp_path / "pipe", tmp_path / "link", "/dev/zero", tmp_path / "s"):
        with pytest.raises(utils.UserError, match="--dataset .*: a pipe or device; write what it"):
            inputs.look(path, "--dataset")
    (tmp_path / "file").touch()
    assert (inputs.look(tmp_path / "file"), inputs.look(tmp_path)) == ("file", "folder")
    for path in (tmp_path / "nothing", tmp_path / "file/below", "n" * 300, "a\0b", "~nobody/x"):
        assert inputs.look(path) is None


def test_what_exists(tmp_path):
    (tmp_path / "file").touch()
    assert inputs.exists(tmp_path / "file") and inputs.exists("~")
    for name in ("nothing", "file/below", "n" * 300, "a\0b"):
        assert not inputs.exists(f"{tmp_path}/{name}")
    assert not inputs.exists("~nobody_of_that_name/x")


def test_what_may_not_be_seen_is_one_line(monkeypatch):
    def refuse(*args, **kwargs):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(inputs.os, "stat", refuse)
    with pytest.raises(utils.UserError, match="--dataset a.jsonl: Permission denied"):
        inputs.look("a.jsonl", "--dataset")
    assert inputs.exists("a.jsonl")


@pytest.mark.parametrize(
    "text, message",
    [
        (b"[" * 100_000, "nested too deeply"),
        (b"{", "cannot be read as JSON"),
        (b'{"n": ' + b"1" * 5000 + b"}", "cannot be read as JSON"),
        (b"\xff\xfe\x00", "cannot be read as JSON"),
        (b"[1]", "an object is expected, not list"),
        (b"null", "an object is expected, not NoneType"),
    ],
)
def test_json_that_cannot_be_read_is_one_line(text, message, tmp_path):
    (tmp_path / "a.json").write_bytes(text)
    with pytest.raises(utils.UserError, match=message) as raised:
        inputs.read_json(tmp_path / "a.json", dict, "--adapter")
    assert str(raised.value).startswith("--adapter") and len(str(raised.value)) < 600


def test_json_is_read_with_and_without_a_byte_order_mark(tmp_path):
    (tmp_path / "a.json").write_bytes('﻿{"é": 1}'.encode())
    assert inputs.read_json(tmp_path / "a.json", dict) == {"é": 1}
    (tmp_path / "b.json").write_text("3")
    assert inputs.read_json(tmp_path / "b.json") == 3
