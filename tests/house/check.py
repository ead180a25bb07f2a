# SPDX-License-Identifier: Apache-2.0
"""The rules of the house, checked.

usage: check.py [FOLDER]

Reads the source tree (the folder that this file is in, or FOLDER), prints one line per broken rule with the
way to mend it, and ends with status 1 when there was one. test_check.py has a failing sample for each rule.
"""

import sys
from pathlib import Path

import layers
import prose
import shape
from project import Project

CHECKS = (
    layers.check_layers,
    layers.check_system_headers,
    layers.check_public_headers,
    shape.check_license_line,
    shape.check_headers,
    shape.check_sizes,
    shape.check_modes,
    shape.check_files,
    shape.check_folder_names,
    shape.check_rooms,
    shape.check_neighbors,
    shape.check_text,
    shape.check_python_imports,
    prose.check_prose,
    prose.check_private,
    prose.check_paths,
)


def problems_of(project):
    found = {problem for check in CHECKS for problem in check(project)}
    return sorted(found, key=lambda problem: (problem.path, problem.line, problem.message))


def main(arguments):
    project = Project(arguments[0] if arguments else Path(__file__).resolve().parents[2])
    if not project.files:
        print(f"{project.root}: no files to check", file=sys.stderr)
        return 1
    problems = problems_of(project)
    for problem in problems:
        print(problem)
    print(f"house: {len(project.files)} files, {len(CHECKS)} rules, {len(problems)} problems")
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
