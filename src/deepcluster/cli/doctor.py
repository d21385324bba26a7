"""`deepcluster doctor RUN`."""

from __future__ import annotations

from pathlib import Path

from deepcluster.data.open import must_exist


def doctor(
    run: Path, /, *, data: str | None = None, images: int = 512, device: str = "auto", json: bool = False
) -> None:
    """Diagnoses a run: what its curves, clusters and views mean, what to change, and how many clusters to ask for.

    The findings are printed with the worst first, and saved as RUN/evaluation/doctor.json.

    Args:
        run: the run folder, of a run that is finished, stopped or broken.
        data: the training images, if they have moved; None = where they were during training.
        images: at most this many images are examined as training views and in gray; 0 = none.
    """
    must_exist(data)
    from deepcluster.engine.log import Screen
    from deepcluster.engine.run import load_run
    from deepcluster.evaluate.doctor.diagnosis import diagnose

    screen = Screen(stderr=json)
    loaded = load_run(run, device)
    diagnosis = diagnose(loaded, data, sample=images, screen=screen)
    if json:  # before it is saved, so that it is seen also where it cannot be kept
        print(diagnosis.json())
    else:
        # Sentences are wrapped at the width of the terminal, next to the column of severities.
        screen.print(diagnosis.table(), soft_wrap=False)
    diagnosis.save(loaded.folder)
