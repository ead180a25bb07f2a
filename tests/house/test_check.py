# SPDX-License-Identifier: Apache-2.0
"""Tests of the checks: each rule has a sample that breaks it and one that keeps it."""

import os
import tempfile
import unittest
from pathlib import Path

import layers
import prose
import shape
from check import CHECKS, problems_of
from project import Project

LICENSE_LINE = "// SPDX-License-Identifier: Apache-2.0\n"
ESSAY = "/// A thing that is here for the sake of the sample, and for nothing else at all.\n/// Threads: any.\n"
HEADER = LICENSE_LINE + "#pragma once\n\n" + ESSAY + "\n"


class Sample(unittest.TestCase):
    """A small project in a folder of its own."""

    def setUp(self):
        folder = tempfile.TemporaryDirectory(prefix="guestmem-house-")
        self.addCleanup(folder.cleanup)
        self.root = Path(folder.name)

    def write(self, path, text, mode=0o644):
        place = self.root / path
        place.parent.mkdir(parents=True, exist_ok=True)
        place.write_bytes(text if isinstance(text, bytes) else text.encode())
        place.chmod(mode)

    def found(self, check):
        return [str(problem) for problem in check(Project(self.root))]

    def assert_breaks(self, check, *words):
        """One problem, and its text has the words."""
        found = self.found(check)
        self.assertEqual(len(found), 1, found)
        for word in words:
            self.assertIn(word, found[0])

    def assert_keeps(self, check):
        self.assertEqual(self.found(check), [])


class Layers(Sample):
    def test_a_room_does_not_include_one_above_it(self):
        self.write("guestmem/base/a.hpp", '#include "guestmem/sys/fd.hpp"\n')
        self.assert_breaks(layers.check_layers, "guestmem/base/a.hpp:1", "base includes sys", "may include nothing")

    def test_a_room_includes_those_below_it(self):
        self.write("guestmem/share/ivshmem/a.cpp", '#include "guestmem/share/b.hpp"\n#include "guestmem/sys/fd.hpp"\n')
        self.assert_keeps(layers.check_layers)

    def test_share_and_dma_do_not_include_each_other(self):
        self.write("guestmem/share/a.cpp", '#include "guestmem/dma/b.hpp"\n')
        self.assert_breaks(layers.check_layers, "share includes dma")
        self.write("guestmem/share/a.cpp", "")
        self.write("guestmem/dma/b.cpp", '  #  include "guestmem/share/engines/b.hpp"\n')
        self.assert_breaks(layers.check_layers, "dma includes share")

    def test_an_include_has_its_full_path(self):
        self.write("guestmem/base/a.cpp", '#include "a.hpp"\n')
        self.assert_breaks(layers.check_layers, "full path")

    def test_a_room_without_a_place_in_the_order_is_found(self):
        self.write("guestmem/stuff/a.cpp", "")
        self.assert_breaks(layers.check_layers, "guestmem/stuff", "ROOMS")

    def test_the_order_itself_has_no_circle(self):
        for room, below in layers.ROOMS.items():
            for other in below:
                self.assertNotIn(room, layers.ROOMS[other])
                self.assertLessEqual(set(layers.ROOMS[other]), set(below))

    def test_system_headers_stay_in_sys(self):
        for header in ("sys/socket.h", "unistd.h", "fcntl.h", "linux/kvm.h", "systemd/sd-event.h", "poll.h"):
            with self.subTest(header=header):
                self.write("guestmem/share/a.cpp", f"#include <{header}>\n")
                self.assert_breaks(layers.check_system_headers, header, "guestmem/sys")

    def test_sys_guests_and_tests_use_system_headers(self):
        for path in ("guestmem/sys/a.cpp", "guests/agent/main.cpp", "guestmem/share/a_test.cpp", "tests/a.cpp"):
            self.write(path, "#include <unistd.h>\n")
        self.write("guestmem/share/b.cpp", "#include <vector>\n#include <fmt/format.h>\n")
        self.assert_keeps(layers.check_system_headers)

    def test_a_public_header_has_no_third_party_type(self):
        for header in ("fmt/format.h", "nlohmann/json.hpp", "toml++/toml.h", "CLI/CLI.hpp", "spdlog/spdlog.h"):
            with self.subTest(header=header):
                self.write("guestmem/share/a.hpp", f"#include <{header}>\n")
                self.assert_breaks(layers.check_public_headers, header)

    def test_sources_and_the_program_use_third_parties(self):
        self.write("guestmem/share/a.cpp", "#include <fmt/format.h>\n")
        self.write("guestmem/cli/a.hpp", "#include <CLI/CLI.hpp>\n")
        self.assert_keeps(layers.check_public_headers)


class Shape(Sample):
    def test_the_license_stands_in_the_first_line(self):
        self.write("a.cpp", "int a;\n" + LICENSE_LINE)
        self.assert_breaks(shape.check_license_line, "a.cpp:1", "SPDX")

    def test_rust_has_a_license_line_too(self):
        self.write("bench/peers/a/src/main.rs", "fn main() {}\n")
        self.assert_breaks(shape.check_license_line, "main.rs:1", "SPDX")

    def test_the_license_may_follow_the_interpreter(self):
        self.write("a.py", "#!/usr/bin/env python3\n# SPDX-License-Identifier: Apache-2.0\n")
        self.write("a.cpp", LICENSE_LINE)
        self.assert_keeps(shape.check_license_line)

    def test_a_header_begins_with_pragma_once(self):
        self.write("a.hpp", LICENSE_LINE + "#include <vector>\n#pragma once\n" + ESSAY)
        self.assert_breaks(shape.check_headers, "#pragma once")

    def test_a_header_has_an_essay(self):
        self.write("a.hpp", LICENSE_LINE + "#pragma once\n\n// A thing.\nint a();\n" + ESSAY)
        self.assert_breaks(shape.check_headers, "essay")

    def test_an_essay_may_follow_the_includes(self):
        self.write("a.hpp", LICENSE_LINE + "#pragma once\n\n#include <vector>\n\n" + ESSAY + "\nint a();\n")
        self.write("b.hpp", HEADER)
        self.assert_keeps(shape.check_headers)

    def test_files_have_a_limit(self):
        for path, kind, limit in (("a.hpp", "header", 300), ("a.cpp", "source", 600), ("a.py", "source", 600),
                                  ("guestmem/base/README.md", "room README", 60)):
            with self.subTest(path=path):
                self.write(path, "\n" * limit)
                self.assert_keeps(shape.check_sizes)
                self.write(path, "\n" * (limit + 1))
                self.assert_breaks(shape.check_sizes, path, kind, str(limit + 1))
                (self.root / path).unlink()

    def test_functions_have_a_limit(self):
        samples = {
            "a.cpp": ("namespace a {{\nResult<void> T::work(int a,\n        int b) {{\n{}}}\n}}\n", "    go();\n", 3),
            "a.py": ("def work():\n{}", "    go()\n", 1),
            "a.sh": ("work() {{\n{}}}\n", "    go\n", 2),
        }
        for path, (frame, line, count) in samples.items():
            with self.subTest(path=path):
                self.write(path, frame.format(line * (70 - count)))
                self.assert_keeps(shape.check_sizes)
                self.write(path, frame.format(line * (71 - count)))
                self.assert_breaks(shape.check_sizes, "work has 71 lines")
                (self.root / path).unlink()

    def test_declarations_and_types_are_no_functions(self):
        body = "    int a;\n" * 80
        self.write("a.hpp", f"int work(int a,\n    int b);\nclass Thing {{\n{body}}};\n"
                            f"struct X final : Y<int(int)> {{\n{body}}};\n")
        self.assert_keeps(shape.check_sizes)

    def test_an_exception_ends_with_its_file(self):
        self.addCleanup(shape.EXCEPTIONS.pop, ("a.hpp", "header"))
        shape.EXCEPTIONS["a.hpp", "header"] = "a table"
        self.write("a.hpp", "\n" * 301)
        self.assert_keeps(shape.check_sizes)
        (self.root / "a.hpp").unlink()
        self.write("b.hpp", "")
        self.assert_breaks(shape.check_sizes, "a.hpp", "gone")

    def test_only_commands_are_executable(self):
        self.write("tests/a.py", "", mode=0o755)
        self.assert_breaks(shape.check_modes, "tests/a.py", "chmod 644")
        self.write("tests/a.py", "")
        self.write("dev", "", mode=0o644)
        self.assert_breaks(shape.check_modes, "dev", "chmod 755")
        self.write("dev", "", mode=0o755)
        self.assert_keeps(shape.check_modes)

    def test_links_are_found(self):
        self.write("a.md", "# A\n")
        os.symlink("a.md", self.root / "b.md")
        self.assert_breaks(shape.check_modes, "b.md", "link")

    def test_big_files_and_unknown_kinds_are_found(self):
        self.write("a.md", b"x" * (512 * 1024 + 1))
        self.assert_breaks(shape.check_files, "a.md", "524289 bytes")
        self.write("a.md", b"x" * 512 * 1024)
        self.assert_keeps(shape.check_files)
        self.write("a.exe", "")
        self.assert_breaks(shape.check_files, "a.exe", "EXTENSIONS")
        (self.root / "a.exe").unlink()
        self.write("makefile", "")
        self.assert_breaks(shape.check_files, "makefile")

    def test_seeds_of_fuzzers_have_any_name(self):
        self.write("fuzz/corpus/config/0a1b2c", b"\0")
        self.assert_keeps(shape.check_files)
        self.assert_keeps(shape.check_text)

    def test_folders_have_telling_names(self):
        self.write("guestmem/base/util/a.cpp", "")
        self.assert_breaks(shape.check_folder_names, "guestmem/base/util")

    def test_a_room_has_a_readme(self):
        self.write("guestmem/base/a.cpp", "")
        self.assert_breaks(shape.check_rooms, "guestmem/base", "README.md")
        self.write("guestmem/base/README.md", "")
        self.assert_keeps(shape.check_rooms)

    def test_a_proof_stands_beside_its_subject(self):
        self.write("guestmem/base/a_test.cpp", "")
        self.assert_breaks(shape.check_neighbors, "guestmem/base/a.hpp")
        self.write("guestmem/base/a.hpp", "")
        self.assert_keeps(shape.check_neighbors)

    def test_a_fuzzer_has_seeds(self):
        self.write("guestmem/base/a_fuzz.cpp", "")
        self.write("guestmem/base/a.cpp", "")
        self.assert_breaks(shape.check_neighbors, "fuzz/corpus/a")
        self.write("fuzz/corpus/a/empty", "")
        self.assert_keeps(shape.check_neighbors)

    def test_unfinished_words_are_found(self):
        for word in ("TO" "DO", "FIX" "ME", "XX" "X", "HA" "CK"):
            with self.subTest(word=word):
                self.write("a.cpp", f"// {word}: later\n")
                self.assert_breaks(shape.check_text, "a.cpp:1", word)
        self.write("a.cpp", '// "/tmp/XXXXXX", TODOS\n')
        self.assert_keeps(shape.check_text)

    def test_white_space_is_found(self):
        for text, word in (("a \n", "end of the line"), ("\ta\n", "tab"), ("a", "newline"), ("x" * 121 + "\n", "121")):
            with self.subTest(text=text[:3]):
                self.write("a.cpp", text)
                self.assert_breaks(shape.check_text, word)
        self.write("a.cpp", "x" * 120 + "\n")
        self.assert_keeps(shape.check_text)

    def test_python_uses_its_standard_library(self):
        self.write("tests/a.py", "import os\nimport b\nfrom requests.x import y\n")
        self.write("tests/b.py", "from pathlib import Path\n")
        self.assert_breaks(shape.check_python_imports, "tests/a.py:3", "requests")
        self.write("tests/a.py", "def\n")
        self.assert_breaks(shape.check_python_imports, "no Python")


class Prose(Sample):
    def test_a_document_begins_with_its_title(self):
        self.write("a.md", "Text.\n")
        self.assert_breaks(prose.check_prose, "title")
        self.write("a.md", "<!-- SPDX-License-Identifier: Apache-2.0 -->\n# A title\n")
        self.assert_keeps(prose.check_prose)

    def test_history_praise_and_british_spelling_are_found(self):
        for words in ("It currently works.", "It is now fast.", "A powerful tool.", "Simply run it.", "The behaviour.",
                      "Initialise it.", "It is no longer so.", "Utilize it.", "A licence."):
            with self.subTest(words=words):
                self.write("a.md", f"# A\n\n{words}\n")
                self.assert_breaks(prose.check_prose, "a.md:3")

    def test_code_is_not_prose(self):
        self.write("a.md", "# A\n\n`colour` is known. It is not known nowhere. [b](now.md)\n\n```\nnow\n```\n")
        self.assert_keeps(prose.check_prose)

    def test_what_belongs_to_one_machine_is_found(self):
        for text in ("cd /work" "/main", "see .." "/shared/a.md", "http:" "//deb.example.org/x", "/home" "/me"):
            with self.subTest(text=text):
                self.write("a.md", f"# A\n\n{text}\n")
                self.assert_breaks(prose.check_private, "a.md:3")
        self.write("a.md", "# A\n\n/run/guestmem, https://www.example.org/home/\n")
        self.assert_keeps(prose.check_private)

    def test_paths_exist(self):
        self.write("guestmem/base/error.hpp", "")
        self.write("docs/guide/a.md", "")
        for text in ("guestmem/base/gone.hpp", "gone.cpp", "GONE.md", "base/gone", "guestmem/gone/", "docs/*.hpp",
                     "../gone.md"):
            with self.subTest(text=text):
                self.write("docs/b.md", f"# B\n\nSee `{text}`.\n")
                self.assert_breaks(prose.check_paths, "docs/b.md:3", text)
        for text in ("guestmem/base/error.hpp", "guestmem/base/error", "base/error.hpp", "error.hpp", "guide/a.md",
                     "guestmem/base/", "guestmem/*/error.hpp", "docs", "./docs/b.md", "../docs/b.md"):
            with self.subTest(text=text):
                self.write("docs/b.md", f"# B\n\nSee `{text}`.\n")
                self.assert_keeps(prose.check_paths)

    def test_what_only_looks_like_a_path_is_let_be(self):
        for text in ("/dev/kvm", "x_test.cpp", "fuzz/corpus/TARGET", "build/dev/bin/guestmem", "read/write", "a.b",
                     "docs/NNNN-title.md", "guestmem share list", "<room>/a.hpp", "-DX=guestmem/y"):
            with self.subTest(text=text):
                self.write("docs/b.md", f"# B\n\nSee `{text}`.\n\n```\nguestmem/base/gone.hpp\n```\n")
                self.write("fuzz/corpus/config/a", "")
                self.assert_keeps(prose.check_paths)

    def test_links_lead_somewhere(self):
        self.write("docs/a.md", "# A\n\n## The `wire` format\n")
        for target in ("gone.md", "a.md#gone", "#gone"):
            with self.subTest(target=target):
                self.write("docs/b.md", f"# B\n\n[x]({target})\n")
                self.assert_breaks(prose.check_paths, target)
        self.write("docs/b.md", "# B\n\n[x](a.md) [y](a.md#the-wire-format) [z](#b) [w](https://example.org)\n")
        self.assert_keeps(prose.check_paths)


class Check(Sample):
    def test_a_good_project_has_no_problems(self):
        self.write("guestmem/base/README.md", "# base\n\nSee `a.hpp`.\n")
        self.write("guestmem/base/a.hpp", HEADER)
        self.write("guestmem/base/a.cpp", LICENSE_LINE + '#include "guestmem/base/a.hpp"\n')
        self.assertEqual(problems_of(Project(self.root)), [])

    def test_what_is_not_the_project_is_not_read(self):
        self.write("build/dev/a.exe", "")
        self.write("tests/__pycache__/a.pyc", "")
        self.write("a.md", "# A\n")
        self.assertEqual([file.path for file in Project(self.root).files], ["a.md"])

    def test_every_check_is_called(self):
        named = {check for room in (layers, prose, shape) for name, check in vars(room).items()
                 if name.startswith("check_")}
        self.assertEqual(named, set(CHECKS))


if __name__ == "__main__":
    unittest.main()
