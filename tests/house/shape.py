# SPDX-License-Identifier: Apache-2.0
"""The shape of files: first lines, essays, sizes, modes, names, neighbors."""

import ast
import re
import sys

from project import Problem

SPDX = "SPDX-License-Identifier: Apache-2.0"

# In lines, but columns: clang-format lays code out at 110; text and comments, which no tool breaks, may reach 120.
LIMITS = {"header": 300, "source": 600, "function": 70, "room README": 60, "columns": 120}
MAX_BLOB_BYTES = 512 * 1024

# What is longer than a limit allows, and why that is right: ("path" or "path:function", which limit): "reason".
EXCEPTIONS = {}

EXECUTABLE = ("dev", ".ci/run")

# Extensions that have a place in the tree; "" is a name without one.
EXTENSIONS = {
    ".cpp", ".hpp", ".h", ".c", ".S", ".ld", ".py", ".sh", ".cmake", ".in", ".md", ".json", ".toml", ".txt", ".service",
    ".socket", ".conf", ".qvmconf", ".frag", ".dts", ".dtb", ".dsl", ".aml", ".bin", ".1", ".5", ".8", ".svg", ".rs",
    ".lock", ".tar", "",
}
NAMES_WITHOUT_EXTENSION = {
    "dev", "run", "LICENSE", ".clang-format", ".clang-tidy", ".editorconfig", ".gitignore", ".gitattributes",
}

NO_FOLDER_NAMES = {"util", "utils", "common", "misc", "helper", "helpers", "core"}

# Unfinished words, in parts so that this line does not find itself.
_UNFINISHED = re.compile(r"\b(TO" r"DO|FIX" r"ME|XX" r"X|HA" r"CK)\b")

_COMMENT = re.compile(r"^\s*(//|/\*|\*)")
_CODE_BEFORE_ESSAY = re.compile(r"^\s*(#|$)")
MIN_ESSAY_CHARACTERS = 60


def check_license_line(project):
    suffixes = (".cpp", ".hpp", ".h", ".py", ".sh", ".cmake", ".S", ".rs")
    for file in project.files:
        wanted = file.suffix in suffixes or file.name in ("CMakeLists.txt", "dev") or file.path == ".ci/run"
        if not wanted:
            continue
        first = [line for line in file.lines[:2] if not line.startswith("#!")][:1]
        if not first or SPDX not in first[0]:
            yield file.problem(1, f'the first line (the second after a "#!" line) has to be "{SPDX}" in a comment')


def check_headers(project):
    for file in project.with_suffix(".hpp", ".h"):
        lines = file.lines
        code = [(number, line) for number, line in enumerate(lines, 1) if line.strip() and not _COMMENT.match(line)]
        if not code or code[0][1].strip() != "#pragma once":
            yield file.problem(2, 'the first line of code has to be "#pragma once"')
        if len(_essay(lines)) < MIN_ESSAY_CHARACTERS:
            yield file.problem(3, "a header opens with an essay: a comment before the first line of code that says "
                                  "in a sentence what this is, then what applies of Concepts, Contract, Threads, "
                                  "Lifetime, Limits, Cost, Example, Known holes")


def _essay(lines):
    """The text of all comments before the first line that is neither comment nor preprocessor."""
    text = []
    for line in lines[1:]:
        if _COMMENT.match(line):
            text.append(line.strip().lstrip("/*").strip())
        elif not _CODE_BEFORE_ESSAY.match(line):
            break
    return " ".join(text)


def check_sizes(project):
    for file in project.files:
        kind = _size_kind(file)
        if kind and len(file.lines) > LIMITS[kind] and (file.path, kind) not in EXCEPTIONS:
            yield file.problem(0, f"{len(file.lines)} lines; a {kind} has at most {LIMITS[kind]}: split it by "
                                  "concern, or give the reason in EXCEPTIONS of tests/house/shape.py")
        for name, number, count in _functions(file):
            if count > LIMITS["function"] and (f"{file.path}:{name}", "function") not in EXCEPTIONS:
                yield file.problem(number, f"{name} has {count} lines; a function has at most "
                                           f"{LIMITS['function']}: give its steps names and functions of their own")
    for path, kind in EXCEPTIONS:
        if path.split(":")[0] not in project.paths:
            yield Problem("tests/house/shape.py", 0, f"EXCEPTIONS names {path}, which is gone: remove the line")


def _size_kind(file):
    if file.suffix in (".hpp", ".h"):
        return "header"
    if file.suffix in (".cpp", ".py", ".sh", ".cmake") or file.name in ("CMakeLists.txt", "dev"):
        return "source"
    if file.name == "README.md" and file.path.startswith("guestmem/"):
        return "room README"
    return None


def _functions(file):
    """Yields (name, line, lines in all) of the functions of a file, as far as they are seen without a compiler."""
    if file.suffix == ".py":
        yield from _python_functions(file)
    elif file.suffix in (".cpp", ".hpp", ".sh") or file.name == "dev":
        yield from _brace_functions(file.lines)


def _python_functions(file):
    try:
        tree = ast.parse(file.data)
    except SyntaxError:
        return
    for node in ast.walk(tree):
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
            yield node.name, node.lineno, node.end_lineno - node.lineno + 1


_OPENING = re.compile(r"^(?!namespace|class|struct|enum|union|extern|using|typedef|#|//|\}|\)|public|private)"
                      r"[A-Za-z_\[:~].*\(")
_NAME = re.compile(r"([A-Za-z_~][\w:~]*)\s*\(")


def _brace_functions(lines):
    """Functions that begin in column 0 and end with a brace in column 0, as clang-format lays them out."""
    begin, is_open = None, False
    for number, line in enumerate(lines, 1):
        end = line.rstrip()[-1:]
        if begin is None and _OPENING.match(line):
            begin, is_open = number, False
        if begin is None:
            continue
        is_open = is_open or end == "{"
        if is_open and line.startswith("}"):
            found = _NAME.search(lines[begin - 1])
            yield (found.group(1) if found else lines[begin - 1].strip()), begin, number - begin + 1
            begin = None
        elif not is_open and end in (";", "}"):
            begin = None  # a declaration, or a function of one line


def check_modes(project):
    for file in project.files:
        if file.absolute.is_symlink():
            yield file.problem(0, "a symbolic link: name the file itself where it is needed")
            continue
        is_executable = bool(file.absolute.stat().st_mode & 0o111)
        if is_executable and file.path not in EXECUTABLE:
            yield file.problem(0, f"is executable: chmod 644; only {' and '.join(EXECUTABLE)} are commands, all else "
                                  "is called by them")
        if not is_executable and file.path in EXECUTABLE:
            yield file.problem(0, "is a command: chmod 755")


def check_files(project):
    for file in project.files:
        size = len(file.data)
        if size > MAX_BLOB_BYTES:
            yield file.problem(0, f"{size} bytes: files of more than {MAX_BLOB_BYTES} are made or fetched by a "
                                  "script, not kept")
        if file.path.startswith("fuzz/corpus/"):
            continue
        if file.suffix not in EXTENSIONS or (file.suffix == "" and file.name not in NAMES_WITHOUT_EXTENSION):
            yield file.problem(0, f"an unknown kind of file ('{file.suffix or file.name}'): remove it, or add the "
                                  "kind to EXTENSIONS of tests/house/shape.py")


def check_folder_names(project):
    for folder in sorted(project.folders):
        if folder.split("/")[-1] in NO_FOLDER_NAMES:
            yield Problem(folder, 0, "a name that says nothing: name the folder after what it provides")


def check_rooms(project):
    rooms = {folder for folder in project.folders if folder.startswith("guestmem/") and folder.count("/") == 1}
    for room in sorted(rooms):
        if f"{room}/README.md" not in project.paths:
            yield Problem(room, 0, "a room has a README.md of one screen: for what, not for what, door, leans on, "
                                   "known holes")


def check_neighbors(project):
    """A test, bench or fuzzer in a room stands beside what it proves."""
    for file in project.with_suffix(".cpp"):
        found = re.search(r"^(guestmem/.*)_(test|bench|fuzz)\.cpp$", file.path)
        if found and not {f"{found.group(1)}.hpp", f"{found.group(1)}.cpp", found.group(1)} & project.paths:
            yield file.problem(0, f"there is no {found.group(1)}.hpp or .cpp that it proves: name it after its "
                                  f"subject, or move it to tests/")
        if found and found.group(2) == "fuzz":
            corpus = f"fuzz/corpus/{found.group(1).split('/')[-1]}"
            if corpus not in project.folders:
                yield file.problem(0, f"a fuzzer has seeds: add files to {corpus}/, ctest replays them")


def check_text(project):
    for file in project.files:
        if not file.is_text or file.name == "LICENSE":
            continue
        if file.data and not file.data.endswith(b"\n"):
            yield file.problem(len(file.lines), "the last line has no end: add a newline")
        for number, line in enumerate(file.lines, 1):
            if found := _UNFINISHED.search(line):
                yield file.problem(number, f"'{found.group()}': do it, or state it as a known hole")
            if line != line.rstrip():
                yield file.problem(number, "white space at the end of the line")
            if "\t" in line and file.suffix in (".cpp", ".hpp", ".py", ".sh", ".md", ".cmake", ".toml", ".json"):
                yield file.problem(number, "a tab: use blanks")
            if file.suffix in (".cpp", ".hpp", ".py", ".sh", ".cmake") or file.name in ("dev", "CMakeLists.txt"):
                if len(line) > LIMITS["columns"] and "http" not in line:
                    yield file.problem(number, f"{len(line)} columns; a line has at most {LIMITS['columns']}")


def check_python_imports(project):
    own = {file.pure.stem for file in project.with_suffix(".py")}
    for file in project.with_suffix(".py"):
        try:
            tree = ast.parse(file.data)
        except SyntaxError as error:
            yield file.problem(error.lineno or 0, f"is no Python: {error.msg}")
            continue
        for node in ast.walk(tree):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else \
                [node.module or ""] if isinstance(node, ast.ImportFrom) and not node.level else []
            for name in names:
                top = name.split(".")[0]
                if top not in sys.stdlib_module_names and top not in own and top != "__future__":
                    yield file.problem(node.lineno, f"import {top}: Python here uses its standard library only")
