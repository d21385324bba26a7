"""What a run folder says about its training: `diagnose(run)`.

`collect` measures, every function in `CHECKS` judges one thing, and `Diagnosis` prints what they found.
"""

from deepcluster.evaluate.doctor.diagnosis import CHECKS, Diagnosis, diagnose, run_checks

__all__ = ["CHECKS", "Diagnosis", "diagnose", "run_checks"]
