"""The report of a finished run: one page with figures, and tables for the terminal.

It reads what `lljax.artifacts` describes and knows nothing of the engine that wrote it.

To add a figure, put a module into `figures/` that defines a `FigureSpec`: its name, its title, the
arrays of analysis.npz that it needs, a function that draws it and one that writes its caption from
the numbers of the run. Nothing else has to be edited: every `FigureSpec` of that package is found,
and figures appear in the order of their names. An array that is not stored yet needs a line in
`lljax.artifacts.schema.ARRAYS`, and code in the engine that measures it.

    page          render(workdir): figures/*.png and report.html
    tables        summary_table(summary): the result of one run in the terminal
    sweep_table   rows(workdirs), text_table(rows): several runs side by side
    sentences     what the run shows, in sentences
    words         numbers in words
    style         what all figures share: colours, fonts, axes

Only `page` and the figures load matplotlib and Jinja.
"""

import logging

# Where HOME cannot be written matplotlib says so, and advises to set a variable of its own: that
# costs a second and is none of the user's concern.
_OF_HOME = ("MPLCONFIGDIR", "mkdir -p failed")
logging.getLogger("matplotlib").addFilter(
    lambda said: not any(words in said.getMessage() for words in _OF_HOME)
)
