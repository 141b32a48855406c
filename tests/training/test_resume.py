import json
import subprocess
import sys
from types import SimpleNamespace

import pytest
from helpers import ROOT

import utils
from harness.results.run import Run
from harness.training import resume


def test_a_run_that_another_process_trains_is_not_resumed(tmp_path):
    """And is resumed once that process has been killed."""
    folder = tmp_path / "20260101-000000-finetune-abcdef"
    folder.mkdir()
    (folder / "args.json").write_text(json.dumps({"runs_dir": str(tmp_path), "resume": None}))
    args = SimpleNamespace(runs_dir=str(tmp_path), resume="auto")
    code = f"from harness.training import resume; resume.hold({str(folder)!r}); print('held', flush=True); input()"
    other = subprocess.Popen([sys.executable, "-c", code], cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert other.stdout.readline() == b"held\n"
    with pytest.raises(utils.UserError, match="another process is at"):
        resume.find_resumable(args, "finetune.py")
    other.kill()
    other.communicate()
    assert resume.find_resumable(args, "finetune.py") == folder


@pytest.mark.parametrize(
    "flags",
    [
        {"template": "See https://x.org/?q=1 {text}"},
        {"dataset": "https://me:s3cret@x.org/data.csv?key=s3cret"},
        {"template": "https://me:s3cret@x.org {text}", "label_words": ["a", "b"]},
    ],
)
def test_a_run_whose_flags_hold_an_address_is_found_again(tmp_path, flags):
    places = {"runs_dir": str(tmp_path / "runs"), "resume": None, "results": str(tmp_path / "r.csv")}
    flags = {"seed": 0, "batch_size": 1, **places, **flags}
    run = Run(SimpleNamespace(**flags), "finetune.py", "full_finetuning")
    run.path("model")
    assert "s3cret" not in (run.dir / "args.json").read_text() + run.row["args"]
    assert resume.find_resumable(SimpleNamespace(**{**flags, "resume": "auto"}), "finetune.py") == run.dir
    other = {**flags, "resume": "auto", "template": "See https://x.org/?q=2 {text}"}
    with pytest.raises(utils.UserError, match="no unfinished run with these flags"):
        resume.find_resumable(SimpleNamespace(**other), "finetune.py")
