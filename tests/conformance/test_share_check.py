# SPDX-License-Identifier: Apache-2.0
"""`guestmem share check`: what a VM may do and by which line, and what in the rights of a file cannot be meant."""

import json
import os

from service import ConformanceCase, main

# A user of this host that is neither root nor whoever runs the tests.
OTHER = "daemon" if os.getuid() != 1 else "bin"

GOOD = """\
[control]
path = "@/control"

[[share]]
name = "mailbox"
size = "64K"
slots = 4

[[vm]]
name = "linux"
who = { user = "OTHER" }
rules = [
  { deny = "mail-old*" },
  { allow = "mail*", may = ["attach", "notify"] },
  { allow = "log", read_only = true },
]
[[vm.attach]]
share = "mailbox"
slot = 2
socket = "@/linux.sock"
owner = "OTHER"
""".replace("OTHER", OTHER)


def line_of(text, part):
    return [number for number, line in enumerate(text.splitlines(), 1) if part in line][0]


class Check(ConformanceCase):

    def check(self, text, *words):
        """Runs it; returns (exit code, standard output, standard error)."""
        self.config = self.write_config(text)
        before = sorted(os.listdir(self.directory))
        result = self.run_tool("share", "check", "--config", self.config, *words, timeout=10)
        self.assertEqual(sorted(os.listdir(self.directory)), before, "nothing is created")
        return result.returncode, result.stdout, result.stderr

    def answer(self, text, share, *words):
        code, out, _ = self.check(text, "--vm", "linux", "--share", share, "--json", *words)
        answer = json.loads(out)
        self.assertEqual(code, 0 if answer["is_allowed"] else 1)
        return answer

    def findings(self, text):
        code, out, _ = self.check(text, "--json")
        found = json.loads(out)["findings"]
        self.assertEqual(code, 1 if found else 0)
        plain_code, plain, _ = self.check(text)
        self.assertEqual(plain_code, code)
        for finding in found:
            self.assertIn(f"{self.config}:{finding['line']}: {finding['what']}\n", plain)
            self.assertIn(finding["advice"], plain)
        return {finding["kind"]: finding for finding in found}

    def test_a_file_that_means_what_it_says_has_no_findings(self):
        code, out, err = self.check(GOOD)
        self.assertEqual((code, err), (0, ""), out)
        self.assertEqual(self.findings(GOOD), {})

    def test_an_allowed_share_is_answered_with_its_line_and_door(self):
        answer = self.answer(GOOD, "mailbox")
        line = line_of(GOOD, '"mail*"')
        self.assertTrue(answer["is_allowed"])
        self.assertEqual(answer["rule"], f"allow 'mail*' ({self.config}:{line})")
        self.assertEqual(answer["line"], line)
        self.assertEqual((answer["may_attach"], answer["may_create"], answer["may_notify"], answer["is_read_only"]),
                         (True, False, True, False))
        self.assertEqual(answer["doors"], [{"socket": self.path("linux.sock"), "slots": [2],
                                            "line": line_of(GOOD, "[[vm.attach]]")}])
        self.assertEqual(answer["remarks"], [])

    def test_a_denied_share_is_answered_with_its_line(self):
        answer = self.answer(GOOD, "mail-old-1")
        self.assertFalse(answer["is_allowed"])
        self.assertEqual(answer["line"], line_of(GOOD, "mail-old"))
        self.assertIn(answer["rule"], answer["refusals"])

    def test_the_implicit_end_is_named(self):
        answer = self.answer(GOOD, "other")
        self.assertFalse(answer["is_allowed"])
        self.assertIsNone(answer["line"])
        self.assertIn("implicit 'deny *'", answer["rule"])

    def test_creating_needs_the_right_to_create(self):
        self.assertTrue(self.answer(GOOD, "mail-new")["is_allowed"])
        self.assertFalse(self.answer(GOOD, "mail-new", "--create")["is_allowed"])
        self.assertTrue(self.answer(GOOD, "log", "--create")["is_allowed"])

    def test_read_only_says_that_qemus_doorbell_cannot_use_it(self):
        code, out, _ = self.check(GOOD, "--vm", "linux", "--share", "log")
        self.assertEqual(code, 0, out)
        self.assertIn("read only", out)
        self.assertIn("ivshmem-doorbell", out)
        self.assertNotIn("does not hold", out)

    def test_read_only_that_does_not_hold_says_why(self):
        text = GOOD.replace(f'who = {{ user = "{OTHER}" }}', 'who = { user = "root" }')
        self.assertIn("does not hold", "\n".join(self.answer(text, "log")["remarks"]))
        self.assertEqual(self.findings(text)["open_read_only"]["line"], line_of(text, "read_only"))

    def test_a_rule_that_never_matches_is_found_with_the_line_before_it(self):
        text = GOOD.replace('  { allow = "log"', '  { deny = "mail-[0-9]" },\n  { allow = "log"')
        finding = self.findings(text)["dead_rule"]
        self.assertEqual(finding["line"], line_of(text, "[0-9]"))
        self.assertIn(f"{self.config}:{line_of(text, chr(34) + 'mail*')}", finding["why"])

    def test_a_vm_that_reaches_everything_is_found(self):
        text = GOOD.replace('{ allow = "log", read_only = true }', '{ allow = "*" }')
        self.assertEqual(self.findings(text)["reaches_everything"]["line"], line_of(text, '{ allow = "*" }'))

    def test_a_share_that_no_vm_reaches_is_found(self):
        text = GOOD + '\n[[share]]\nname = "lost"\nsize = "4K"\n'
        finding = self.findings(text)["unreachable_share"]
        self.assertEqual(finding["line"], len(text.splitlines()) - 2)
        self.assertIn("'lost'", finding["what"])

    def test_a_door_that_the_rules_deny_or_give_read_only_is_found(self):
        denied = GOOD.replace('deny = "mail-old*"', 'deny = "mailb*"')
        self.assertIn("refuses everybody", self.findings(denied)["useless_door"]["what"])
        read_only = GOOD.replace('"notify"] }', '"notify"], read_only = true }')
        finding = self.findings(read_only)["useless_door"]
        self.assertEqual(finding["line"], line_of(read_only, "[[vm.attach]]"))
        self.assertIn("ivshmem-doorbell", finding["why"])

    def test_wrong_words_and_wrong_files_end_with_2(self):
        for words in (("--vm", "linux"), ("--share", "mailbox"), ("--create",), ("--vm", "linus", "--share", "mailbox"),
                      ("--vm", "linux", "--share", "a/b"), ("--vm", "", "--share", "mailbox"), ("--what",)):
            with self.subTest(words=words):
                code, out, err = self.check(GOOD, *words)
                self.assertEqual((code, out), (2, ""), err)
                self.assertNotEqual(err, "")
        code, _, err = self.check(GOOD.replace("allow = \"log\"", "alow = \"log\""))
        self.assertEqual(code, 2)
        self.assertIn(f"{self.config}:{line_of(GOOD, 'read_only')}:", err)
        missing = self.run_tool("share", "check", "--config", self.path("nothing.toml"))
        self.assertEqual(missing.returncode, 2)
        self.assertIn(self.path("nothing.toml"), missing.stderr)
        self.assertEqual(self.run_tool("share", "check").returncode, 2)

    def test_an_unknown_vm_is_shown_the_one_that_was_meant(self):
        self.assertIn("did you mean 'linux'", self.check(GOOD, "--vm", "linus", "--share", "mailbox")[2])

    def test_help_has_an_example_and_the_exit_codes(self):
        out = self.run_tool("share", "check", "--help").stdout
        self.assertIn("guestmem share check --config", out)
        self.assertIn("Exit codes:", out)


if __name__ == "__main__":
    main()
