"""What stands below the pages: which edition this is, and below a lesson its notebook, its script and where to report.

``hcmae_repository`` in _config.yml (sphinx: config:) is the address of the repository; without it nothing is linked.
"""

from __future__ import annotations

from pathlib import PurePosixPath
from typing import Any

from docutils import nodes
from sphinx import addnodes
from sphinx.application import Sphinx
from sphinx.config import Config

from book._ext.finding import edition_line

LESSONS = "book/executed/"


def name_the_edition(app: Sphinx, config: Config) -> None:
    """The footer's last line: version, and profile, date and commit of the run."""
    options = config.html_theme_options
    options["extra_footer"] = f"{options.get('extra_footer', '')}<p>{edition_line()}</p>"


def offer_the_lesson(app: Sphinx, doctree: nodes.document) -> None:
    """Links to a lesson's notebook and script, and, where the repository is known, to its source and its issues."""
    docname = app.env.docname
    if not docname.startswith(LESSONS):
        return
    name = PurePosixPath(docname).name
    line = nodes.paragraph("", "This lesson to take along: ", classes=["take-along"])
    for place, (suffix, word) in enumerate(((".ipynb", "notebook"), (".py", "script"))):
        link = addnodes.download_reference("", "", reftarget=f"/notebooks/{name}{suffix}", refdoc=docname)
        link += nodes.Text(word)
        line += [nodes.Text(", "), link] if place else [link]
    repository = app.config.hcmae_repository.rstrip("/")
    if repository:
        for word, path in (("its source", f"blob/main/notebooks/{name}.py"), ("report a problem", "issues/new")):
            line += [nodes.Text(", "), nodes.reference("", word, refuri=f"{repository}/{path}")]
    line += nodes.Text(".")
    sections = list(doctree.findall(nodes.section))
    (sections[0] if sections else doctree).append(line)


def setup(app: Sphinx) -> dict[str, Any]:
    app.add_config_value("hcmae_repository", "", "env", types=[str])
    app.connect("config-inited", name_the_edition)
    # Before Sphinx collects the files that a page offers for download.
    app.connect("doctree-read", offer_the_lesson, priority=100)
    return {"version": "1", "parallel_read_safe": True, "parallel_write_safe": True}
