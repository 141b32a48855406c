"""Where a data set's rows come from: files, folders, what `datasets` saved, the hub."""

import re
from pathlib import Path

import datasets
import pyarrow

import utils
from harness import flags, inputs
from harness.data import readers, splits

# of several files of one split: train-00000-of-00002.parquet, also with a hash behind; train_0.jsonl
SHARD = re.compile(r"(?P<base>.*?)[-_.]?(?P<index>\d{1,6})(?:-of-(?P<total>\d{1,6}))?(?:-[0-9a-f]{8,})?")
NO_DATA = {"source.json", "corpus.jsonl", "queries.jsonl", "dataset_info.json", "dataset_infos.json", "state.json"}


def read_splits(dataset, subset, files, columns=None, named=(), encoding=None):
    """({split: rows}, {column: label names}, notes) of {split: file}, of a folder or file, or of a hub data set.

    The label names are those of ClassLabel columns of `datasets`. The split "all" is what has no split's name. columns,
    named, encoding: as for readers.read_table.
    """
    notes, options = [], {"columns": columns, "named": named, "encoding": encoding}
    if files:
        parts = {split: [Path(file)] for split, file in files.items()}
        return _read_files(parts, options, notes)
    path = inputs.expand_path(dataset)
    there = inputs.look(path)
    if there and subset:
        path = path / subset
        there = inputs.look(path)
        if there != "folder":
            raise utils.UserError(f"--subset {subset}: {dataset} is a local path and has no such subfolder")
    if there == "folder" and (inputs.look(path / "dataset_dict.json") or inputs.look(path / "state.json")):
        return _from_datasets(_load_from_disk(path), str(path), notes)
    if there == "folder":
        return _read_files(_local_files(path, notes), options, notes)
    if there == "file":
        rows = readers.read_parts(path, **options, notes=notes)
        if isinstance(rows, dict):
            found, others = splits.assign(rows)
            return _pick_splits(found, others, rows, str(path), notes), {}, notes
        return {"all": rows}, readers.class_names(path), notes
    return _from_datasets(_load_from_hub(dataset, subset), dataset, notes)


def _read_files(parts, options, notes):
    """What `read_splits` returns, of {split: [files]}."""
    rows, declared = {}, {}
    for split, files in parts.items():
        rows[split] = [row for file in files for row in readers.read_table(file, **options, notes=notes)]
        for file in files:
            declared = {**readers.class_names(file), **declared}
    return rows, declared, notes


# ------------------------------------------------------------------------------------------------------------- folders


def _local_files(folder, notes):
    """{split: [files]} of a folder: train|validation|test.*, also as a word of the name (sent_dev.tsv), and eval.*.

    A split may be several numbered files, or a folder of files. {"all": [files]} where the folder has one data file, or
    one numbered series, of another name. A folder without data files may have them in its folder data. What is passed
    over is added to `notes`.
    """
    files, folders = _listed(folder)
    found, others = splits.assign(file.stem for file in files)
    parts = {split: [file for file in files if file.stem in stems] for split, stems in found.items()}
    if not parts:
        within, _ = splits.assign(sub.name for sub in folders)
        parts = {
            split: [file for name in names for file in _listed(folder / name)[0]] for split, names in within.items()
        }
        parts = {split: some for split, some in parts.items() if some}
    if not parts and not files and any(sub.name == "data" for sub in folders):
        return _local_files(folder / "data", notes)
    if not parts and files and len(_series_names(files)) == 1:
        parts = {"all": files}
    if not parts:
        names = (
            ", ".join([*(file.name for file in files), *(f"{sub.name}/" for sub in folders)][:20]) or "no data files"
        )
        wanted = f"train|validation|test.({'|'.join(flags.DATA_FORMATS)})"
        hint = "; --subset names a subfolder" if folders and not files else ""
        raise utils.UserError(f"{folder}: no {wanted} in this folder, it has {names}{hint}")
    passed = [file.name for file in files if file.stem in others and file.name.lower() not in NO_DATA]
    if passed:
        notes.append(f"passed over in {folder}: {', '.join(passed[:5])}{', ..' if len(passed) > 5 else ''}")
    return {split: _series(some, folder, split) for split, some in parts.items()}


def _listed(folder):
    """([data files], [subfolders]) of a folder, sorted, hidden ones left out; UserError where it cannot be read."""
    try:
        there = sorted(path for path in folder.iterdir() if not path.name.startswith("."))
        folders = [path for path in there if path.is_dir()]
    except OSError as error:
        raise utils.UserError(f"{folder} cannot be read: {error.strerror}") from None
    files = [path for path in there if readers.file_kind(path) and path not in folders]
    return files, folders


def _series_names(files):
    """The different series of numbered files, each (base, total, suffix), and files that are in none."""
    matches = [SHARD.fullmatch(file.stem) for file in files]
    return {(match["base"], match["total"], file.suffix) if match else file for match, file in zip(matches, files)}


def _series(files, folder, split):
    """The files of one split: one file, or numbered ones in the order of their numbers, none of which is missing."""
    if len(_series_names(files)) > 1:
        both = f"both {files[0].name} and {files[1].name} look like the {split} split"
        raise utils.UserError(f"{folder}: {both}; use --{split}_file")
    match = SHARD.fullmatch(files[0].stem)
    if match is None or (len(files) == 1 and match["total"] is None):
        return files
    indexes = [int(SHARD.fullmatch(file.stem)["index"]) for file in files]
    total = int(match["total"] or len(files))
    start = 1 if min(indexes) == 1 and (match["total"] is None or max(indexes) == total) else 0
    wanted = range(start, start + total)
    if sorted(indexes) != list(wanted):
        raise utils.UserError(
            f"{folder}: the {split} split is {len(files)} numbered files, {files[0].name} to {files[-1].name}, but not "
            f"each number from {wanted[0]} to {wanted[-1]} once; add what is missing, or use --{split}_file"
        )
    return [file for _, file in sorted(zip(indexes, files))]


def only_file(dataset):
    """The file that a path names, or the one data file of a folder; None for anything else."""
    path = inputs.expand_path(dataset)
    there = inputs.look(path)
    files = [path] if there == "file" else _listed(path)[0] if there == "folder" else []
    return files[0] if len(files) == 1 else None


# ------------------------------------------------------------------------------------------------- the datasets library


def _load_from_disk(path):
    """The Dataset or DatasetDict of a save_to_disk folder."""
    try:
        return datasets.load_from_disk(str(path))
    # broken or foreign JSON and Arrow files
    except (OSError, ValueError, KeyError, TypeError, AttributeError, pyarrow.ArrowException) as error:
        raise utils.UserError(
            f"{path} looks like a save_to_disk folder of `datasets` and cannot be read ({_first_line(error)})"
        ) from None


def _load_from_hub(dataset, subset):
    """The DatasetDict of a hub name."""
    try:
        return datasets.load_dataset(dataset, subset)
    # an unknown name or subset, no connection, no cache, files that do not fit
    except (OSError, ValueError, RuntimeError, datasets.exceptions.DatasetsError) as error:
        raise utils.UserError(
            f"--dataset {dataset[:200]} {subset or ''}: no such local path, and the hub does not give it "
            f"({_first_line(error)[:300]}); give a folder or file, or run `python prepare_data.py demo` for "
            "assets/data/movie_reviews"
        ) from None


def _from_datasets(loaded, name, notes):
    """What `read_splits` returns, of a Dataset or DatasetDict."""
    if not isinstance(loaded, dict):
        loaded = {"all": loaded}
    if not loaded:
        raise utils.UserError(f"{name} holds no splits")
    found, others = splits.assign(loaded)
    rows = _pick_splits(found, others, loaded, name, notes)
    features = next(iter(rows.values())).features
    names = {column: kind.names for column, kind in features.items() if isinstance(kind, datasets.ClassLabel)}
    return {split: part.to_list() for split, part in rows.items()}, names, notes


def _pick_splits(found, others, parts, name, notes):
    """{split: rows} of {name: rows}, one name for each split; what is passed over is added to `notes`."""
    if not found:
        if len(parts) > 1:
            raise utils.UserError(
                f"{name} has the splits {', '.join(parts)[:200]}; train, validation or test is wanted"
            )
        return {"all": next(iter(parts.values()))}
    exact = {split: next((one for one in names if one == split), names[0]) for split, names in found.items()}
    passed = [one for one in parts if one not in exact.values() and one != "unsupervised"]
    passed = [one for one in passed if not splits.OTHER_GENRES.search(one)]
    if passed:
        notes.append(f"splits passed over: {', '.join(passed[:5])}{', ..' if len(passed) > 5 else ''}")
    return {split: parts[one] for split, one in exact.items()}


def _first_line(error):
    return str(error).splitlines()[0] if str(error) else type(error).__name__
