"""Public names explain themselves: arguments, results, errors, an example, where it comes from."""

import inspect
import re

import pytest

import lljax
from lljax import tasks

# Those that have no example of their own, and why.
WITHOUT_EXAMPLE = {
    "build_step_control": "StepControl, which it returns, has one",
    "try_policy": "the loops that it is the rule of have them; its arguments are whole loops",
    "load_run": "it needs a finished run; README and the curation tutorial read one",
    "inner_optimizer": "the task in docs/extending.md uses it",
    "meta_optimizer": "it reads a config of the command line",
}
FUNCTIONS = {
    **{name: getattr(lljax, name) for name in lljax.__all__},
    **{name: getattr(tasks, name) for name in tasks.__all__},
}
CLASSES = {name: one for name, one in FUNCTIONS.items() if inspect.isclass(one)}
FUNCTIONS = {name: one for name, one in FUNCTIONS.items() if inspect.isfunction(one)}
SMALL = set(tasks.__all__)  # made of a config: its settings are explained at the fields


@pytest.mark.parametrize("name", sorted(FUNCTIONS))
def test_a_function_says_what_it_takes_gives_and_refuses(name):
    function = FUNCTIONS[name]
    text = inspect.getdoc(function)
    assert text, name
    parameters = [*inspect.signature(function).parameters]
    if name not in SMALL:
        described = text.partition("\nArgs:\n")[2]
        named = re.findall(r"^  ([\w, ]+): ", described, re.MULTILINE)
        named = {one.strip() for line in named for one in line.split(",")}
        assert set(parameters) <= named, f"{name}: {set(parameters) - named} are not explained"
        assert "\nReturns:\n" in text, f"{name} does not say what it returns"
        assert re.search(r"\nRaises:\n|\braises? ", text), f"{name} does not say what it refuses"
    assert (">>>" in text) != (name in WITHOUT_EXAMPLE), f"{name}: an example, or why there is none"
    if re.search(r"\(Eq\. |§|Fig\. ", text):
        assert "\nReference" in text, f"{name} is of the paper and does not say where"


@pytest.mark.parametrize("name", sorted(CLASSES))
def test_a_class_explains_its_parts(name):
    one = CLASSES[name]
    text = inspect.getdoc(one)
    assert text, name
    assert not text.startswith(f"{name}("), f"{name}: the docstring is Python's own"
    source = inspect.getsource(one)
    for field in getattr(one, "_fields", ()) or getattr(one, "__dataclass_fields__", ()):
        if field not in vars(one).get("__annotations__", {}):
            continue
        # In the docstring, behind the field, or in a docstring of its own below it; a section of
        # a config explains itself.
        explained = (
            rf"^\s+{field}: [^\n]*(  # |\n(?:\s[^\n]*\n)?\s+\"\"\"|Config = |(Model|Data) = )"
        )
        listed = rf"^\s*{field}: "
        assert re.search(listed, text, re.MULTILINE) or re.search(
            explained, source, re.MULTILINE
        ), f"{name}.{field} is not explained"


def test_the_reasons_are_of_names_that_there_are():
    assert set(WITHOUT_EXAMPLE) <= set(FUNCTIONS)
