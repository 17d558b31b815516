"""The configuration reference: a page made of the files in conf/ and their comments."""

from pathlib import Path

from docutils import nodes
from docutils.parsers.rst import Directive

CONF = Path(__file__).parents[1] / "conf"

#: What each group is for, in the order of the page.
GROUPS = {
    "task": "The data, the loss and the metric. `task=NAME`.",
    "model": "The ODE, or none. `model=NAME`.",
    "arch": "Which network, for tasks that have more than one. `arch=NAME`.",
    "optim": "Optimizers and their defaults. `optim=NAME`, and `optim.lr=0.01` for one setting.",
    "solver": "How ODE blocks are solved and differentiated. `solver=NAME`.",
    "horizon": "Whether the integration time is trained. `horizon=NAME`.",
    "target": "Workloads of the benchmark: a task, its sizes, a budget. `target=NAME`.",
    "logger": "Where measurements go, in addition to the run's own files. `logger=NAME`.",
    "sweep": "Lists of runs for `python run.py -m +sweep=NAME`.",
}


class Configuration(Directive):
    """All groups of conf/, a section each, or `config.yaml` alone."""

    optional_arguments = 1

    def run(self):
        """Called by docutils."""
        environment = self.state.document.settings.env
        for path in CONF.rglob("*.yaml"):
            environment.note_dependency(str(path))
        if self.arguments:
            return [_code((CONF / self.arguments[0]).read_text(encoding="utf-8"))]
        return [_section(group, words) for group, words in GROUPS.items()]


def _section(group, words):
    section = nodes.section(ids=[f"group-{group}"])
    section += nodes.title(text=group)
    section += _paragraph(words)
    for path in sorted((CONF / group).glob("*.yaml")):
        inner = nodes.section(ids=[f"{group}-{path.stem.replace('_', '-')}"])
        inner += [nodes.title(text=f"{group}={path.stem}"), _code(path.read_text(encoding="utf-8"))]
        section += inner
    return section


def _paragraph(words):
    paragraph = nodes.paragraph()
    for i, part in enumerate(words.split("`")):
        paragraph += nodes.literal(text=part) if i % 2 else nodes.Text(part)
    return paragraph


def _code(text):
    text = text.removeprefix("# @package _global_\n")
    return nodes.literal_block(text.strip(), text.strip(), language="yaml")


def setup(app):
    """Called by Sphinx."""
    app.add_directive("configuration", Configuration)
    return {"parallel_read_safe": True}
