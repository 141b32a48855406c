import json
import subprocess
import sys
from types import SimpleNamespace

import pytest
from helpers import ROOT

import utils
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
