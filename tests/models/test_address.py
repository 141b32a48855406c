import socket

import pytest

import utils
from harness.models import address


@pytest.mark.parametrize(
    "host", ["localhost", "127.0.0.1:8000", "127.9.9.9", "[::1]:80", "0.0.0.0:8000", "a.localhost"]
)
def test_plain_http_goes_to_this_machine(host):
    assert address.read(f"http://{host}/v1").public == f"http://{host}/v1"


@pytest.mark.parametrize(
    "host", ["example.com", "10.0.0.1", "localhost.example.com", "me@example.com", "localhost@example.com", "[2001::1]"]
)
def test_plain_http_to_another_machine_wants_a_flag(host):
    with pytest.raises(utils.UserError, match="--judge_plain_http"):
        address.read(f"http://{host}/v1")
    assert address.read(f"http://{host}/v1", plain_http=True).scheme == "http"
    assert address.read(f"https://{host}/v1").scheme == "https"


@pytest.mark.parametrize(
    "url",
    [
        "http://",
        f"https://{'a' * 70}.com/v1",
        "https://a b/v1",
        "https://a:99999/v1",
        "https://[::1/v1",
        "https://a\\b/",
    ],
)
def test_a_malformed_address_is_one_line(url):
    with pytest.raises(utils.UserError, match="not a valid address"):
        address.read(url)


def test_an_address_is_told_without_what_is_sent():
    found = address.read("https://me:s3cret@host/v1?api-key=s3cret&api-version=3")
    assert (found.public, found.parameters) == ("https://host/v1", {"api-key": "s3cret", "api-version": "3"})
    assert found.url == "https://me:s3cret@host/v1" and "s3cret" not in repr(found)
    with pytest.raises(utils.UserError) as error:
        address.read("http://me:s3cret@host/v1?api-key=s3cret")
    assert "s3cret" not in str(error.value)


def test_a_parameter_may_be_empty_but_stands_once():
    assert address.read("https://host/v1?debug&key=").parameters == {"key": "", "debug": ""}
    with pytest.raises(utils.UserError, match="the parameter key stands in it twice"):
        address.read("https://host/v1?key=s3cret&key=other")


def test_the_secrets_of_an_address_are_known_in_both_spellings():
    found = address.read("https://me:hunt%20er@host/v1?api-key=s3%2Fcret&v=3")
    assert {"hunt er", "hunt%20er", "s3/cret", "s3%2Fcret"} <= set(found.secrets) and "3" not in found.secrets


def test_a_key_goes_only_where_it_was_meant_to_go(monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", "sk-1")
    monkeypatch.setenv("MINE", " k2\n")
    assert address.key_for("api.openai.com") == address.key_for("eu.api.openai.com") == "sk-1"
    for host in ("localhost", "example.com", "openai.com.example.com", "notopenai.com"):
        assert address.key_for(host) is None
        assert address.key_for(host, "MINE") == "k2" and address.key_for(host, "OPENAI_API_KEY") == "sk-1"
    monkeypatch.setenv("MINE", "k\u00e9")
    monkeypatch.delenv("OPENAI_API_KEY")
    for host, variable in (("api.openai.com", None), ("example.com", "sk-typed-by-mistake"), ("example.com", "MINE")):
        with pytest.raises(utils.UserError) as error:
            address.key_for(host, variable)
        assert "sk-typed" not in str(error.value) and "k\u00e9" not in str(error.value)


def test_where_nothing_listens_is_said(monkeypatch):
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)
    with socket.socket() as taken:  # bound, but nobody listens
        taken.bind(("127.0.0.1", 0))
        with pytest.raises(utils.UserError, match="nothing answers"):
            address.check_reachable(address.read(f"http://me:s3cret@127.0.0.1:{taken.getsockname()[1]}/v1"))
