# SPDX-License-Identifier: Apache-2.0
"""The files of the project as the checks see them, and what a check reports."""

import subprocess
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path, PurePosixPath

NOT_PROJECT = ("build", ".git", "__pycache__", ".cache")


@dataclass(frozen=True)
class Problem:
    """What is wrong, where, and how to put it right."""

    path: str
    line: int
    message: str

    def __str__(self):
        place = f"{self.path}:{self.line}" if self.line else self.path
        return f"{place}: {self.message}"


@dataclass(frozen=True)
class File:
    """One file; its path is relative to the project and has slashes."""

    root: Path
    path: str

    @property
    def pure(self):
        return PurePosixPath(self.path)

    @property
    def name(self):
        return self.pure.name

    @property
    def suffix(self):
        return self.pure.suffix

    @property
    def folder(self):
        return str(self.pure.parent)

    @property
    def absolute(self):
        return self.root / self.path

    @cached_property
    def data(self):
        return self.absolute.read_bytes()

    @cached_property
    def is_text(self):
        return b"\0" not in self.data and not self.path.startswith("fuzz/corpus/")

    @cached_property
    def lines(self):
        return self.data.decode(errors="replace").splitlines()

    def problem(self, line, message):
        return Problem(self.path, line, message)


class Project:
    """All files of a source tree, without those that git ignores."""

    def __init__(self, root):
        self.root = Path(root).resolve()
        self.files = [File(self.root, path) for path in sorted(self._paths())]

    def _paths(self):
        listed = self._paths_of_git()
        paths = listed if listed is not None else self._paths_of_folder()
        return {path for path in paths if (self.root / path).is_file() or (self.root / path).is_symlink()}

    def _paths_of_git(self):
        """None where there is no git, or no repository of it."""
        if not (self.root / ".git").exists():
            return None
        command = ["git", "-c", "safe.directory=*", "-C", self.root, "ls-files", "-z", "--cached", "--others",
                   "--exclude-standard"]
        try:
            done = subprocess.run(command, capture_output=True, check=True, timeout=60)
        except (OSError, subprocess.CalledProcessError):
            return None
        return [path for path in done.stdout.decode().split("\0") if path]

    def _paths_of_folder(self):
        for path in self.root.rglob("*"):
            relative = path.relative_to(self.root)
            if not any(part in NOT_PROJECT for part in relative.parts) and not path.is_dir():
                yield relative.as_posix()

    def with_suffix(self, *suffixes):
        return [file for file in self.files if file.suffix in suffixes]

    @cached_property
    def cpp(self):
        return self.with_suffix(".cpp", ".hpp", ".h")

    @cached_property
    def markdown(self):
        return self.with_suffix(".md")

    @cached_property
    def folders(self):
        found = set()
        for file in self.files:
            found.update(str(parent) for parent in file.pure.parents)
        return found - {"."}

    @cached_property
    def paths(self):
        return {file.path for file in self.files} | self.folders

    @cached_property
    def basenames(self):
        return {file.name for file in self.files}
