"""Kernels for GPUs in Triton's interpreter: all tests of the k-means kernel, and some of the color kernels, which take
longer; in one process, since to start one takes as long as they do."""

from __future__ import annotations

from pathlib import Path

import pytest

from interpreter import passed_in_interpreter

TESTS = Path(__file__).parent
COLORS = ["test_colors_are_exact_where_no_resize_rounds[24-64]", "test_as_many_operations_for_many_images_as_for_few"]


def test_kernels_pass_their_tests() -> None:
    pytest.importorskip("triton", reason="this torch comes without Triton")
    kmeans, colors = TESTS / "clustering" / "test_assign_triton.py", TESTS / "data" / "test_augment.py"
    assert passed_in_interpreter(str(kmeans), *(f"{colors}::{name}" for name in COLORS)) >= 22
