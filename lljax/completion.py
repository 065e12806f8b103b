"""`lljax completion SHELL`: what the Tab key completes, made of what the commands' help says."""

import contextlib
import io
import os
import re
from collections.abc import Callable, Iterable, Sequence

from lljax.errors import UserError

SHELLS = ("bash", "zsh")
_FLAG = re.compile(r"(?:  |│ )(--\w[\w.-]*)(?: \{([^}]+)\}(?!\|))?")
_BEGIN_ZSH = "autoload -U +X compinit bashcompinit && compinit && bashcompinit\n"
_SCRIPT = """\
_lljax() {{
    local word=${{COMP_WORDS[COMP_CWORD]}} before=${{COMP_WORDS[COMP_CWORD-1]}} words=
    case "$COMP_CWORD:$before" in
    1:*) words="{commands}" ;;
    2:run | 2:plan | 2:check | 2:attribute) words="{configs}" ;;
    2:sweep) words="{sweeps}" ;;
    2:completion) words="{shells}" ;;
{values}
    *)
        [[ $word == -* ]] && case "${{COMP_WORDS[1]}} ${{COMP_WORDS[2]}}" in
{flags}
        esac
        ;;
    esac
    COMPREPLY=($(compgen -W "$words" -- "$word"))
}}
complete -o default -F _lljax lljax
"""


def script(arguments: Sequence[str], commands: Iterable[str], call: Callable) -> str:
    """What a shell evaluates to complete command lines.

    Args:
      arguments: the command line behind `completion`: a shell.
      commands: all names of commands.
      call: runs a command line; its help is read.

    Raises:
      UserError: the shell is none of `SHELLS`.
    """
    from lljax.tasks.config_file import shipped_names

    if len(arguments) != 1 or arguments[0] not in SHELLS:
        got = " ".join(arguments) or "nothing"
        raise UserError(f"`lljax completion` takes the name of a shell, bash or zsh; got {got}.")
    configs, sweeps = shipped_names("get_config"), shipped_names("get_configs")
    helps = [(f'"run {name}" | "plan {name}"', ["run", name]) for name in configs]
    helps += [(f'"{of} {name}"', [of, name]) for of in ("check", "attribute") for name in configs]
    helps += [(f'"sweep {name}"', ["sweep", name]) for name in sweeps]
    helps += [(f'"{name} "*', [name]) for name in ("report", "export", "score")]
    flags: list[str] = []
    choices: dict[str, str] = {}
    for pattern, command in helps:
        found = dict(_FLAG.findall(_help(call, command)))
        flags.append(f'        {pattern}) words="{" ".join(found)}" ;;')
        choices |= {flag: values for flag, values in found.items() if values}
    values = (f'    *:{flag}) words="{of.replace(",", " ")}" ;;' for flag, of in choices.items())
    text = _SCRIPT.format(
        commands=" ".join(commands),
        configs=" ".join(configs),
        sweeps=" ".join(sweeps),
        shells=" ".join(SHELLS),
        values="\n".join(values),
        flags="\n".join(flags),
    )
    return _BEGIN_ZSH + text if arguments[0] == "zsh" else text


def _help(call: Callable, command: list[str]) -> str:
    """What its --help prints, in lines that are wide enough for every choice."""
    words, width = io.StringIO(), os.environ.get("COLUMNS")
    os.environ["COLUMNS"] = "1000"
    try:
        with contextlib.redirect_stdout(words), contextlib.suppress(SystemExit):
            call([*command, "--help"])
    finally:
        if width is None:
            del os.environ["COLUMNS"]
        else:
            os.environ["COLUMNS"] = width
    return re.sub(r"\x1b\[[0-9;]*m", "", words.getvalue())
