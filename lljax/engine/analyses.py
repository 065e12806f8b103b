"""The analyses of policies along an optimisation, kept in the workdir and made again where lost."""

from lljax.engine.analysis import Analysis, build_analysis, snapshot_steps
from lljax.engine.placement import ONE_DEVICE, Placement
from lljax.engine.policy_memory import InHosts, OnDevices, Policy
from lljax.engine.progress import AnalysisProgress, log
from lljax.engine.workdir import Workdir
from lljax.tasks.config import ExperimentConfig
from lljax.tasks.problem import PolicyProblem


class Analyses:
    """Of one run.

    Attributes:
      steps: the outer steps whose policy is analysed when they are made.
    """

    def __init__(
        self,
        config: ExperimentConfig,
        problem: PolicyProblem,
        workdir: Workdir,
        policies: OnDevices | InHosts,
        placement: Placement = ONE_DEVICE,
    ):
        self.steps = snapshot_steps(config.outer.num_steps)
        self._workdir = workdir
        self._policies, self._uniform = policies, policies.uniform()
        self._analyse = build_analysis(problem, config.inner.microbatch_size, placement)

    def of(self, step: int, policy: Policy) -> Analysis:
        """The analysis of the policy [T, N] of an outer step."""
        kept = self._workdir.read_snapshot(step)
        if kept is not None:
            return kept
        with AnalysisProgress(f"analysis of outer step {step}") as progress:
            analysis = self._analyse(self._policies.placed(policy), progress.update)
        self._workdir.save_snapshot(step, analysis)
        return analysis

    def path(self, best_step: int, best_policy: Policy) -> dict[int, Analysis]:
        """By outer step: of the conventional policy, of those that were kept, and of the best.

        A run that was given more outer steps has kept others than one that was begun with as many.
        """
        between = [step for step in self._workdir.snapshot_steps() if 0 < step < best_step]
        kept = {step: self._workdir.read_snapshot(step) for step in between}
        path = {0: self.of(0, self._uniform)}
        path |= {step: analysis for step, analysis in kept.items() if analysis is not None}
        path[best_step] = self.of(best_step, best_policy)
        missing = sorted(step for step in self.steps if step < best_step and step not in path)
        if missing:
            log(
                f"warning: along the optimisation, analysis.npz and the figures show outer steps "
                f"{', '.join(map(str, path))}; the policies of {', '.join(map(str, missing))} were "
                f"not kept and are left out"
            )
        return path
