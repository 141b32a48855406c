"""Which unfinished run `--resume` goes on with, and from which checkpoint."""

import json
from pathlib import Path

import utils
from harness.results import store

HELD = {}  # run folder -> the lock that this process has on it


def find_resumable(args, script):
    """The run folder that --resume means, None without the flag; UserError if no run with these flags is unfinished."""
    if args.resume is None:
        return None
    # as args.json has them, without credentials
    wanted = utils.without_credentials({k: v for k, v in vars(args).items() if k != "resume"}, within=False)
    folders = [Path(args.resume)]
    if args.resume == "auto":
        folders = sorted(Path(args.runs_dir).glob(f"*-{Path(script).stem}-*"), reverse=True)
    for folder in folders:
        try:
            had = json.loads((folder / "args.json").read_text())
            ended = json.loads((folder / "row.json").read_text())["status"] if (folder / "row.json").exists() else None
        except (OSError, ValueError):  # no run folder, or cut off before it was whole
            continue
        if ended in ("ok", "degenerate"):
            continue
        if utils.without_credentials({k: v for k, v in had.items() if k != "resume"}, within=False) == wanted:
            hold(folder)
            return folder
    where = args.runs_dir if args.resume == "auto" else args.resume
    raise utils.UserError(f"--resume: no unfinished run with these flags in {where}; run without --resume to begin one")


def hold(folder):
    """Keep a run folder for this process as long as it lives; UserError while another one trains in it.

    The lock goes with its process, however that ends. Of several processes of one run the first holds it.
    """
    folder = Path(folder).resolve()
    if utils.world()[0] or folder in HELD:
        return
    lock = store.locked(folder / "run")
    try:
        lock.acquire(blocking=False)
    except TimeoutError:  # filelock's Timeout is one
        raise utils.UserError(f"--resume: another process is at {folder}; wait until it ends, or stop it") from None
    HELD[folder] = lock


def last_checkpoint(folder):
    """The newest complete checkpoint in a run folder, or None. trainer_state.json is what the Trainer writes last."""
    complete = [path.parent for path in Path(folder).glob("checkpoints/checkpoint-*/trainer_state.json")]
    return max(complete, key=step_of, default=None)


def step_of(checkpoint):
    """The optimizer step of a checkpoint's folder: checkpoint-63 -> 63."""
    return int(checkpoint.name.split("-")[-1])
