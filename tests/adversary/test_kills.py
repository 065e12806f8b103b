"""Killed with SIGKILL at random moments, again and again until they are done."""

import pytest

from adversary.processes import ends_on_its_own, finish, start
from adversary.runs import OFTEN
from adversary.verdicts import IDENTICAL, Verdict

_MOST_KILLS = 25
"""Then a run is left in peace, so that a busy machine does not keep it from its end for ever."""


@pytest.mark.parametrize("flags", [(), OFTEN], ids=["between outer steps", "anywhere"])
def test_a_run(runs, cases, rng, repeats, tmp_path, flags):
    with cases("kills") as verdicts:
        for number in range(2 * repeats):
            workdir = tmp_path / f"killed{number}"
            verdict, kills = _kill_until_done(runs, workdir, rng, *flags)
            verdicts.add(f"{kills} kills {' '.join(flags)}", verdict)


def test_a_language_model_and_its_cache(text_runs, cases, rng, repeats, tmp_path):
    with cases("kills") as verdicts:
        for number in range(repeats):
            cache = text_runs.with_a_cache(tmp_path / f"cache{number}")
            workdir = tmp_path / f"killed{number}"
            verdict, kills = _kill_until_done(text_runs, workdir, rng, *cache, *OFTEN)
            verdicts.add(f"{kills} kills, language model", verdict)


def _kill_until_done(runs, workdir, rng, *flags) -> tuple[Verdict, int]:
    result, kills = None, 0
    while result is None and kills < _MOST_KILLS:
        seconds = rng.uniform(0, runs.seconds)
        result = ends_on_its_own(start(*runs.command, workdir, *flags), seconds)
        kills += result is None
    if result is None:
        result = finish(start(*runs.command, workdir, *flags))
    return runs.judge(result, workdir, workdir, flags=flags).demand(IDENTICAL), kills
