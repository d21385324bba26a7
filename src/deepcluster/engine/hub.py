"""Runs on the Hugging Face hub, there and back."""

from __future__ import annotations

from pathlib import Path
from tempfile import TemporaryDirectory

from deepcluster.engine.model_card import write_hub_folder
from deepcluster.engine.run import Run, load_subject
from deepcluster.engine.subject import Subject
from deepcluster.errors import DeepClusterError, first_line
from deepcluster.models.hugging_face import HUB


def push(run: Run, repo: str, private: bool, token: str | None, message: str) -> str:
    """See `Run.push_to_hub`."""
    from huggingface_hub import HfApi

    with TemporaryDirectory() as made:
        folder = write_hub_folder(run, Path(made) / "run")
        try:
            api = HfApi(token=token)
            address = api.create_repo(repo, private=private, exist_ok=True)
            api.upload_folder(repo_id=address.repo_id, folder_path=folder, commit_message=message)
        except Exception as error:  # of the connection, the account, the name
            raise DeepClusterError(
                f"The run could not be put on the hub as {repo} ({first_line(error)}): `hf auth login` tells the hub"
                " who you are, and Run.save_pretrained writes the same to a folder."
            ) from None
    return str(address)


def from_pretrained(name: str | Path, *, revision: str | None = None, device: str = "auto") -> Subject:
    """Opens what `Run.save_pretrained` wrote or `Run.push_to_hub` put on the hub: `assign`, `features`, `centroids`.

    Args:
        name: the folder, or a repository such as "we/photos", which is downloaded once. A folder or repository of timm
            will do too: it has features, and no clusters.
        revision: branch, tag or commit of a repository; None = main.
        device: where features are computed: auto, cpu, cuda, mps.

    Raises:
        DeepClusterError: there is no such folder or repository, or what it holds is something else or damaged.

    Examples:
        >>> import deepcluster as dc
        >>> dc.from_pretrained("we/photos").assign("new_photos/").save("clusters.csv")  # doctest: +SKIP
    """
    named = str(name)
    if named.startswith(HUB) or Path(name).exists():
        if revision is not None:
            raise DeepClusterError(f"A revision is of a repository's plain name, and {name} is none: leave it out.")
        return load_subject(name, device=device)
    return load_subject(f"{HUB}{named}" + (f"?revision={revision}" if revision else ""), device=device)
