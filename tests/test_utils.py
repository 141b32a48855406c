import subprocess
import sys
import time

import numpy as np
import pytest
from helpers import ROOT

import utils


def test_latency_gives_the_percentiles_of_what_it_timed():
    waits = iter([0, 0, 0.01, 0.02, 0.03, 0.04])  # two warm-up calls, then four
    result = utils.measure_latency(lambda: time.sleep(next(waits)), n_runs=4)
    assert set(result) == {"mean", "p50", "p95", "p99"}
    assert result["mean"] >= 25 and result["p50"] >= 25 and result["p99"] >= result["p95"] >= result["p50"]
    assert utils.latency_summary([1, 2, 3, 4]) == {
        "mean": 2.5,
        "p50": 2.5,
        "p95": np.percentile([1, 2, 3, 4], 95),
        "p99": np.percentile([1, 2, 3, 4], 99),
    }
    with pytest.raises(ValueError, match="n_runs"):
        utils.measure_latency(print, n_runs=0)


@pytest.mark.parametrize(
    ("text", "public"),
    [
        ("http://me:s3cret@host:8000/v1", "http://host:8000/v1"),
        ("https://s3cret@host/v1/", "https://host/v1/"),
        ("https://me:s3/cr?et@host/v1", "https://host/v1"),
        ("https://host/v1?api-key=s3cret&api-version=2024-06-01", "https://host/v1"),
        ("https://host/v1?x=s3cret#y=s3cret", "https://host/v1"),
        ("'http://me:s3cret@host' and https://host/?key=s3cret failed", "'http://host' and https://host/ failed"),
        ('{"url": "http://me:s3cret@[::1]/v1", "n": 1}', '{"url": "http://[::1]/v1", "n": 1}'),
        ("https://host:80/@page", "https://host:80/@page"),
        ("12:30, me@host, hf://datasets/name", "12:30, me@host, hf://datasets/name"),
    ],
)
def test_addresses_are_told_without_credentials(text, public):
    assert utils.without_credentials(text) == public
    assert utils.without_credentials({"a": [text, 1, None]}) == {"a": [public, 1, None]}


def test_flags_lose_the_parameters_of_addresses_that_are_all_of_a_value():
    prompt, url = "See https://x.org/?q=1#a=2 {text}", "http://me:s3cret@host/v1?key=s3cret"
    flags = {
        "template": prompt,
        "judge_url": f"{url} x",
        "docs": [url, f" {url}\n"],
        "model": "http://me:pw@host {text}",
    }
    told = utils.without_credentials(flags, within=False)
    assert told == {
        "template": prompt,
        "judge_url": "http://host/v1 x",
        "docs": ["http://host/v1", " http://host/v1\n"],
        "model": "http://host {text}",
    }
    argv = ("--template", prompt, "--judge_url", f"{url} x", "--docs", url)
    assert utils.without_credentials(argv, within=False) == [*argv[:3], "http://host/v1 x", "--docs", "http://host/v1"]


def test_measure_latency_passes_its_arguments_on():
    seen = []
    utils.measure_latency(lambda *args, **kwargs: seen.append((args, kwargs)), 1, 2, n_runs=3, word="x")
    assert seen == [((1, 2), {"word": "x"})] * 5  # two of them to warm up


def test_measure_takes_the_peak_inside_the_block():
    """300 MB that come and go before the block do not count, 200 MB that come and go inside it do. In a process of its
    own.
    """
    script = (
        "import time, utils\n"
        "before = bytearray(b'x') * (300 * 2**20)\n"
        "del before\n"
        "with utils.measure() as spent:\n"
        "    inside = bytearray(b'x') * (200 * 2**20)\n"
        "    time.sleep(0.1)\n"
        "    del inside\n"
        "with utils.measure() as quiet:\n"
        "    time.sleep(0.05)\n"
        "print(spent.peak_rss_gb - spent.start_rss_gb, quiet.peak_rss_gb - quiet.start_rss_gb, spent.seconds)\n"
    )
    done = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, check=True)
    grown, grown_quiet, seconds = map(float, done.stdout.split())
    assert 0.19 < grown < 0.21 and grown_quiet < 0.01 and 0.1 < seconds < 30


def test_without_cuda_the_gpu_figures_are_unknown():
    import torch

    if torch.cuda.is_available():
        pytest.skip("a GPU is here")
    assert utils.gpu_memory_used() == 0.0
    with utils.measure() as spent:
        pass
    assert spent.peak_gpu_gb is None and spent.gpu_used_gb is None


@pytest.mark.parametrize("kind", ["NVMLError", "NVMLError_LibraryNotFound"])
def test_a_card_without_nvml_is_measured_without_it(kind, monkeypatch):
    """pynvml's errors are plain Exceptions, as they are here."""
    import torch

    base = type("NVMLError", (Exception,), {})
    error = {"NVMLError": base, "NVMLError_LibraryNotFound": type(kind, (base,), {})}[kind]

    def device_memory_used():
        raise error("NVML Shared Library Not Found")

    monkeypatch.setattr(torch.cuda, "device_memory_used", device_memory_used)
    assert utils._card_memory_used() is None

    def bug():
        raise KeyError("x")

    monkeypatch.setattr(torch.cuda, "device_memory_used", bug)
    with pytest.raises(KeyError):
        utils._card_memory_used()


def test_clean_exit_is_one_line_and_code_2(capsys):
    @utils.clean_exit
    def main(argv=None):
        raise utils.UserError("this is\nnot allowed")

    with pytest.raises(SystemExit) as exit_:
        main()
    assert exit_.value.code == 2
    assert capsys.readouterr().err == "test_utils.py: error: this is not allowed\n"


def test_the_tokenizer_is_that_of_the_models(tiny_llama, tmp_path):
    """The one that the scripts load, with all its checks."""
    from harness.models import loading

    theirs = loading.load_tokenizer(tiny_llama)
    assert utils.load_tokenizer(tiny_llama).init_kwargs == theirs.init_kwargs
    for load in (utils.load_tokenizer, loading.load_tokenizer):
        with pytest.raises(utils.UserError, match="--no-thinking: this model's chat template has no such switch"):
            load(tiny_llama, thinking=False)
