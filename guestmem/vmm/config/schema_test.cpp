// SPDX-License-Identifier: Apache-2.0
#include "guestmem/vmm/config/schema.hpp"

#include <gmock/gmock.h>

#include <array>
#include <set>

#include "guestmem/sys/fd.hpp"
#include "guestmem/vmm/config/testing/read_config.hpp"

namespace guestmem::vmm {
namespace {

using testing::complaint_of;
using ::testing::HasSubstr;
using testing::in_a_vm;

constexpr std::string_view ioapic = "vdev ioapic intr apic name pic\n";

/// A use of each word that a VM of in_a_vm() takes; what the word needs around it stands there, too.
std::string example_of(const WordRow& row) {
    static const std::map<std::pair<Context, std::string_view>, std::string> examples{
        {{Context::machine, "system"}, ""},
        {{Context::machine, "ram"}, "ram 0x100000000,1G"},
        {{Context::machine, "backend"}, "ram 64M backend memory-backend-ram,merge=off"},
        {{Context::machine, "rom"}, "rom 0xfffc0000,256K"},
        {{Context::machine, "reserve"}, "reserve loc 0xd0000000,64K"},
        {{Context::machine, "cpu"}, "cpu cpu"},
        {{Context::machine, "load"}, "acpi load table.aml"},
        {{Context::machine, "cmdline"}, "cmdline \"console=ttyS0 quiet\""},
        {{Context::machine, "vdev"}, "vdev vdev-shmem.so"},
        {{Context::machine, "set"}, "set exit-on-halt yes"},
        {{Context::machine, "safety"}, "safety warn"},
        {{Context::machine, "dryrun"}, "dryrun"},
        {{Context::cpu, "partition"}, "cpu partition 3"},
        {{Context::cpu, "runmask"}, "cpu runmask 0,1"},
        {{Context::cpu, "sched"}, "cpu sched 10f"},
        {{Context::vdev, "loc"}, "vdev ioapic loc 0xf8000000"},
        {{Context::vdev, "intr"}, std::string{ioapic} + "vdev timer8254 intr pic:0"},
        {{Context::vdev, "name"}, "vdev mc146818 name clock:1"},
        {{Context::vdev, "sched"}, "vdev shmem sched 20"},
        {{Context::vdev, "hostdev"}, "vdev ser8250 hostdev >-"},
        {{Context::vdev, "create"}, "vdev shmem create TEST1,0xf0000"},
        {{Context::vdev, "allow"}, "vdev shmem allow camera-*"},
        {{Context::vdev, "deny"}, "vdev shmem deny [a-c]?"},
        {{Context::vdev, "share"}, "vdev ivshmem share mail"},
        {{Context::vdev, "size"}, "vdev ivshmem share mail size 1M"},
        {{Context::vdev, "vectors"}, "vdev ivshmem share mail vectors 4"},
        {{Context::vdev, "mode"}, "vdev ivshmem share mail mode plain"},
        {{Context::reserve, "loc"}, "reserve loc 0xd0000000,64K"},
    };
    const auto found = examples.find({row.context, row.text});
    return found == examples.end() ? "no example of " + std::string{row.text} : found->second;
}

TEST(Schema, EveryWordThatWorksIsTaken) {
    for (const WordRow& row : word_rows()) {
        if (row.support != Support::not_here) {
            EXPECT_EQ(complaint_of(in_a_vm(example_of(row))), "no complaint") << row.text;
        }
    }
}

TEST(Schema, EveryWordThatIsNotHereSaysSoAndWhatToDo) {
    for (const WordRow& row : word_rows()) {
        if (row.support != Support::not_here) continue;
        const std::string said = complaint_of(in_a_vm(fmt::format("{} a,b c\ncpu\n", row.text)));
        EXPECT_EQ(said, fmt::format("vm.qvmconf:4:1: error: documented by QNX, not supported here: {0}\n"
                                    "   4 | {0} a,b c\n"
                                    "     | ^\n"
                                    "     = {1}",
                                    row.text, row.help));
    }
}

TEST(Schema, EveryDeviceThatWorksIsTakenByBothItsNames) {
    for (const VdevRow& row : vdev_rows()) {
        const std::string_view rest = row.kind == VdevKind::ivshmem ? "share mail" : "";
        for (const std::string& name : {std::string{row.text}, fmt::format("vdev-{}.so", row.text)}) {
            const std::string said = complaint_of(in_a_vm(fmt::format("vdev {} {}\n", name, rest)));
            if (row.support == Support::works) {
                EXPECT_EQ(said, "no complaint") << name;
            } else {
                EXPECT_THAT(said,
                            HasSubstr(fmt::format("vm.qvmconf:4:6: error: documented by QNX, not supported "
                                                  "here: vdev {}\n",
                                                  row.text)));
                EXPECT_THAT(said, HasSubstr(row.help));
            }
        }
    }
}

TEST(Schema, EveryVariableIsTakenOrExplained) {
    static constexpr std::array<std::string_view, 3> values{"no", "4K", "text"};
    for (const VariableRow& row : variable_rows()) {
        const std::string said = complaint_of(
            in_a_vm(fmt::format("set {} {}", row.text, values[static_cast<std::size_t>(row.type)])));
        if (row.support == Support::not_here) {
            EXPECT_THAT(said, HasSubstr(fmt::format("not supported here: set {}\n", row.text)));
            EXPECT_THAT(said, HasSubstr(row.help));
        } else {
            EXPECT_EQ(said, "no complaint") << row.text;
        }
    }
}

TEST(Schema, EveryTypeOfLoadIsTakenOrExplained) {
    for (const LoadRow& row : load_rows()) {
        if (row.text.empty()) continue;
        const std::string said = complaint_of(
            in_a_vm(fmt::format("{} load {}file", row.text, row.kind == LoadKind::data ? "0x1000," : "")));
        if (row.support == Support::not_here) {
            EXPECT_THAT(said, HasSubstr(fmt::format("not supported here: {} load\n", row.text)));
        } else {
            EXPECT_EQ(said, "no complaint") << row.text;
        }
    }
}

TEST(Schema, AWordOccursOncePerContext) {
    std::set<std::pair<Context, std::string_view>> words;
    for (const WordRow& row : word_rows()) {
        EXPECT_TRUE(words.emplace(row.context, row.text).second) << row.text;
        EXPECT_FALSE(row.help.empty()) << row.text;
        EXPECT_EQ(row.context == Context::vdev, row.vdevs != 0) << row.text;
        EXPECT_EQ(find_word(row.text, row.context), &row);
        EXPECT_TRUE(is_any_word(row.text));
    }
    EXPECT_TRUE(is_machine_word("ram"));
    EXPECT_FALSE(is_machine_word("create"));
    EXPECT_FALSE(is_any_word("shmem"));
}

TEST(Schema, ARowIsFoundByItsKind) {
    for (const VdevRow& row : vdev_rows()) {
        if (row.support == Support::works) {
            EXPECT_EQ(&row_of(row.kind), &row);
        }
        EXPECT_EQ(find_vdev(row.text), &row);
    }
    for (const VariableRow& row : variable_rows())
        if (row.support != Support::not_here) {
            EXPECT_EQ(&row_of(row.variable), &row);
        }
    for (const LoadRow& row : load_rows())
        if (row.support == Support::works) {
            EXPECT_EQ(&row_of(row.kind), &row);
        }
    EXPECT_EQ(find_vdev("vdev-.so"), nullptr);
    EXPECT_EQ(find_vdev("vdev-shmem"), nullptr);
    EXPECT_EQ(find_vdev("shmem.so"), nullptr);
    EXPECT_EQ(find_vdev(""), nullptr);
}

TEST(Schema, TheGuideHasTheReference) {
    const auto guide = read_text_file(GUESTMEM_SOURCE "/docs/guide/run.md", 1 << 20);
    ASSERT_TRUE(guide) << guide.error().message();
    EXPECT_THAT(*guide, HasSubstr(language_reference()))
        << "the page ends in what language_reference() prints";
}

TEST(Schema, TheReferenceNamesAllThereIs) {
    const std::string reference = language_reference();
    for (const WordRow& row : word_rows())
        if (row.context != Context::pass) {
            EXPECT_THAT(reference, HasSubstr(fmt::format("| `{}` |", row.text)));
        }
    for (const VdevRow& row : vdev_rows())
        EXPECT_THAT(reference, HasSubstr(fmt::format("| `{}` |", row.text)));
    for (const VariableRow& row : variable_rows())
        EXPECT_THAT(reference, HasSubstr(fmt::format("| `{}` |", row.text)));
    EXPECT_THAT(reference, HasSubstr("| `initrd load` |"));
    EXPECT_THAT(reference,
                HasSubstr("| `mode` | `doorbell\\|plain` | ivshmem | our extension: with interrupts"));
    EXPECT_THAT(reference, HasSubstr("| `allow` | `PATTERN` | shmem | names that the guest"));
    EXPECT_THAT(reference, HasSubstr("| `pass` |  | documented by QNX, not supported here: "));
}

}  // namespace
}  // namespace guestmem::vmm
