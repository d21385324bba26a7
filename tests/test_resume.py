"""The resume file and the digest that says what it depends on."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from deepcluster.digest import digest
from deepcluster.errors import DeepClusterError
from deepcluster.resume import ResumeFile


def test_digest_depends_on_every_bit_and_on_nothing_else() -> None:
    torch.manual_seed(0)
    network = nn.Sequential(nn.Linear(3, 2), nn.BatchNorm1d(2))
    norm = nn.BatchNorm1d(2)
    same = nn.Sequential(nn.Linear(3, 2), norm)
    same.load_state_dict(network.state_dict())
    assert digest(network) == digest(same.eval())
    assert norm.running_mean is not None
    norm.running_mean[0] += 1e-7
    assert digest(network) != digest(same)
    assert digest({"a": 1, "b": (2, 3)}, Path("x")) == digest({"b": [2, 3], "a": 1}, "x")
    array = np.arange(6)
    values = [array, array.reshape(2, 3), array.astype(np.float64), array + 1, array.tolist(), torch.arange(6)]
    assert len({digest(value) for value in values}) == 6
    assert digest({"x": array}) != digest({"x": array + 1})
    assert digest(torch.ones(2, dtype=torch.bfloat16)) != digest(torch.ones(2, dtype=torch.float16))
    assert digest(torch.tensor(1.0)) and digest(torch.zeros(0))


def test_finished_stages_and_the_running_ones_state_survive(tmp_path: Path) -> None:
    file = tmp_path / "work.state"
    said: list[str] = []
    first = ResumeFile(file, {"lr": 0.1})
    assert first.run("one", lambda: 11) == 11

    def killed() -> int:
        assert first.state is None
        first.save({"weights": torch.arange(3)})
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        first.run("two", killed)

    again = ResumeFile(file, {"lr": 0.1}, say=said.append)
    assert "continuing" in said[0]
    assert again.run("one", lambda: pytest.fail("a finished stage must not run again")) == 11
    assert again.run("two", lambda: again.state["weights"].tolist()) == [0, 1, 2]
    assert again.run("three", lambda: again.state) is None  # a stage never sees another one's state
    again.remove()
    assert not file.exists()


def test_a_file_of_other_work_is_not_used_and_a_damaged_one_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "work.state"
    said: list[str] = []
    ResumeFile(file, {"lr": 0.1}).run("one", lambda: 11)
    other = ResumeFile(file, {"lr": 0.2}, say=said.append)
    assert "other settings" in said[0]
    assert other.run("one", lambda: 12) == 12
    for content in (b"broken", file.read_bytes()[:100]):
        file.write_bytes(content)
        with pytest.raises(DeepClusterError, match=r"damaged.*delete it"):
            ResumeFile(file, {"lr": 0.2})


def test_a_file_that_would_run_code_is_refused(tmp_path: Path) -> None:
    class Hostile:
        def __reduce__(self) -> tuple[Any, ...]:
            return (Path.touch, (tmp_path / "ran",))

    torch.save({"digest": Hostile()}, tmp_path / "work.state")
    with pytest.raises(DeepClusterError, match="damaged"):
        ResumeFile(tmp_path / "work.state", 0)
    assert not (tmp_path / "ran").exists()
