"""Says when the conventional training diverges, before its policy is optimised."""

import numpy as np

from lljax.engine.policy_memory import finite_rows
from lljax.engine.progress import log
from lljax.engine.sweep_state import Sweep
from lljax.errors import RunFailed

DIVERGED = 10  # times the initial loss


def check_losses(sweep: Sweep, learning_rate: float) -> None:
    """Looks at the loss curves of the conventional policy; warns where it does not learn.

    Raises:
      RunFailed: the desired loss diverges, or the validation loss is not finite.
    """
    rate = f"inner.learning_rate ({learning_rate:g})"
    check_curve(sweep.desired, np.arange(len(sweep.desired)), learning_rate)
    validation = sweep.curves["validation"]
    if not np.isfinite(validation).all():
        raise RunFailed(
            f"the validation loss of the conventional policy is not finite from inner step "
            f"{np.argmin(np.isfinite(validation))} on. Lower {rate}."
        )


def check_curve(
    losses: np.ndarray, steps: np.ndarray, learning_rate: float, name: str = "desired"
) -> None:
    """Looks at a loss curve of conventional training; warns where it does not learn.

    Raises:
      RunFailed: it diverges.
    """
    rate = f"inner.learning_rate ({learning_rate:g})"
    # A few early steps may overshoot; a run that ends far above its start has diverged.
    beyond = ~(losses <= DIVERGED * losses[0])
    if beyond[-1]:
        first = int(np.argmax(beyond))
        raise RunFailed(
            f"conventional training diverges: the {name} loss is {losses[0]:.4g} at inner step 0, "
            f"{losses[first]:.4g} at step {steps[first]} and {losses[-1]:.4g} at the end. The "
            f"likely cause is a too high {rate}: lower it. Nothing in the workdir was lost."
        )
    if losses[-1] >= losses[0]:
        log(
            f"warning: conventional training does not learn: the {name} loss goes from "
            f"{losses[0]:.4g} to {losses[-1]:.4g}. {rate} may be too high."
        )


def check_gradient(sweep: Sweep, learning_rate: float) -> None:
    """RunFailed unless the meta-gradient of the conventional policy is finite."""
    bad = ~finite_rows(sweep.policy_grad)
    if bad.any():
        raise RunFailed(
            f"the meta-gradient of the conventional policy is not finite at {bad.sum()} of "
            f"{bad.size} inner steps, first at step {np.argmax(bad)}: the training is unstable. "
            f"Lower inner.learning_rate ({learning_rate:g})."
        )
