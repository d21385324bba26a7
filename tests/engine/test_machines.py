"""Two machines with a network between them that can be cut, as two network namespaces of Linux."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.distributed as dist

import deepcluster as dc
from deepcluster.distributed import ProcessGroup
from deepcluster.engine import checkpoint
from deepcluster.engine.heartbeat import LOST_AFTER, Heartbeat, _key
from deepcluster.errors import DeepClusterError
from processes import together

ADDRESSES = ["10.213.77.1", "10.213.77.2"]
NAMES = ["deepcluster-a", "deepcluster-b"]


def ip(*words: str) -> None:
    subprocess.run(["ip", *words], check=True, capture_output=True)


@pytest.fixture
def network() -> Iterator[None]:
    """Two namespaces, each with one end of a cable."""
    if shutil.which("ip") is None or os.geteuid() != 0:
        pytest.skip("needs Linux's ip, and rights to make networks")
    try:
        for name in NAMES:
            ip("netns", "add", name)
        ip("link", "add", "cable", "netns", NAMES[0], "type", "veth", "peer", "name", "cable", "netns", NAMES[1])
        for name, address in zip(NAMES, ADDRESSES, strict=True):
            ip("-n", name, "addr", "add", f"{address}/24", "dev", "cable")
            ip("-n", name, "link", "set", "cable", "up")
            ip("-n", name, "link", "set", "lo", "up")
    except subprocess.CalledProcessError as error:
        pytest.skip(f"no network can be made here: {error.stderr.decode().strip()}")
    else:
        yield
    finally:
        for name in NAMES:
            subprocess.run(
                f"ip netns pids {name} | xargs -r kill -9; ip netns del {name}",
                shell=True,
                check=False,
                stderr=subprocess.DEVNULL,
            )


def cable(state: str) -> None:
    ip("-n", NAMES[0], "link", "set", "cable", state)


class Machines:
    """The same command under torchrun on both."""

    def __init__(self, *words: str, silence: float = 300) -> None:
        where = ["--nnodes", "2", "--nproc-per-node", "1", "--rdzv-backend", "c10d", "--rdzv-id", "7"]
        where += ["--rdzv-endpoint", f"{ADDRESSES[0]}:29500"]
        variables = os.environ | {"GLOO_SOCKET_IFNAME": "cable", "OMP_NUM_THREADS": "1", LOST_AFTER: str(silence)}
        self.processes, self.said = [], []
        for name, address in zip(NAMES, ADDRESSES, strict=True):
            command = ["ip", "netns", "exec", name, sys.executable, "-m", "torch.distributed.run", *where]
            command += ["--rdzv-conf", f"is_host={int(name == NAMES[0])}", "--local-addr", address]
            command += ["-m", "deepcluster", *words]
            process = subprocess.Popen(
                command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=variables
            )
            lines: list[str] = []
            threading.Thread(target=lambda p=process, n=lines: n.extend(p.stdout), daemon=True).start()
            self.processes.append(process)
            self.said.append(lines)

    def wait_for(self, word: str, machines: int = 1, seconds: float = 120) -> None:
        """Until so many machines have said `word`."""
        until = time.monotonic() + seconds
        while sum(any(word in line for line in lines) for lines in self.said) < machines:
            assert time.monotonic() < until, self.text
            time.sleep(0.02)

    def end(self, seconds: float = 240) -> list[int]:
        """Their statuses, when both are done."""
        return [process.wait(seconds) for process in self.processes]

    @property
    def text(self) -> str:
        return "\n".join("".join(lines) for lines in self.said)


def train(folder: Path, epochs: int = 8) -> list[str]:
    return ["train", "tiny-deepercluster", "--data", "digits", "--epochs", str(epochs), "--out", str(folder)]


def state_of(folder: Path) -> dict[str, Any]:
    return checkpoint.load(folder / "checkpoints" / "last.ckpt")


@pytest.mark.slow
def test_a_network_that_is_away_for_seconds_changes_nothing_and_one_that_stays_away_ends_both(
    network: None, tmp_path: Path
) -> None:
    calm = Machines(*train(tmp_path / "calm"))
    assert calm.end() == [0, 0], calm.text

    short = Machines(*train(tmp_path / "short"))
    short.wait_for("epoch 2/")
    cable("down")
    time.sleep(5)
    cable("up")
    assert short.end() == [0, 0], short.text

    long = Machines(*train(tmp_path / "long"), silence=8)
    long.wait_for("epoch 2/")
    cable("down")
    long.wait_for(
        "does not answer, so this one cannot go on: see whether it is up and connected. Go on from what is"
        f" saved: deepcluster train --resume {tmp_path / 'long'}",
        machines=2,
    )
    for launcher in long.processes:  # torchrun itself waits for minutes
        launcher.kill()
    cable("up")
    again = Machines("train", "--resume", str(tmp_path / "long"))
    assert again.end() == [0, 0], again.text

    expected = state_of(tmp_path / "calm")
    for name in ("short", "long"):
        torch.testing.assert_close(state_of(tmp_path / name)["method"], expected["method"], rtol=0, atol=0)
        np.testing.assert_array_equal(
            dc.load_run(tmp_path / name).assignment, dc.load_run(tmp_path / "calm").assignment
        )


def _hear(group: ProcessGroup, other: str) -> list[bool]:
    """Whether the other process is lost: soon, and after more than the silence that is allowed."""
    os.environ[LOST_AFTER] = "1"
    over = threading.Event()
    if group.is_first or other != "silent":
        heartbeat = Heartbeat(over)
    else:
        dist.distributed_c10d._get_default_store().set(_key(1), "0")
    group.barrier()
    time.sleep(0.4)
    found = [heartbeat.is_lost()] if group.is_first else []
    if other == "done" and not group.is_first:
        over.set()
        heartbeat.join()
    time.sleep(1.6)
    return [*found, heartbeat.is_lost()] if group.is_first else []


@pytest.mark.parametrize(("other", "lost"), [("there", False), ("done", False), ("silent", True)])
def test_a_silent_process_is_lost(other: str, lost: bool) -> None:
    assert together(_hear, 2, other)[0] == [False, lost]


def test_seconds_that_are_no_number(monkeypatch: pytest.MonkeyPatch) -> None:
    for given in ("soon", "0", "nan"):
        monkeypatch.setenv(LOST_AFTER, given)
        with pytest.raises(DeepClusterError, match=f"LOST_AFTER is '{given}'"):
            Heartbeat(threading.Event())
