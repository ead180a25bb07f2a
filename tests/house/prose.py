# SPDX-License-Identifier: Apache-2.0
"""Documents: the paths they name exist, and their words are plain."""

import re
from pathlib import PurePosixPath

from layers import ROOMS

# Words that tell history or give praise, or that hide a step; and what to do about them.
WORDS = {
    r"currently|at the moment|as of now|nowadays": "say what is, in the present tense",
    r"no longer|used to be|formerly|previously|recently|has been changed|was changed|was added|"
    r"newly|from now on|until now": "history is git's: say what is",
    r"now": "'now' tells history: say what is",
    r"simply|easily|obviously|of course|just works?": "leave it out: what is easy shows",
    r"powerful|blazing\w*|robust|seamless\w*|elegant\w*|state.of.the.art|cutting.edge|world.class|"
    r"best.in.class|awesome|amazing|sophisticated|lightning.fast|production.grade|enterprise.grade":
        "praise: give a number or a test instead",
    r"please": "leave it out",
    r"etc\.|and so on": "name the rest, or say 'such as' before",
    r"utili[sz]e[sd]?|leverages?|facilitates?": "a plain word: use, help",
}
_WORDS = [(re.compile(rf"\b({pattern})(?!\w)", re.IGNORECASE), advice) for pattern, advice in WORDS.items()]

# British spelling: stem -> American.
SPELLING = {
    r"behaviour\w*": "behavior", r"colour\w*": "color", r"favour\w*": "favor", r"honour\w*": "honor",
    r"neighbour\w*": "neighbor", r"(?:initial|organ|recogn|serial|synchron|optim|minim|maxim|author|general|"
    r"special|normal|virtual|summar|custom|final|emphas|priorit|util)is(?:e|es|ed|ing|ation|ations|er|ers)":
        "-ize", r"licence\w*": "license", r"centre\w*": "center", r"catalogue\w*": "catalog",
    r"(?:cancel|label|travel|signal|model)l(?:ed|ing)": "one l", r"grey": "gray", r"whilst": "while",
    r"artefact\w*": "artifact", r"defence": "defense",
}
_SPELLING = [(re.compile(rf"\b{pattern}\b", re.IGNORECASE), american) for pattern, american in SPELLING.items()]

# What belongs to one machine or one mirror and not into a project.
_PRIVATE = re.compile(r"/work/|/home/\w|/root/|\.\./shared|"
                      r"//(?:deb|ftp|security|registry|archive)\.[\w.]+\.(?:org|net|com)")

_CODE_SPAN = re.compile(r"(`+)(.+?)\1")
_LINK = re.compile(r"\[[^\]]*\]\(([^)\s]+)\)")
_PATH_LIKE = re.compile(r"[\w.*][\w.*/+-]*")
_SOURCE_NAME = re.compile(r".+\.(cpp|hpp|h|py|sh|cmake|md)")
# `x_test.cpp`: one letter stands for any name, and so does an upper-case word (NAME, PRESET, NNNN).
_PLACEHOLDER = re.compile(r"(^|/)(x|[A-Z]{2,})(?!\.md$)([_.\-/*]|$)")
# What a build makes.
_GENERATED = ("build/",)


def check_prose(project):
    for file in project.markdown:
        first = [line for line in file.lines if line.strip() and not line.startswith("<!--")][:1]
        if not first or not first[0].startswith("# "):
            yield file.problem(1, 'a document begins with its title: "# ..."')
        for number, line in _prose_lines(file.lines):
            yield from _word_problems(file, number, line)


def _prose_lines(lines):
    """Yields (number, text) of a document without its code: neither blocks nor spans, nor addresses."""
    is_block = False
    for number, line in enumerate(lines, 1):
        if line.lstrip().startswith("```"):
            is_block = not is_block
        elif not is_block:
            yield number, re.sub(r"\]\([^)]*\)|https?://\S+", "", _CODE_SPAN.sub("", line))


def _word_problems(file, number, line):
    for pattern, advice in _WORDS:
        if found := pattern.search(line):
            yield file.problem(number, f"'{found.group()}': {advice}")
    for pattern, american in _SPELLING:
        if found := pattern.search(line):
            yield file.problem(number, f"'{found.group()}': American spelling ({american})")


def check_private(project):
    for file in project.files:
        if not file.is_text or file.path.startswith("tests/house/") or file.name == "LICENSE":
            continue
        for number, line in enumerate(file.lines, 1):
            if found := _PRIVATE.search(line):
                yield file.problem(number, f"'{found.group()}' belongs to one machine or one mirror: leave it out")


def check_paths(project):
    for file in project.markdown:
        is_block = False
        for number, line in enumerate(file.lines, 1):
            if line.lstrip().startswith("```"):
                is_block = not is_block
            elif not is_block:
                yield from _path_problems(project, file, number, line)


def _path_problems(project, file, number, line):
    for _, span in _CODE_SPAN.findall(line):
        text = span.strip()
        if is_path(project, text) and not exists(project, file.folder, text):
            yield file.problem(number, f"`{text}` is not there: name what exists (a glob or NAME stands for several)")
    for target in _LINK.findall(_CODE_SPAN.sub("", line)):
        if re.match(r"[a-z]+:", target):
            continue
        path, _, anchor = target.partition("#")
        if path and not exists(project, file.folder, path):
            yield file.problem(number, f"the link {target} leads nowhere: links are relative to {file.folder}/")
        elif anchor and anchor not in anchors(project, file, path):
            yield file.problem(number, f"the link {target} names a heading that is not there")


def is_path(project, text):
    """Whether a piece of code in a document names a file or folder of the project."""
    if not _PATH_LIKE.fullmatch(text) or _PLACEHOLDER.search(text) or text.startswith(_GENERATED):
        return False
    if "/" not in text.rstrip("/"):
        return bool(_SOURCE_NAME.fullmatch(text)) or text.rstrip("/") in project.folders
    first = text.split("/")[0]
    return first in project.paths or first in ROOMS or bool(_SOURCE_NAME.fullmatch(text))


def exists(project, folder, text):
    """Whether it is there: from the document's folder, from the top, or inside guestmem/.

    A stem stands for its files: mem/access for mem/access.hpp.
    """
    text = text.removeprefix("./").rstrip("/")
    if "/" not in text and text in project.basenames:
        return True
    for base in (folder, ".", "guestmem"):
        path = _normalize(f"{base}/{text}")
        if path in project.paths:
            return True
        if "*" in path and any(PurePosixPath(other).match(path) for other in project.paths):
            return True
        if any(other.startswith((f"{path}.", f"{path}_")) for other in project.paths):
            return True
    return False


def _normalize(path):
    parts = []
    for part in path.split("/"):
        if part == "..":
            parts = parts[:-1]
        elif part not in (".", ""):
            parts.append(part)
    return "/".join(parts)


def anchors(project, file, path):
    """The anchors of the headings of a document, as GitHub makes them."""
    target = _normalize(f"{file.folder}/{path}") if path else file.path
    found = set()
    for other in project.markdown:
        if other.path == target:
            for line in other.lines:
                if heading := re.match(r"#+\s+(.*)", line):
                    words = re.sub(r"[^\w\- ]", "", heading.group(1).lower())
                    found.add(words.strip().replace(" ", "-"))
    return found
