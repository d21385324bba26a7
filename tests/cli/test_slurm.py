"""Under SLURM, by a stub of its srun: the documented job trains, is requeued and goes on, and commands share images."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from deepcluster.cli.main import main
from deepcluster.distributed import is_secondary_process, launched
from deepcluster.engine.run import load_run

ROOT = Path(__file__).parents[2]
JOB = {"SLURM_JOB_ID": "1234", "SLURM_JOB_NAME": "train", "SLURM_NTASKS": "2", "SLURM_NTASKS_PER_NODE": "2"}
JOB |= {"SLURM_NNODES": "1", "SLURM_NODELIST": "localhost", "SLURM_NODEID": "0", "SLURM_LOCALID": "0"}
JOB |= {"SLURM_PROCID": "0"}
"""What the script of a job of two tasks on one machine finds, itself being started once."""
SRUN = f"""#!{sys.executable}
import os, subprocess, sys
started = []
for rank in range(int(os.environ["SLURM_NTASKS"])):
    own = {{"SLURM_PROCID": str(rank), "SLURM_LOCALID": str(rank), "SLURM_STEP_NUM_TASKS": os.environ["SLURM_NTASKS"]}}
    started.append(subprocess.Popen(sys.argv[1:], env=os.environ | own))
    with open(os.environ["STARTED"], "a") as file:
        file.write(f"{{started[-1].pid}}\\n")
sys.exit(max(each.wait() for each in started))
"""


@pytest.fixture
def job(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, str]:
    """The environment of a job; srun, scontrol and deepcluster are found, and srun writes down whom it starts."""
    tools = tmp_path / "bin"
    tools.mkdir()
    scontrol = f'#!/bin/sh\necho "$@" >> {tmp_path}/scontrol\n'
    ours = f'#!/bin/sh\nexec {sys.executable} -m deepcluster "$@"\n'
    for name, script in {"srun": SRUN, "scontrol": scontrol, "deepcluster": ours}.items():
        (tools / name).write_text(script)
        (tools / name).chmod(0o755)
    port = {"MASTER_PORT": str(20_000 + os.getpid() % 10_000), "OMP_NUM_THREADS": "1"}
    found = {"STARTED": str(tmp_path / "started"), "PATH": f"{tools}:{os.environ['PATH']}"}
    return {**os.environ, **JOB, **port, **found}


def script_of(run: Path) -> str:
    """The job of the documentation, with a small run for the large one."""
    page = (ROOT / "docs/processes.md").read_text()
    script: str = next(block for block in re.findall(r"```\n(.*?)```", page, re.S) if "#SBATCH" in block)
    large = "deepercluster-vgg16 --data /shared/yfcc100m.json"
    assert large in script and "/shared/runs/deeper" in script
    small = "tiny-deepercluster --data digits --epochs 4 --save-minutes 0 --method.k 8"
    return script.replace(large, small).replace("/shared/runs/deeper", str(run))


@pytest.mark.slow
def test_the_documented_job_is_requeued_and_goes_on(job: dict[str, str], tmp_path: Path) -> None:
    run = tmp_path / "run"
    (tmp_path / "job.sh").write_text(script_of(run))
    first = subprocess.Popen(["bash", tmp_path / "job.sh"], env=job)
    until = time.monotonic() + 120
    while not (run / "checkpoints/last.ckpt").exists() and time.monotonic() < until and first.poll() is None:
        time.sleep(0.05)
    os.kill(int((tmp_path / "started").read_text().split()[1]), signal.SIGTERM)  # one of them is enough
    first.wait(120)
    assert (tmp_path / "scontrol").read_text() == "requeue 1234\n"
    assert len(load_run(run).metrics) < 4
    subprocess.run(["bash", tmp_path / "job.sh"], env=job, check=False, timeout=240)
    assert len(load_run(run).metrics) == 4 and (tmp_path / "scontrol").read_text().count("\n") == 1
    assert load_run(run).config["processes"] == 2


@pytest.mark.slow
def test_tasks_share_the_images_of_one_command(job: dict[str, str], tmp_path: Path) -> None:
    words = ["train", "tiny-deepcluster", "--data", "digits", "--epochs", "1", "--method.k", "4"]
    assert main([*words, "--out", str(tmp_path / "run")]) == 0
    together, alone = tmp_path / "together.csv", tmp_path / "alone.csv"
    assign = ["assign", str(tmp_path / "run"), "--data", "digits", "--out"]
    done = subprocess.run(
        ["srun", "deepcluster", *assign, together], env=job, capture_output=True, text=True, check=True
    )
    assert main([*assign, str(alone)]) == 0
    assert done.stdout.count("1,797 images") == 1, "one of the tasks says it"
    one, two = (np.loadtxt(file, delimiter=",", skiprows=1, usecols=(0, 2)) for file in (alone, together))
    np.testing.assert_array_equal(one, two)


@pytest.mark.parametrize(
    ("more", "found", "secondary"),
    [
        ({}, None, False),  # the job's own script, which is there once
        ({"SLURM_STEP_NUM_TASKS": "2"}, (2, 1), False),
        ({"SLURM_STEP_NUM_TASKS": "2", "SLURM_PROCID": "1"}, (2, 1), True),
        ({"SLURM_STEP_NUM_TASKS": "8", "SLURM_NNODES": "2", "SLURM_PROCID": "7"}, (4, 2), True),
        ({"SLURM_STEP_NUM_TASKS": "1", "SLURM_NTASKS": "1"}, None, False),  # srun --ntasks=1
    ],
)
def test_tasks_are_those_that_srun_started(
    more: dict[str, str], found: tuple[int, int] | None, secondary: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in (JOB | more).items():
        monkeypatch.setenv(name, value)
    assert (launched(), is_secondary_process()) == (found, secondary)


def test_a_forgotten_srun_is_a_sentence(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for name, value in JOB.items():
        monkeypatch.setenv(name, value)
    out = tmp_path / "run"
    assert main(["train", "tiny-deepcluster", "--data", "digits", "--out", str(out), "--epochs", "1"]) == 2
    said = capsys.readouterr().err
    assert "This SLURM job has 2 tasks, which only srun starts" in said and said.count("\n") == 1 and not out.exists()


def test_what_one_process_does_is_not_done_by_all_tasks(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for name, value in (JOB | {"SLURM_STEP_NUM_TASKS": "2"}).items():
        monkeypatch.setenv(name, value)
    assert main(["report", "run"]) == 2
    assert "runs on one process: start it without srun" in capsys.readouterr().err
