"""Multiple-choice questions that need no script: radio buttons and a style sheet."""

from __future__ import annotations

import re
from typing import Any, ClassVar

from docutils import nodes
from docutils.parsers.rst import directives
from sphinx.application import Sphinx
from sphinx.util.docutils import SphinxDirective


class QuizNode(nodes.General, nodes.Element):
    """One question; children are the question's paragraph and the options."""


class QuizOptionNode(nodes.General, nodes.Element):
    """One answer; children are its text and the reply that opens when it is chosen."""


class QuizTextNode(nodes.General, nodes.TextElement):
    """Question or text of an answer."""


class QuizReplyNode(nodes.General, nodes.TextElement):
    """What the reader is told after choosing."""


OPTION = re.compile(r"^- \((?P<right>[x ])\) (?P<text>.*?)(?: :: (?P<reply>.*))?$")


class Quiz(SphinxDirective):
    """A multiple-choice question that works without scripts.

    The question comes first, then one option per line: ``- (x) right answer :: why`` or ``- ( ) wrong answer :: why``.
    Radio buttons give the keyboard behaviour, the reply opens by style sheet alone, and print shows every reply.
    """

    has_content = True
    option_spec: ClassVar[dict[str, Any]] = {"name": directives.unchanged}

    def run(self) -> list[nodes.Node]:
        question = [line for line in self.content if not OPTION.match(line)]
        options = [match for match in map(OPTION.match, self.content) if match]
        if not question or len(options) < 2 or sum(option["right"] == "x" for option in options) != 1:
            raise self.error("a quiz needs a question, two or more options and exactly one right one, marked (x)")
        number = self.env.new_serialno("quiz")
        out = QuizNode(ident=f"quiz-{number}")
        out += self._inline(QuizTextNode(kind="question"), " ".join(question).strip())
        for position, option in enumerate(options):
            right = option["right"] == "x"
            node = QuizOptionNode(ident=f"quiz-{number}-{position}", group=f"quiz-{number}", right=right)
            node += self._inline(QuizTextNode(kind="option", ident=f"quiz-{number}-{position}"), option["text"])
            reply = QuizReplyNode(right=right)
            node += self._inline(reply, ("Right. " if right else "No. ") + (option["reply"] or ""))
            out += node
        return [out]

    def _inline(self, node: nodes.Element, text: str) -> nodes.Element:
        for child in self.parse_text_to_nodes(text):
            node += child.children if isinstance(child, nodes.paragraph) else child
        return node


def _html_quiz(self: Any, node: QuizNode) -> None:
    self.body.append(f'<fieldset class="quiz" id="{node["ident"]}">')


def _html_option(self: Any, node: QuizOptionNode) -> None:
    right = "right" if node["right"] else "wrong"
    self.body.append(
        f'<div class="quiz-option"><input type="radio" class="{right}" name="{node["group"]}" id="{node["ident"]}">'
    )


def _html_text(self: Any, node: QuizTextNode) -> None:
    self.body.append("<legend>" if node["kind"] == "question" else f'<label for="{node["ident"]}">')


def _html_text_end(self: Any, node: QuizTextNode) -> None:
    self.body.append("</legend>" if node["kind"] == "question" else "</label>")


def _html_reply(self: Any, node: QuizReplyNode) -> None:
    self.body.append(f'<div class="quiz-reply {"right" if node["right"] else "wrong"}" role="note">')


def _close(tag: str) -> Any:
    def depart(self: Any, node: nodes.Node) -> None:
        self.body.append(f"</{tag}>")

    return depart


def _plain(before: str = "", after: str = "\n\n") -> tuple[Any, Any]:
    def visit(self: Any, node: nodes.Node) -> None:
        self.body.append(before)

    def depart(self: Any, node: nodes.Node) -> None:
        self.body.append(after)

    return visit, depart


def _silent(self: Any, node: nodes.Node) -> None:
    return None


def setup(app: Sphinx) -> dict[str, Any]:
    app.add_directive("quiz", Quiz)
    plain = _plain()
    app.add_node(QuizNode, html=(_html_quiz, _close("fieldset")), latex=plain, text=(_silent, _silent))
    app.add_node(QuizOptionNode, html=(_html_option, _close("div")), latex=_plain("\n\n- "), text=(_silent, _silent))
    app.add_node(QuizTextNode, html=(_html_text, _html_text_end), latex=_plain(), text=(_silent, _silent))
    app.add_node(QuizReplyNode, html=(_html_reply, _close("div")), latex=_plain(), text=(_silent, _silent))
    return {"version": "1", "parallel_read_safe": True, "parallel_write_safe": True}
