"""Is a model or data set local, cached or reachable? Asked before anything heavy is loaded."""

import contextlib
import os
import threading
import urllib.request
from pathlib import Path

import utils

FILE_TYPES = (".jsonl", ".json", ".csv", ".tsv", ".parquet", ".txt", ".md")  # a name with such an ending is a file
MODELS = ("model", "gen_model", "embed_model", "reranker", "teacher")  # flags that name one
DEMO_MODELS = "assets/models/SmolLM2-135M-Instruct or assets/models/all-MiniLM-L6-v2"


def hub_answers(seconds=5.0):
    """True if the hub's endpoint answers. Asked in a thread, since the look-up of a host name has no time limit."""
    answered, done = [], threading.Event()

    def ask():
        request = urllib.request.Request(os.environ.get("HF_ENDPOINT", "https://huggingface.co"), method="HEAD")
        try:
            urllib.request.urlopen(request, timeout=seconds)
            answered.append(True)
        except urllib.error.HTTPError as error:
            if error.code not in (403, 407, 502, 503, 504):  # these come from a proxy that refuses
                answered.append(True)
        except (OSError, ValueError):
            pass
        done.set()

    threading.Thread(target=ask, daemon=True).start()
    done.wait(seconds)
    return bool(answered)


def is_path(name):
    """Whether a name can be no name of the hub."""
    local = name.startswith((".", "/", "~", "assets/")) or name.count("/") > 1
    return local or Path(name).suffix in FILE_TYPES


def check_names(models=None, datasets=None):
    """UserError, with the offline way out, unless each name is a local path, cached, or the hub can be reached.

    models, datasets: {flag: name or path}; None values are skipped. To be called before anything heavy is imported: if
    the hub does not answer, the Hugging Face libraries are put in offline mode, so that what is cached loads at once.
    """
    remote = []
    for flag, name in {**(models or {}), **(datasets or {})}.items():
        if name is not None and not name.strip():
            raise utils.UserError(f"{flag}: the name is empty; give a folder or a hub name")
        if name is None or utils.exists(name):
            continue
        if is_path(name):
            hint = (
                f" in {Path.cwd()}; run `python prepare_data.py demo` there first" if name.startswith("assets/") else ""
            )
            raise utils.UserError(f"{flag} {name}: no such file or folder{hint}")
        remote.append(flag)
    if not remote:
        return
    if os.environ.get("HF_HUB_OFFLINE", "0").upper() not in ("1", "TRUE", "YES", "ON"):
        if hub_answers():
            return
        os.environ["HF_HUB_OFFLINE"] = "1"  # the libraries read it when they are imported, which is later
    os.environ["HF_DATASETS_OFFLINE"] = "1"
    for flag in remote:
        if (models or {}).get(flag) is not None:  # the datasets library answers for its own cache
            _check_cache(flag, models[flag])


def cached_file(name, file):
    """The path of a file of a hub name in the cache, None where it is not there; ValueError for what is no hub name."""
    # huggingface_hub reads HF_HUB_OFFLINE when it is imported
    from huggingface_hub import try_to_load_from_cache

    aliases = (name,) if "/" in name else (name, f"sentence-transformers/{name}")
    found = (try_to_load_from_cache(alias, file) for alias in aliases)
    return next((path for path in found if isinstance(path, str)), None)


def commit(name):
    """The commit of a model's cached files, None where it is not in the cache of the hub."""
    with contextlib.suppress(ValueError):
        path = cached_file(name, "config.json")
        return Path(path).parent.name if path else None  # .../snapshots/COMMIT/config.json
    return None


def _check_cache(flag, name):
    """UserError unless the model or adapter is in the cache of the hub."""
    try:
        cached = cached_file(name, "adapter_config.json" if flag == "--adapter" else "config.json")
    except ValueError:
        raise utils.UserError(f"{flag} {name}: no such folder, and not a name that the hub allows") from None
    if not cached:
        raise utils.UserError(
            f"{flag} {name}: the hub cannot be reached and this name is not in the cache; give a local folder, or run "
            f"`python prepare_data.py demo` and use {DEMO_MODELS}"
        )
