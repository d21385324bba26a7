"""Messages for mistakes on the command line: what is wrong, where, and what to do."""

from __future__ import annotations

import pickle
import subprocess
import sys
import warnings
from pathlib import Path

import pytest

from deepcluster.cli.main import main
from deepcluster.cli.parse import sentence
from deepcluster.errors import DeepClusterError
from deepcluster.models.export import export_backbone
from deepcluster.models.zoo import build_backbone

TRAIN = ("train", "tiny-deepcluster", "--data", "digits", "--out", "y")


def mistake(capsys: pytest.CaptureFixture[str], *words: object) -> str:
    """The one sentence of a command that must fail."""
    status, err = main([str(word) for word in words]), capsys.readouterr().err
    assert status == 2, err
    assert err.startswith("deepcluster: ") and err.count("\n") == 1 and "Traceback" not in err
    return err.removeprefix("deepcluster: ")


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("train", "--resume"), "--resume needs a value."),
        (("train",), "--data must be given: deepcluster train --data S --out RUN."),
        (("train", "--minutes", "3"), "--data must be given"),
        (("train", "--data", "digits"), "--out must be given."),
        (("train", "--data", "digits", "--out", "y", "--minutes", "0"), "--minutes is 0: give the minutes that"),
        ((*TRAIN, "--minutes", "-1"), "--minutes is -1: give the minutes that the run may take, such as 10, or"),
        ((*TRAIN, "--minutes", "5", "--epochs", "3"), "Both minutes and epochs are given"),
        (("train", "--data", "digits", "--out", "y", "--minutes=5", "--epochs=3"), "Both minutes and epochs are given"),
        (("plan", "tiny-odc", "--images", "100", "--minutes", "5"), "give --epochs and leave --minutes out."),
        (("train", "--data", "digits", "--out", "y", "--method", "ocd"), "There is no method 'ocd'. Did you mean"),
        ((*TRAIN, "--foo", "3"), "There is no option --foo. "),
        (
            ("cluster", "x", "--foo=3", "--bar", "a"),
            "--out must be given, and there is no option --foo and no option --bar.",
        ),
        (("cluster", "x", "--out", "y", "--k", "ten"), "--k takes a whole number or auto, not 'ten'."),
        (
            ("cluster", "x", "--out", "y", "--algorithm", "dbscan"),
            "takes kmeans, temi, pic or hierarchical, not 'dbscan'.",
        ),
        (("cluster", "digits", "--out", "y", "--k", "1798"), "1,797 images cannot form 1,798 clusters"),
        (("cluster", "nowhere", "--out", "y"), "or see `deepcluster --help` for what holds images"),
        (("plan", "--images", "many"), "--images takes a number, not 'many'."),
        (("presets", "tiny-d"), "These begin so: tiny-deepcluster, tiny-deepcluster-pic, tiny-deepcluster-v2"),
        (("train", "/", "--out", "y"), "/ is no preset: if these are the images, write --data /."),
        (("cluster",), "Something is missing: deepcluster cluster SOURCE --out RUN."),
        (("cluster", "--kk", "3"), "Something is missing: deepcluster cluster SOURCE --out RUN."),
        (("cluster", "--data", "a/", "--out", "y"), "without --data: deepcluster cluster a/ --out RUN."),
        (("cluster", "a/", "--data=a/", "--out", "y"), "without --data: deepcluster cluster a/ --out RUN."),
        (("curate", "--data", "a/"), "without --data: deepcluster curate a/ --size M --out FILE.txt."),
        (("assign",), "Something is missing: deepcluster assign RUN --data S --out FILE.csv."),
        ((*TRAIN, "--foo=3", "--bar", "a"), "There is no option --foo and no option --bar."),
        ((*TRAIN, "--epochs", "many"), "--epochs takes a number, not 'many'."),
        ((*TRAIN, "--optimizer.lr", "fast"), "--optimizer.lr takes a number, not 'fast'."),
        (("train", "tiny-odc", *TRAIN[2:], "--method.reassign", "-3"), "There is no option --method.reassign. "),
        (("evaluate", "x", "knn", "--seed", "3"), "Protocol knn draws nothing at random here: leave out --seed."),
        (("evaluate", "x", "retrieval", "--seed", "3"), "Protocol retrieval draws nothing at random here"),
        (("assign", "x", "y", "--data", "digits", "--out", "z.csv"), "Unexpected argument: y."),
        (("knn", "x"), "Did you mean `deepcluster evaluate RUN knn`?"),
        (("export", "MISSING.pth.tar", "--out", "x.safetensors"), "There is no MISSING.pth.tar: give a run folder, or"),
        (("features", "nowhere", "--data", "digits", "--out", "f.npy"), "There is no run folder or file nowhere, and"),
    ],
)
def test_mistake_is_one_sentence(
    words: tuple[str, ...],
    said: str,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    assert said in mistake(capsys, *words)
    assert not list(tmp_path.iterdir())


def test_a_message_in_colors_is_the_same_sentence() -> None:
    plain = (
        "╭─ Required options ─────╮\n│ Missing from deepcluster cluster: │\n│     --out PATH │\n│ ──────────── │\n"
        "│ For full helptext, run: │\n╰──────────╯\n"
    )
    colored = plain.replace("│", "\x1b[31m│\x1b[0m").replace("╭", "\x1b[1;31m╭").replace("──", "\x1b[31m──\x1b[0m")
    assert sentence(colored, "x") == sentence(plain, "x") == "--out must be given. `x --help` lists the options."


def test_similar_timm_model_is_suggested() -> None:
    with pytest.raises(DeepClusterError, match=r"did you mean 'timm:resnet10t'\?"):
        build_backbone("resnet10tt")


def test_help_of_train_shows_presets_and_resume(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["train", "--help"]) == 0
    out = capsys.readouterr().out
    assert all(option in out for option in ("--resume", "--data", "--out", "--epochs", "--overwrite"))


def test_missing_images_are_reported_before_torch_is_imported(tmp_path: Path) -> None:
    commands = [
        "train tiny-deepcluster --data nowhere --out y",
        "train --data nowhere --out y",
        "assign x --data nowhere --out y.csv",
        "features x --data nowhere --out y.npy",
        "evaluate x knn --data nowhere",
        "evaluate x knn --test nowhere",
        "doctor x --data nowhere",
    ]
    code = f"""
import sys
from deepcluster.cli.main import main
for words in {commands!r}:
    assert main(words.split()) == 2, words
    assert "torch" not in sys.modules, (words, "torch was loaded")
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert done.stderr.count("there is no file or folder nowhere") == len(commands)


def test_plain_pickle_is_refused_without_warnings(tmp_path: Path) -> None:
    from deepcluster.engine import checkpoint
    from deepcluster.models.torch_files import read_torch

    file = tmp_path / "weights.pth"
    for protocol in (2, 4, 5):
        file.write_bytes(pickle.dumps({"a": [1, 2]}, protocol))
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            with pytest.raises(DeepClusterError, match=r"weights\.pth is not a file of torch but a plain pickle"):
                read_torch(file)
            with pytest.raises(DeepClusterError, match="not a checkpoint"):
                checkpoint.load(file)


def test_export_to_torchvision_explains_a_refusal(tmp_path: Path) -> None:
    for options, said in (
        ({"image_size": 32}, "its first layers are the small ones for images up to 64 px"),
        ({"image_size": 72, "sobel": "paper"}, "it sees Sobel filters in place of color"),
    ):
        with pytest.raises(DeepClusterError, match=said):
            export_backbone(build_backbone("resnet18", **options), "torchvision", tmp_path / "x.pth")


def test_presets_name_the_page_of_their_measurements() -> None:
    from deepcluster.presets import PRESETS

    named = [preset.about for preset in PRESETS.values() if "measure" in preset.about.lower()]
    assert named and not any("the documentation" in about for about in named)
