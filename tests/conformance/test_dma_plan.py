# SPDX-License-Identifier: Apache-2.0
"""`guestmem dma plan` on captured machines: what would be programmed, and every reason why it would not work."""

import itertools
import json
import re
import unittest

from dma_machines import GROUPS, NAMES, PCI, TYPE1, DmaCase, Link, archive, entries, with_driver
from service import main

RAM = '{ name = "ram", at = 0, size = "16M" }'


def vm(name, *devices, memory=RAM, more=""):
    """A [[vm]] of a grants file; devices are names, or whole tables."""
    tables = [device if device.startswith("{") else f'{{ name = "{device}" }}' for device in devices]
    return f'[[vm]]\nname = "{name}"\nmemory = [{memory}]\ndevice = [\n  ' + ",\n  ".join(tables) + f"\n]\n{more}\n"


def reaching(device, *ranges):
    return f'{{ name = "{device}", reach = [{", ".join(ranges)}] }}'


def problems_of(plan, kind):
    return [one for one in plan["problems"] if one["kind"] == kind]


class Works(DmaCase):
    def ready(self):
        """The VT-d machine with three devices in VFIO's hands."""
        machine = entries("vtd")
        for address in ("0000:00:03.0", "0000:01:00.0", "0000:02:00.0"):
            machine = with_driver(machine, address, "vfio-pci")
        return self.packed(machine)

    def test_a_plan_that_works_says_what_is_mapped_and_what_it_takes(self):
        root = self.ready()
        grants = (vm("cluster", "0000:00:03.0", "pci:1:0.0",
                     memory='{ name = "ram", at = 0, size = "512M", page = "2M" }') +
                  vm("second", reaching("0000:02:00.0", '{ memory = "box", permissions = "r" }'),
                     memory=RAM + ', { name = "box", at = 0x4000_0000, size = "64K", share = "box" }'))
        plan = self.plan(root, grants)
        self.assertEqual((plan["would_work"], plan["problems"]), (True, []))
        first, second = plan["domains"]
        self.assertEqual(first["devices"], ["0000:00:03.0", "0000:01:00.0"])
        self.assertEqual(first["mappings"], [{"iova": "0x0", "size_bytes": 512 << 20, "asked": "rw", "kept": "rw",
                                              "page_bytes": 2 << 20}])
        self.assertEqual((first["page_entries"], first["locked_bytes"]), (256, 512 << 20))
        self.assertEqual(second["mappings"], [{"iova": "0x40000000", "size_bytes": 65536, "asked": "r", "kept": "r",
                                               "page_bytes": 4096}])
        text = self.dma("plan", "--root", root, "--config", self.path("grants.toml"))
        self.assertTrue(text.endswith("it would work\n"))
        self.assertIn("VM cluster: 512M locked, limit not known or none\n"
                      "0000:00:03.0, 0000:01:00.0: behind vtd@fed90000\n", text)
        self.assertRegex(text, r"0x000040000000 to 0x00004000ffff +64K +r +pages of 4K\n")

    def test_devices_without_a_driver_are_noted_with_the_commands_that_bind_them(self):
        plan = self.plan(archive("vtd"), vm("a", "0000:00:03.0"))
        self.assertTrue(plan["would_work"])
        self.assertEqual([(one["kind"], one["is_fatal"], one["commands"]) for one in plan["problems"]],
                         [("driver-bound", False,
                           ["modprobe vfio-pci",
                            "echo vfio-pci > /sys/bus/pci/devices/0000:00:03.0/driver_override",
                            "echo 0000:00:03.0 > /sys/bus/pci/drivers_probe"])])
        text = self.dma("plan", "--root", archive("vtd"), "--config", self.path("grants.toml"))
        self.assertIn("grants.toml:5: note: '0000:00:03.0' has no driver yet", text)
        self.assertIn("  $ echo 0000:00:03.0 > /sys/bus/pci/drivers_probe\n", text)

    def test_one_vm_of_many(self):
        grants = vm("a", "0000:00:03.0") + vm("b", "0000:99:00.0")
        self.assertFalse(self.plan(archive("vtd"), grants)["would_work"])
        plan = self.plan(archive("vtd"), grants, "--vm", "a")
        self.assertTrue(plan["would_work"])
        self.assertEqual({domain["vm"] for domain in plan["domains"]}, {"a"})
        self.assertIn("no VM 'c'", self.refused("plan", "--root", archive("vtd"), "--config",
                                                self.path("grants.toml"), "--vm", "c"))

    def test_others_count_for_one_vm_too(self):
        grants = vm("a", "0000:00:08.0") + vm("b", "0000:00:08.1")
        for name in "ab":
            text = self.dma("plan", "--root", archive("vtd"), "--config", self.write("g.toml", grants), code=1)
            self.assertIn("can only be contained together", text)
        self.assertTrue(problems_of(self.plan(archive("vtd"), grants, "--vm", "b"), "containment-split"))

    def test_memory_is_that_of_a_machines_configuration(self):
        self.write("x.qvmconf", "system x\nram 0x0,16M\nram 0x100000000,32M\nrom 0xe0000000,1M\nload x\n")
        plan = self.plan(archive("vtd"), '[[vm]]\nname = "a"\nconfig = "x.qvmconf"\n'
                                         'device = [{ name = "0000:00:03.0" }]\n')
        self.assertEqual([(one["iova"], one["size_bytes"], one["asked"]) for one in plan["domains"][0]["mappings"]
                          if one["asked"] == "rw"],
                         [("0x0", 16 << 20, "rw"), ("0x100000000", 32 << 20, "rw")])
        self.assertEqual([one["kept"] for one in plan["domains"][0]["mappings"] if one["iova"] == "0xe0000000"], ["r"])
        self.write("x.qvmconf", "ran 0x0,16M\n")
        said = self.refused("plan", "--root", archive("vtd"), "--config", self.path("grants.toml"))
        self.assertRegex(said, r"grants\.toml:3:10: error: .*x\.qvmconf:1:1: error: unknown word 'ran'")
        self.assertIn("guestmem run --explain x.qvmconf", said)

    def test_many_mappings_are_shown_when_asked_for(self):
        ranges = [f'{{ memory = "ram", offset = {i * 8192}, size = 4096 }}' for i in range(40)]
        path = self.write("grants.toml", vm("a", reaching("0000:00:03.0", *ranges)))
        text = self.dma("plan", "--root", archive("vtd"), "--config", path)
        self.assertIn("  and 24 mappings more\n", text)
        self.assertEqual(len(re.findall(r"pages of 4K", text)), 16)
        text = self.dma("plan", "--root", archive("vtd"), "--config", path, "--all")
        self.assertEqual(len(re.findall(r"pages of 4K", text)), 40)


class Problems(DmaCase):
    """Each kind of problem, on the machine that has it."""

    def problem(self, root, grants, kind, *words, is_fatal=True):
        plan = self.plan(root, grants, *words)
        found = problems_of(plan, kind)
        self.assertTrue(found, f"no {kind} among {plan['problems']}")
        self.assertEqual({one["is_fatal"] for one in found}, {is_fatal}, found)
        if is_fatal:
            self.assertFalse(plan["would_work"])
        text = self.dma("plan", "--root", root, "--config", self.path("grants.toml"), *words,
                        code=0 if plan["would_work"] else 1)
        for one in plan["problems"]:
            self.assertIn(f"grants.toml:{one['line']}: {'error' if one['is_fatal'] else 'note'}: {one['text']}\n", text)
            for command in one["commands"]:
                self.assertIn(f"  $ {command}\n", text)
        return found

    def test_no_such_device(self):
        found = self.problem(archive("vtd"), vm("a", "0000:77:00.0", "mem:0x1000"), "no-such-device")
        self.assertEqual([one["device"] for one in found], ["0000:77:00.0", "mem:0x1000"])
        self.assertEqual([one["line"] for one in found], [5, 6])

    def test_a_bridge(self):
        self.problem(archive("vtd"), vm("a", "0000:00:04.0"), "is-bridge")

    def test_claimed_twice(self):
        grants = vm("a", "0000:00:03.0") + vm("b", "pci:0:3.0", "0000:01:00.0", "01:00.0")
        other, own = self.problem(archive("vtd"), grants, "claimed-twice")
        self.assertIn("'a''s by line 5", other["text"])
        self.assertIn("is the VM's already", own["text"])

    def test_a_containment_of_two_vms(self):
        found = self.problem(archive("vtd"), vm("a", "0000:08:01.0") + vm("b", "0000:08:02.0"), "containment-split")
        self.assertIn("'0000:08:02.0' can only be contained together with '0000:08:01.0'", found[0]["text"])

    def test_a_containment_with_two_reaches(self):
        grants = vm("a", "0000:08:01.0", reaching("0000:08:02.0", '{ memory = "ram", size = "1M" }'))
        self.assertIn("other memory", self.problem(archive("vtd"), grants, "containment-split")[0]["text"])

    def test_devices_that_no_unit_protects(self):
        for name, why in (("none", "no IOMMU"), ("vtd-off", "an IOMMU that the kernel does not use")):
            self.assertIn(why, self.problem(archive(name), vm("a", "0000:00:03.0"), "not-protected")[0]["text"])

    def test_another_device_of_the_group_has_a_driver_of_the_host(self):
        root = self.packed(with_driver(entries("vtd"), "0000:00:08.1", "e1000e"))
        found = self.problem(root, vm("a", "0000:00:08.0"), "group-not-viable")
        self.assertIn("'0000:00:08.1' is in its group and used by the host's driver 'e1000e'", found[0]["text"])
        self.assertIn("echo 0000:00:08.1 > /sys/bus/pci/devices/0000:00:08.1/driver/unbind", found[0]["commands"])
        self.assertTrue(self.plan(archive("vtd"), vm("a", "0000:00:08.0"))["would_work"])

    def test_the_device_itself_has_a_driver_of_the_host(self):
        root = self.packed(with_driver(entries("vtd"), "0000:00:03.0", "e1000e"))
        found = self.problem(root, vm("a", "0000:00:03.0"), "driver-bound")
        self.assertIn("echo 0000:00:03.0 > /sys/bus/pci/devices/0000:00:03.0/driver/unbind", found[0]["commands"])

    def test_memory_that_firmware_keeps(self):
        found = self.problem(archive("vtd"), vm("a", "0000:00:03.0"), "firmware-memory", "reserved", "pci:0:3.0",
                             "0x10000000,1M")
        self.assertIn("0x10000000 to 0x100fffff always (from command line)", found[0]["text"])

    def test_interrupts_that_are_not_isolated(self):
        grants = vm("a", "0000:00:03.0")
        self.problem(archive("virtio-iommu"), grants, "interrupts-not-isolated")
        machine = {**entries("virtio-iommu"), f"{TYPE1}/allow_unsafe_interrupts": b"Y\n"}
        self.problem(self.packed(machine), grants, "interrupts-not-isolated", is_fatal=False)

    def test_memory_over_the_msi_window(self):
        grants = vm("a", "0000:00:03.0", memory='{ name = "high", at = 0xfe00_0000, size = "32M" }')
        found = self.problem(archive("vtd"), grants, "reserved-overlap")
        self.assertIn("memory 'high' lies over 0xfee00000 to 0xfeefffff", found[0]["text"])
        below = vm("a", "0000:00:03.0", memory='{ name = "high", at = 0xfe00_0000, size = "14M" }')
        self.assertTrue(self.plan(archive("vtd"), below)["would_work"])

    def test_addresses_that_the_unit_does_not_have(self):
        grants = vm("a", "0000:00:03.0", memory='{ name = "far", at = 0x7fff_fff000, size = "8K" }')
        self.assertIn("39-bit", self.problem(archive("vtd"), grants, "beyond-unit")[0]["text"])
        last = vm("a", "0000:00:03.0", memory='{ name = "far", at = 0x7fff_fff000, size = "4K" }')
        self.assertTrue(self.plan(archive("vtd"), last)["would_work"])

    def test_more_mappings_than_vfio_takes(self):
        machine = {**entries("vtd"), f"{TYPE1}/dma_entry_limit": b"3\n"}
        ranges = [f'{{ memory = "ram", offset = {i * 8192}, size = 4096 }}' for i in range(4)]
        found = self.problem(self.packed(machine), vm("a", reaching("0000:00:03.0", *ranges)), "entry-limit")
        self.assertEqual(found[0]["commands"], [f"echo 4 > /{TYPE1}/dma_entry_limit"])
        fewer = vm("a", reaching("0000:00:03.0", *ranges[:3]))
        self.assertTrue(self.plan(self.path("machine.tar"), fewer)["would_work"])

    def test_more_memory_than_may_be_locked(self):
        found = self.problem(archive("vtd"), vm("a", "0000:00:03.0", more='memory_lock = "8M"'), "memory-lock")
        self.assertIn("16M would be locked, and the limit is 8M", found[0]["text"])
        self.assertEqual(found[0]["commands"][0], "ulimit -l 16384")
        self.assertTrue(self.plan(archive("vtd"), vm("a", "0000:00:03.0", more='memory_lock = "16M"'))["would_work"])

    def test_more_memory_than_the_machine_has(self):
        grants = vm("a", "0000:00:03.0", memory='{ name = "ram", at = 0, size = "64G" }',
                    more='memory_lock = "unlimited"')
        self.assertIn("the machine has", self.problem(archive("vtd"), grants, "memory-lock")[0]["text"])

    def test_ranges_that_are_no_whole_pages(self):
        grants = vm("a", reaching("0000:00:03.0", '{ memory = "ram", offset = 512, size = 512 }'))
        found = self.problem(archive("vtd"), grants, "granule", is_fatal=False)
        self.assertIn("0xe00 bytes more than granted", found[0]["text"])

    def test_ranges_that_overlap_with_other_permissions(self):
        for ranges in (('{ memory = "ram", size = 8192, permissions = "r" }',
                        '{ memory = "ram", offset = 4096, size = 8192 }'),
                       ('{ memory = "ram", size = 512, permissions = "r" }',
                        '{ memory = "ram", offset = 512, size = 512 }')):
            self.problem(archive("vtd"), vm("a", reaching("0000:00:03.0", *ranges)), "permission-conflict")

    def test_a_unit_that_cannot_forbid_reads(self):
        grants = vm("a", reaching("0000:00:03.0", '{ memory = "ram", permissions = "w" }'))
        self.problem(archive("vtd"), grants, "permission-kept-wider", is_fatal=False)
        mapping = self.plan(archive("vtd"), grants)["domains"][0]["mappings"][0]
        self.assertEqual((mapping["asked"], mapping["kept"]), ("w", "rw"))
        mapping = self.plan(archive("amdvi"), grants)["domains"][0]["mappings"][0]
        self.assertEqual((mapping["asked"], mapping["kept"]), ("w", "w"))

    def test_writing_to_memory_that_the_vm_may_only_read(self):
        grants = vm("a", reaching("0000:00:03.0", '{ memory = "rom" }'),
                    memory='{ name = "rom", at = 0, size = "1M", writable = false }')
        self.problem(archive("vtd"), grants, "read-only-memory")

    def test_what_could_not_be_read_is_not_settled(self):
        """Without the unit's registers nobody knows whether it remaps interrupts."""
        machine = {name: content for name, content in entries("vtd").items()
                   if "intel-iommu" not in name and "acpi/tables" not in name}
        plan = self.plan(self.packed(machine), vm("a", "0000:00:03.0"))
        self.assertEqual([one["kind"] for one in plan["problems"]], ["driver-bound", "not-settled"])
        self.assertTrue(plan["would_work"])

    def test_names_of_the_machine_are_no_words_of_a_shell(self):
        """Commands have addresses and nothing that a driver's name could bring along."""
        root = self.packed(with_driver(entries("vtd"), "0000:00:03.0", "$(reboot);\x1b[31m"))
        found = self.problem_commands(root)
        self.assertTrue(found)
        for command in found:
            self.assertRegex(command, r"^(modprobe vfio-pci|echo (vfio-pci|0000:00:03\.0) > "
                                      r"/sys/bus/pci/[0-9a-z:._/]+)$")

    def problem_commands(self, root):
        return [command for one in self.plan(root, vm("a", "0000:00:03.0"))["problems"] for command in one["commands"]]


class GrantsFile(DmaCase):
    def assert_mistake(self, text, *said):
        path = self.write("grants.toml", text)
        done = self.refused("plan", "--root", archive("none"), "--config", path)
        for words in said:
            self.assertIn(words, done)
        self.assertRegex(done, r"grants\.toml:\d+:\d+: error: ")
        self.assertRegex(done, r"\n +\| +\^")

    def test_mistakes_are_shown_with_a_caret(self):
        self.assert_mistake(vm("a", "0000:00:03.0", more="nothing = 1"), "nothing")
        self.assert_mistake(vm("a", "x") + vm("a", "y"), "VM 'a' is in line 1 already")
        self.assert_mistake(vm("a", "x", memory='{ name = "ram", at = 1, size = "1M" }'), "0x1 is not at a page")
        self.assert_mistake(vm("a", "x", memory='{ name = "ram", at = 0, size = 100 }'), "no whole pages")
        self.assert_mistake(vm("a", "x", memory='{ name = "ram", at = 0, size = "1M", page = "3K" }'), "no page size")
        self.assert_mistake(vm("a", "x", memory=f'{RAM}, {{ name = "b", at = 4096, size = "1M" }}'), "overlaps 'ram'")
        self.assert_mistake(vm("a", reaching("x", '{ memory = "ran" }')), "did you mean 'ram'?")
        self.assert_mistake(vm("a", reaching("x", '{ memory = "ram", permissions = "x" }')), "no permissions")
        self.assert_mistake(vm("a", reaching("x", '{ memory = "ram", offset = "16M" }')), "behind the 16M of 'ram'")
        self.assert_mistake('[[vm]]\nname = "a"\ndevice = []\n', "has no memory")
        self.assert_mistake("# nothing\n", "no VM")
        self.assert_mistake("[[vm\n", "")

    def test_all_mistakes_are_told_at_once(self):
        path = self.write("grants.toml", vm("", "x", more="a = 1") + vm("b", reaching("x", '{ memory = "no" }')))
        said = self.refused("plan", "--root", archive("none"), "--config", path)
        self.assertEqual(len(re.findall(r": error: ", said)), 3)

    def test_a_file_that_cannot_be_read(self):
        self.assertIn("nowhere.toml", self.refused("plan", "--config", "nowhere.toml", "--root", archive("none")))
        self.assertIn("directory", self.refused("plan", "--config", "/", "--root", archive("none")).lower())


class GroupsStayWhole(DmaCase):
    """No two devices that the kernel has in one group are ever planned for two VMs."""

    def containments(self, root):
        found = self.discover(root)
        return found["devices"], [one["devices"] for one in found["containments"]], found["kernel_groups"]

    def test_a_vm_for_each_device_parts_every_group_and_says_so(self):
        for name in NAMES:
            with self.subTest(machine=name):
                devices, containments, groups = self.containments(archive(name))
                plan = self.plan(archive(name), "".join(vm(f"vm-{i}", device["name"]) for i, device
                                                        in enumerate(devices)))
                split = {one["device"]: one for one in problems_of(plan, "containment-split")}
                for members in [*containments, *(group["devices"] for group in groups)]:
                    for device in sorted(members)[1:]:
                        self.assertIn(device, split)
                        self.assertTrue(split[device]["is_fatal"])

    def test_each_pair_of_a_group_is_refused_and_the_whole_group_is_not(self):
        for name in ("vtd", "smmuv3-tree"):
            with self.subTest(machine=name):
                devices, _, groups = self.containments(archive(name))
                bridges = {device["name"] for device in devices if device["is_bridge"]}
                count = 0
                for group in groups:
                    members = [device for device in group["devices"] if device not in bridges]
                    for one, other in itertools.combinations(members, 2):
                        for pair in ((one, other), (other, one)):
                            plan = self.plan(archive(name), vm("a", pair[0]) + vm("b", pair[1]))
                            self.assertFalse(plan["would_work"], pair)
                            self.assertTrue(problems_of(plan, "containment-split"), pair)
                            count += 1
                    if members:
                        plan = self.plan(archive(name), vm("a", *members))
                        self.assertFalse(problems_of(plan, "containment-split"), members)
                self.assertGreaterEqual(count, 4)

    def test_groups_hold_though_no_reason_is_seen(self):
        """The kernel's word alone: a group that nothing else would make."""
        machine = entries("vtd")
        del machine[f"{GROUPS}/9/devices/0000:01:00.0"]
        machine[f"{GROUPS}/1/devices/0000:01:00.0"] = Link("devices/pci0000:00/0000:00:04.0/0000:01:00.0")
        machine[f"{PCI}/0000:01:00.0/iommu_group"] = Link("kernel/iommu_groups/1")
        root = self.packed(machine)
        plan = self.plan(root, vm("a", "0000:00:03.0") + vm("b", "0000:01:00.0"))
        self.assertTrue(problems_of(plan, "containment-split"))
        self.assertIn("kernel-group", json.dumps(self.discover(root)["containments"]))


if __name__ == "__main__":
    main()
