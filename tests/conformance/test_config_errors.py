# SPDX-License-Identifier: Apache-2.0
"""Wrong configurations: where, what, and what to write instead. And the limits."""

import os
import re

from ivshmem_peer import Peer
from service import ConformanceCase, main

GOOD = """\
[control]
path = "@/control"

[[share]]
name = "mailbox"
size = "64K"
vectors = 2
slots = 4
socket = "@/sock"

[[vm]]
name = "linux"
[[vm.attach]]
share = "mailbox"
slot = 0
socket = "@/linux.sock"
"""


class ErrorCase(ConformanceCase):

    def run_wrong(self, text):
        """Runs a configuration that must not start; returns (path, stderr)."""
        path = self.write_config(text)
        before = sorted(os.listdir(self.directory))
        result = self.run_tool("share", "serve", "--config", path, timeout=10)
        self.assertEqual(result.returncode, 2, result.stderr)
        self.assertEqual(sorted(os.listdir(self.directory)), before, "nothing is created")
        self.assertNotIn("ready:", result.stderr)
        return path, result.stderr

    def positions(self, path, stderr):
        return [(int(line), int(column)) for line, column in
                re.findall(re.escape(path) + r":(\d+):(\d+)", stderr)]

    def check_shown(self, path, stderr, text, wrong_line, token):
        """The place is wrong_line (1-based) at token, and the line and a caret are shown."""
        source = text.replace("@", self.directory).splitlines()[wrong_line - 1]
        column = source.index(token) + 1
        places = [place for place in self.positions(path, stderr) if place[0] == wrong_line]
        self.assertTrue(places, f"no {path}:{wrong_line}:COLUMN in:\n{stderr}")
        self.assertTrue(any(column <= place[1] <= column + len(token) for place in places),
                        f"column {places}, expected {column}:\n{stderr}")
        shown = stderr.splitlines()
        at = [index for index, line in enumerate(shown) if source.strip() in line]
        self.assertTrue(at, f"the line is not shown:\n{stderr}")
        below = shown[at[0] + 1] if at[0] + 1 < len(shown) else ""
        self.assertRegex(below, r"^[\s|0-9]*\^", f"no caret below the line:\n{stderr}")
        indent = shown[at[0]].index(source.strip()) - (len(source) - len(source.lstrip()))
        self.assertTrue(column <= below.index("^") - indent + 1 <= column + len(token),
                        f"the caret is not below the token:\n{stderr}")

    def check(self, text, token, *says):
        """A configuration with one error at the token; stderr says each of the patterns."""
        lines = text.replace("@", self.directory).splitlines()
        number = [index for index, line in enumerate(lines, 1) if token in line][-1]
        path, stderr = self.run_wrong(text)
        self.check_shown(path, stderr, text, number, token)
        for pattern in says:
            # What the quoted line says does not count as advice.
            advice = "\n".join(line for line in stderr.splitlines()
                               if lines[number - 1].strip() not in line)
            self.assertRegex(advice, pattern, stderr)
        return stderr


class Errors(ErrorCase):

    def test_a_good_file_starts(self):
        self.serve_config(GOOD)
        with Peer(self.path("linux.sock"), slots=4, vectors=2) as peer:
            self.assertEqual(peer.id, 0)

    def test_a_wrong_key_is_shown_with_the_key_that_was_meant(self):
        self.check(GOOD.replace("vectors = 2", "vektors = 2"), "vektors", r"\bvectors\b")
        self.check(GOOD.replace('path = "@/control"', 'pth = "@/control"'), "pth", r"\bpath\b")
        self.check(GOOD.replace("slot = 0", "slto = 0"), "slto", r"\bslot\b")

    def test_a_wrong_table_is_shown_with_the_table_that_was_meant(self):
        self.check(GOOD.replace("[[share]]", "[[shares]]"), "shares", r"\bshare\b")

    def test_a_size_of_0_is_an_error_that_says_the_next_size(self):
        self.check(GOOD.replace('size = "64K"', "size = 0"), "size = 0", r"\b(4096|4K)\b")

    def test_a_size_that_is_not_whole_pages_is_an_error_that_says_the_next_size(self):
        self.check(GOOD.replace('"64K"', "5000"), "5000", r"\b(8192|8K)\b")
        self.check(GOOD.replace('"64K"', '"5000"'), '"5000"', r"\b(8192|8K)\b")
        self.check(GOOD.replace('"64K"', '"4097"'), '"4097"', r"\b(8192|8K)\b")

    def test_a_size_with_an_unknown_unit_is_an_error_that_names_the_units(self):
        self.check(GOOD.replace('"64K"', '"4Q"'), '"4Q"', r"\bK\b.*\bM\b.*\bG\b")

    def test_a_size_that_is_no_size_is_an_error(self):
        for size in ('"-4096"', "-4096", '"4K K"', '""', '"K"', "4096.5", "true",
                     '"99999999999999999999"', '"18014398509481984K"', "9223372036854771712"):
            with self.subTest(size=size):
                self.check(GOOD.replace('"64K"', size), f"size = {size}")

    def test_a_slot_named_twice_shows_both_places(self):
        text = GOOD + ('\n[[vm]]\nname = "rtos"\n[[vm.attach]]\nshare = "mailbox"\n'
                       'slots = [1, 0]\nsocket = "@/rtos.sock"\n')
        path, stderr = self.run_wrong(text)
        places = self.positions(path, stderr)
        lines = text.splitlines()
        second = lines.index("slots = [1, 0]") + 1
        first = lines.index("slot = 0") + 1
        self.assertIn(second, [line for line, _ in places], stderr)
        self.assertRegex(stderr, rf"\b{first}\b", "where it was named first")
        self.check_shown(path, stderr, text, second, "slots = [1, 0]")

    def test_a_slot_named_twice_in_one_list_is_an_error(self):
        self.check(GOOD.replace("slot = 0", "slots = [0, 3, 0]"), "slots = [0, 3, 0]", r"\b0\b")

    def test_a_slot_past_the_last_is_an_error_with_the_last(self):
        self.check(GOOD.replace("slot = 0", "slot = 4"), "slot = 4", r"\b3\b")
        self.check(GOOD.replace("slot = 0", "slot = -1"), "slot = -1", r"\b0\b")

    def test_a_socket_folder_that_does_not_exist_is_an_error_that_names_it(self):
        stderr = self.check(GOOD.replace('"@/sock"', '"@/no/such/sock"'),
                            f'"{self.directory}/no/such/sock"', r"(?i)folder|directory")
        self.assertIn(f"{self.directory}/no", stderr)

    def test_a_vm_that_names_an_unknown_share_is_shown_the_one_that_was_meant(self):
        self.check(GOOD.replace('share = "mailbox"', 'share = "mailbux"'), '"mailbux"',
                   r"\bmailbox\b")

    def test_two_shares_of_one_name_are_an_error(self):
        text = GOOD + '\n[[share]]\nname = "mailbox"\nsize = "4K"\nvectors = 1\nslots = 1\n'
        self.check(text, '"mailbox"', r"mailbox")

    def test_one_socket_path_for_two_doors_is_an_error(self):
        self.check(GOOD.replace("@/linux.sock", "@/sock"), f'"{self.directory}/sock"')

    def test_an_unknown_owner_is_an_error_that_names_it(self):
        for key in ("owner", "group"):
            self.check(GOOD + f'{key} = "no-such-one"\n', '"no-such-one"', "no-such-one")

    def test_a_mode_that_is_no_mode_is_an_error(self):
        for mode in ("0999", "rw", "01777777", ""):
            with self.subTest(mode=mode):
                self.check(GOOD + f'mode = "{mode}"\n', f'"{mode}"')

    def test_a_value_of_the_wrong_type_is_an_error(self):
        self.check(GOOD.replace("vectors = 2", 'vectors = "two"'), '"two"')
        self.check(GOOD.replace("slots = 4", "slots = 4.0"), "4.0")
        self.check(GOOD.replace('name = "mailbox"', "name = 7"), "name = 7")
        self.check(GOOD.replace("slots = 4", 'slots = 4\nids = "random"'),
                   '"random"', r"stable.*classic|classic.*stable")

    def test_a_missing_key_is_an_error_at_its_table(self):
        for key in ("name", "size"):
            with self.subTest(key=key):
                lines = GOOD.splitlines()
                at = [index for index, line in enumerate(lines) if line.startswith(key)][0]
                text = "\n".join(lines[:at] + lines[at + 1:]) + "\n"
                path, stderr = self.run_wrong(text)
                self.assertIn(lines.index("[[share]]") + 1,
                              [line for line, _ in self.positions(path, stderr)], stderr)
                self.assertRegex(stderr, rf"\b{key}\b")

    def test_a_syntax_error_is_shown_with_its_place(self):
        text = GOOD.replace("vectors = 2", "vectors = = 2")
        path, stderr = self.run_wrong(text)
        number = text.splitlines().index("vectors = = 2") + 1
        self.check_shown(path, stderr, text, number, "= = 2")

    def test_a_key_given_twice_is_a_syntax_error_with_its_place(self):
        text = GOOD.replace("vectors = 2", "vectors = 2\nvectors = 3")
        path, stderr = self.run_wrong(text)
        number = text.splitlines().index("vectors = 3") + 1
        self.assertIn(number, [line for line, _ in self.positions(path, stderr)], stderr)

    def test_all_errors_of_a_file_are_shown_at_once(self):
        text = (GOOD.replace("vectors = 2", "vektors = 2").replace('"64K"', '"4Q"')
                .replace("slot = 0", "slot = 9").replace('"@/linux.sock"', '"@/no/linux.sock"'))
        path, stderr = self.run_wrong(text)
        found = {line for line, _ in self.positions(path, stderr)}
        lines = text.splitlines()
        for wrong in ("vektors = 2", 'size = "4Q"', "slot = 9", 'socket = "@/no/linux.sock"'):
            self.assertIn(lines.index(wrong) + 1, found, f"{wrong} is not shown:\n{stderr}")

    def test_a_file_that_is_not_there_is_an_error_that_names_it(self):
        result = self.run_tool("share", "serve", "--config", self.path("nothing.toml"))
        self.assertIn(result.returncode, (1, 2))
        self.assertIn(self.path("nothing.toml"), result.stderr)

    def test_an_empty_file_is_an_error_that_says_what_to_write(self):
        path = self.write_config("")
        result = self.run_tool("share", "serve", "--config", path, timeout=10)
        self.assertEqual(result.returncode, 2, result.stderr)
        self.assertIn("share", result.stderr)

    def test_bytes_that_are_no_text_are_an_error(self):
        path = self.path("share.toml")
        for data in (b"\xff\xfe\x00", b"\x00" * 100, b"name = \"\xc3\x28\"\n", b"[" * 5000):
            with self.subTest(data=data[:10]):
                with open(path, "wb") as file:
                    file.write(data)
                result = self.run_tool("share", "serve", "--config", path, timeout=10)
                self.assertEqual(result.returncode, 2, result.stderr)
                self.assertIn(path, result.stderr)


RIGHTS = """\

[[vm]]
name = "rtos"
socket = "@/rtos.control"
who = { user = "root" }
limits = { shares = 4, bytes = "1G" }
rules = [
  { allow = "mail*", may = ["attach", "notify"], read_only = true },
  { deny = "*" },
]
"""


class Rights(ErrorCase):
    """The keys of rights, users and backings."""

    def test_rights_that_are_right_are_read(self):
        result = self.run_tool("share", "serve", "--check", "--config", self.write_config(GOOD + RIGHTS), timeout=10)
        self.assertEqual(result.returncode, 0, result.stderr)

    def test_a_rule_that_is_wrong_is_shown_with_what_to_write(self):
        text = GOOD + RIGHTS
        self.check(text.replace('deny = "*"', 'deny = "[a"'), '"[a"', r"without '\]'")
        self.check(text.replace('deny = "*"', 'deny = "a/b"'), '"a/b"', r"no name")
        self.check(text.replace('deny = "*"', f'deny = "{"a" * 129}"'), f'"{"a" * 129}"', r"\b128\b")
        self.check(text.replace('{ deny = "*" }', '{ denny = "*" }'), 'denny', r"\bdeny\b")
        both = '{ deny = "*", allow = "x" }'
        self.check(text.replace('{ deny = "*" }', both), both, r"both")
        self.check(text.replace('"attach", "notify"', '"attach", "ring"'), '"ring"', r"attach.*create.*notify")
        self.check(text.replace("read_only = true", 'read_only = "yes"'), '"yes"', r"true or false")

    def test_a_user_that_is_not_there_is_named(self):
        self.check(GOOD + RIGHTS.replace('"root"', '"no-such-one"'), '"no-such-one"', r"no user 'no-such-one'")
        self.check('user = "no-such-one"\n' + GOOD, '"no-such-one"', r"no user 'no-such-one'")

    def test_limits_that_are_no_limits_are_shown(self):
        self.check(GOOD + RIGHTS.replace("shares = 4", "shares = 257"), "257", r"\b256\b")
        self.check(GOOD + RIGHTS.replace('"1G"', '"1Q"'), '"1Q"', r"\bK\b.*\bM\b.*\bG\b")
        self.check(GOOD + RIGHTS.replace("shares = 4", "share = 4"), "share = 4", r"\bshares\b")

    def test_a_backing_that_does_not_fit_its_share_is_shown(self):
        def text(keys):
            return GOOD.replace("slots = 4\n", "slots = 4\n" + keys + "\n")
        self.check(text('backing = "disk"'), '"disk"', r"memfd.*file.*shm")
        self.check(text('backing = "file"\npath = "mail"'), '"mail"', r"begins with '/'")
        self.check(text('backing = "shm"\npath = "/a/b"'), '"/a/b"', r'path = "/mailbox"')
        self.check(text('path = "/a"'), '"/a"', r'backing = "file"')
        self.check(text('huge_pages = "2M"'), '"2M"', r'the next size is "2M"')
        self.check(text('backing = "file"\npath = "@/no/mail"'), f'"{self.directory}/no/mail"', r"mkdir -p")
        path, stderr = self.run_wrong(text('backing = "file"'))
        self.assertIn("'path' is missing", stderr)

    def test_two_vms_that_are_told_apart_by_nothing_are_an_error(self):
        text = GOOD + RIGHTS.replace('socket = "@/rtos.control"\n', "")
        second = text + '\n[[vm]]\nname = "third"\nwho = { user = 0 }\n'
        self.check(second, "{ user = 0 }", r"already on line \d+", r"differ")


class Limits(ConformanceCase):

    def share(self, name="mailbox", slots=4, vectors=1):
        # The name is written as a TOML string with escapes for what is not printable ASCII.
        quoted = "".join(c if 32 <= ord(c) < 127 and c not in '"\\' else f"\\u{ord(c):04X}"
                         for c in name)
        return ('[control]\npath = "@/control"\n[limits]\nconnections_per_uid = 4096\n\n'
                f'[[share]]\nname = "{quoted}"\nsize = "4K"\n'
                f'vectors = {vectors}\nslots = {slots}\nsocket = "@/sock"\n')

    def check_starts(self, text, slots, vectors):
        service = self.serve_config(text)
        with Peer(self.path("sock"), slots=slots, vectors=vectors, record=False) as peer:
            self.assertEqual(peer.id, 0)
            self.assertEqual(len(peer.messages), 3 + slots * vectors)
        self.finish(service)

    def check_refused(self, text, *says):
        result = self.run_tool("share", "serve", "--config", self.write_config(text), timeout=10)
        self.assertEqual(result.returncode, 2, result.stderr)
        for pattern in says:
            self.assertRegex(result.stderr, pattern)
        self.assertEqual(os.listdir(self.directory), ["share.toml"])

    def test_1024_slots_start(self):
        self.need_descriptors(2300)
        self.check_starts(self.share(slots=1024), 1024, 1)

    def test_1025_slots_are_refused(self):
        self.check_refused(self.share(slots=1025), r"\b1,?024\b", r"share\.toml:10:")

    def test_slots_times_vectors_of_8192_starts(self):
        self.need_descriptors(9400)
        self.check_starts(self.share(slots=1024, vectors=8), 1024, 8)

    def test_4_slots_of_2048_vectors_start(self):
        self.need_descriptors(10400)
        self.check_starts(self.share(slots=4, vectors=2048), 4, 2048)

    def test_slots_times_vectors_beyond_8192_is_refused(self):
        self.check_refused(self.share(slots=34, vectors=241), r"\b8,?192\b")  # 8194: 8193 has no such factors
        self.check_refused(self.share(slots=1024, vectors=9), r"\b8,?192\b")
        self.check_refused(self.share(slots=911, vectors=9), r"\b8,?192\b")

    def test_numbers_that_are_no_numbers_of_slots_or_vectors_are_refused(self):
        for slots, vectors in ((0, 1), (-1, 1), (4, 0), (4, -1), (2**32, 2**32), (2**62, 1),
                               (1, 2**32 + 1)):
            with self.subTest(slots=slots, vectors=vectors):
                self.check_refused(self.share(slots=slots, vectors=vectors), r"share\.toml:\d+:")

    def test_64_slots_unless_told_otherwise(self):
        self.check_starts(self.share().replace("slots = 4\n", ""), 64, 1)

    def test_a_name_of_31_bytes_starts(self):
        self.check_starts(self.share(name="a" * 31), 4, 1)

    def test_a_name_of_32_bytes_is_refused(self):
        self.check_refused(self.share(name="a" * 32), r"\b31\b", r"share\.toml:7:")

    def test_a_name_of_one_byte_starts(self):
        self.check_starts(self.share(name="~"), 4, 1)

    def test_a_name_that_is_empty_or_has_a_slash_or_is_not_printable_ascii_is_refused(self):
        for name in ("", "a/b", "/", "caf\u00e9", "a\nb", "a\x7f", "a\tb"):
            with self.subTest(name=name):
                self.check_refused(self.share(name=name), r"share\.toml:7:")

    def test_quick_has_the_same_limits(self):
        good = {"--size": "4K", "--vectors": "1", "--slots": "2", "--socket": self.path("sock")}
        for change in ({"--slots": "1025"}, {"--slots": "0"}, {"--vectors": "0"},
                       {"--slots": "1024", "--vectors": "9"}, {"--size": "0"},
                       {"--size": "5000"}, {"--size": "4Q"},
                       {"--socket": self.path("no/such/sock")}, {"--ids": "random"}):
            arguments = [word for pair in {**good, **change}.items() for word in pair]
            with self.subTest(change=change):
                result = self.run_tool("share", "serve", "--quick", "mailbox", *arguments,
                                       timeout=10)
                self.assertEqual(result.returncode, 2, result.stderr)
                self.assertEqual(os.listdir(self.directory), [])
        for name in ("a" * 32, "a/b", ""):
            with self.subTest(name=name):
                arguments = [word for pair in good.items() for word in pair]
                result = self.run_tool("share", "serve", "--quick", name, *arguments)
                self.assertEqual(result.returncode, 2, result.stderr)

    def test_a_share_without_a_place_to_serve_is_an_error(self):
        result = self.run_tool("share", "serve", "--quick", "mailbox", "--size", "4K")
        self.assertEqual(result.returncode, 2)
        self.assertIn("--socket", result.stderr)


if __name__ == "__main__":
    main()
