"""Worker processes: no main guard needed, one thread each, gone with their parent, a crash is one known error."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
import yaml

from hcmae.config import Profile
from hcmae.processes import BrokenProcessPool, worker_pool


def test_workers_have_one_thread_and_work_in_order() -> None:
    with worker_pool(2) as pool:
        assert list(pool.map(abs, [-1, 2, -3])) == [1, 2, 3]
        assert pool.submit(os.environ.get, "OMP_NUM_THREADS").result() == "1"
        assert pool.submit(os.getpid).result() != os.getpid()


def test_a_crash_is_a_broken_pool_and_an_error_is_itself() -> None:
    with worker_pool(1) as pool:
        with pytest.raises(ValueError, match="invalid literal"):
            pool.submit(int, "x").result()
        with pytest.raises(BrokenProcessPool):
            pool.submit(os._exit, 3).result()


def test_what_has_not_begun_can_be_dropped() -> None:
    pool = worker_pool(1)
    futures = [pool.submit(time.sleep, 0.3) for _ in range(12)]
    futures[0].result()
    pool.shutdown(wait=True, cancel_futures=True)
    assert futures[-1].cancelled()
    assert not futures[0].cancelled()


def run_script(text: str, folder: Path, repo: Path) -> subprocess.CompletedProcess[str]:
    script = folder / "script.py"
    script.write_text(text)
    env = {**os.environ, "PYTHONPATH": f"{folder}{os.pathsep}{repo}"}
    return subprocess.run([sys.executable, str(script)], cwd=folder, env=env, capture_output=True, text=True)


def test_a_script_without_a_main_guard_is_run_once(tmp_path: Path, repo: Path) -> None:
    done = run_script(
        "from hcmae.processes import worker_pool\n"
        "print('once')\n"
        "def double(number):\n"
        "    return 2 * number\n"
        "with worker_pool(2) as pool:\n"
        "    print(list(pool.map(double, range(4))))\n",
        tmp_path,
        repo,
    )
    assert done.stdout == "once\n[0, 2, 4, 6]\n", done.stderr


def test_workers_end_with_a_killed_parent(tmp_path: Path, repo: Path) -> None:
    script = tmp_path / "script.py"
    script.write_text(
        "import os, time\n"
        "from hcmae.processes import worker_pool\n"
        "pool = worker_pool(1)\n"
        "print(pool.submit(os.getpid).result(), flush=True)\n"
        "pool.submit(time.sleep, 600).result()\n"
    )
    env = {**os.environ, "PYTHONPATH": str(repo)}
    with subprocess.Popen([sys.executable, str(script)], env=env, stdout=subprocess.PIPE, text=True) as parent:
        assert parent.stdout is not None
        worker = psutil.Process(int(parent.stdout.readline()))
        parent.send_signal(signal.SIGKILL)
    worker.wait(timeout=20)
    assert not worker.is_running()


# --- the library in five lines ----------------------------------------------------------------------------------------


@pytest.fixture
def sample(repo: Path, tmp_path: Path, tiny_profile: Profile) -> str:
    """README's own block, behind one line that puts a profile of seconds in the place of ``smoke``."""
    profile = tiny_profile.model_dump(mode="json")
    profile["name"] = "smoke"
    for stage in ("mae_patch", "mae_region"):
        profile[stage]["optimisation"].update(epochs=1, samples_per_epoch=64, batch_size=32)
    profile["mae_region"]["warm_epochs"] = 1
    profile["survival"].update(epochs=1, ensemble=1, folds=2, inner_fraction=0.5)
    (tmp_path / "smoke.yaml").write_text(yaml.safe_dump(profile))
    (tmp_path / "quick.py").write_text(
        "from pathlib import Path\nfrom hcmae import config\nconfig._PROFILE_DIR = Path(__file__).parent\n"
    )
    block = (repo / "README.md").read_text(encoding="utf-8").split("```python\n")[1].split("```")[0]
    assert "run.synthesise()" in block
    assert "__main__" not in block
    return f"import quick\n{block}"


@pytest.mark.slow
def test_the_sample_of_the_readme_runs_as_a_script(sample: str, tmp_path: Path, repo: Path) -> None:
    done = run_script(sample, tmp_path, repo)
    assert done.returncode == 0, done.stderr
    assert list(tmp_path.glob("runs/**/hcmae.parquet"))


@pytest.mark.slow
def test_the_sample_of_the_readme_runs_in_a_notebook(
    sample: str, tmp_path: Path, repo: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import nbformat
    from nbclient import NotebookClient

    monkeypatch.setenv("PYTHONPATH", f"{tmp_path}{os.pathsep}{repo}")
    cells = [nbformat.v4.new_code_cell(sample), nbformat.v4.new_code_cell("import json; json.dumps(run.cancer)")]
    notebook = nbformat.v4.new_notebook(cells=cells)
    NotebookClient(notebook, kernel_name="python3", resources={"metadata": {"path": str(tmp_path)}}).execute()
    assert json.loads(notebook.cells[1].outputs[0]["data"]["text/plain"].strip("'")) == "LIHC"
    assert list(tmp_path.glob("runs/**/hcmae.parquet"))
