"""`lljax check` for a policy over many runs: what is judged is the mean over R drawn runs."""

from lljax.curation.drawn import DrawnGradient, RunSource, reruns_of_drawn
from lljax.curation.run import plan_runs
from lljax.engine.check import Findings, check_run
from lljax.engine.memory_plan import in_memory
from lljax.engine.placement import find_placement
from lljax.tasks.build import build_problem
from lljax.tasks.problem import Experiment


def check(experiment: Experiment, seconds: float) -> Findings:
    """Of runs that are drawn as an outer step draws them; see `engine.check.check_run`."""
    config, placement = experiment.config, find_placement(experiment.config.mesh)
    problem = build_problem(experiment, on_host=True)
    with placement.context():
        problem = placement.problem(problem)
        source = RunSource(config, problem)
        plan = in_memory(plan_runs(problem, config, placement))
        gradient = DrawnGradient(problem, config, plan, source, placement)
        reruns = reruns_of_drawn(gradient, config, problem, source)
        return check_run(problem, config, reruns, seconds)
