import sys
import threading
import time

import psutil

from harness import processes


def test_a_child_that_starts_others_until_it_is_killed_leaves_none(tmp_path):
    """One that ignores SIGTERM and starts a process every few milliseconds: what it starts meanwhile ends as well."""
    code = (
        "import signal, subprocess, time\n"
        "signal.signal(signal.SIGTERM, signal.SIG_IGN)\n"
        f"open('{tmp_path}/started', 'w').close()\n"
        "while True:\n"
        "    subprocess.Popen(['sleep', '61.5'], start_new_session=True)\n"
        "    time.sleep(0.005)\n"
    )
    children = processes.Children()
    codes = []
    thread = threading.Thread(target=lambda: codes.append(children.run([sys.executable, "-c", code])))
    thread.start()
    while not (tmp_path / "started").exists():
        time.sleep(0.01)
    time.sleep(0.1)
    children.end()
    thread.join()
    time.sleep(0.1)
    left = [p for p in psutil.process_iter(["cmdline", "status"]) if (p.info["cmdline"] or [])[-1:] == ["61.5"]]
    for process in left:
        process.kill()
    assert codes == [-9] and [p for p in left if p.info["status"] != "zombie"] == []
    assert children.run([sys.executable, "-c", ""]) == -15  # nothing is started after the end


def test_a_child_may_clean_up_after_sigterm(tmp_path):
    code = (
        "import signal, sys, time\n"
        f"def leave(*_):\n    open('{tmp_path}/cleaned', 'w').close()\n    sys.exit(7)\n"
        "signal.signal(signal.SIGTERM, leave)\n"
        f"open('{tmp_path}/started', 'w').close()\n"
        "time.sleep(60)\n"
    )
    children, codes = processes.Children(), []
    thread = threading.Thread(target=lambda: codes.append(children.run([sys.executable, "-c", code])))
    thread.start()
    while not (tmp_path / "started").exists():
        time.sleep(0.01)
    children.end()
    thread.join()
    assert codes == [7] and (tmp_path / "cleaned").exists()
