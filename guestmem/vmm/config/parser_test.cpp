// SPDX-License-Identifier: Apache-2.0
#include "guestmem/vmm/config/parser.hpp"

#include <gmock/gmock.h>

#include "guestmem/vmm/config/testing/read_config.hpp"

namespace guestmem::vmm {
namespace {

using testing::complaint_of;
using testing::complaint_of_words;
using ::testing::HasSubstr;
using testing::in_a_vm;
using ::testing::Not;
using testing::plan_of;
using ::testing::SizeIs;

std::size_t count_errors(const std::string& text) {
    std::size_t count = 0;
    for (std::size_t at = 0; (at = text.find(": error: ", at)) != std::string::npos; ++at) ++count;
    return count;
}

TEST(ConfigParser, AnUnknownWordGetsTheClosestOne) {
    EXPECT_EQ(complaint_of(in_a_vm("vdev shmem\n    alow camera\n")),
              "vm.qvmconf:5:5: error: unknown word 'alow' in vdev shmem (line 4)\n"
              "   5 |     alow camera\n"
              "     |     ^\n"
              "     = did you mean 'allow'?");
    EXPECT_EQ(complaint_of(in_a_vm("cmdlien \"a b\"\n")),
              "vm.qvmconf:4:1: error: unknown word 'cmdlien' in the machine\n"
              "   4 | cmdlien \"a b\"\n"
              "     | ^\n"
              "     = did you mean 'cmdline'?");
    EXPECT_EQ(complaint_of(in_a_vm("zzzzzzzzz 1\n")),
              "vm.qvmconf:4:1: error: unknown word 'zzzzzzzzz' in the machine\n"
              "   4 | zzzzzzzzz 1\n"
              "     | ^");
}

TEST(ConfigParser, AnUnknownDeviceGetsTheClosestOneAndItsWordsAreNotJudged) {
    EXPECT_EQ(complaint_of(in_a_vm("vdev shmen\n    create a,4K\n    whatever 1 2\ncpu\n    shed 1\n")),
              "vm.qvmconf:4:6: error: unknown device 'shmen'\n"
              "   4 | vdev shmen\n"
              "     |      ^\n"
              "     = did you mean 'shmem'?\n"
              "vm.qvmconf:8:5: error: unknown word 'shed' in cpu (line 7)\n"
              "   8 |     shed 1\n"
              "     |     ^\n"
              "     = did you mean 'sched'?");
    EXPECT_THAT(complaint_of(in_a_vm("vdev qqqqqq")), Not(HasSubstr("did you mean")));
}

TEST(ConfigParser, PassIsSaidToBeForLaterWithoutItsOptions) {
    EXPECT_EQ(
        complaint_of(in_a_vm("pass loc pci:0:1.0 intr x:1 set a b loc mem:0x1000,0x1000,rwd\nvdev shmem\n")),
        "vm.qvmconf:4:1: error: documented by QNX, not supported here: pass\n"
        "   4 | pass loc pci:0:1.0 intr x:1 set a b loc mem:0x1000,0x1000,rwd\n"
        "     | ^\n"
        "     = take the `pass` and its options out; a device of the host can be given to a QEMU guest by VFIO");
}

TEST(ConfigParser, AWordOfAnotherContextNamesIt) {
    EXPECT_EQ(complaint_of(in_a_vm("vdev ser8250\n  partition 3\n")),
              "vm.qvmconf:5:3: error: 'partition' is a word of cpu, not of vdev ser8250 (line 4)\n"
              "   5 |   partition 3\n"
              "     |   ^\n"
              "     = write it behind the cpu that it belongs to");
    EXPECT_THAT(complaint_of(in_a_vm("loc 0x1000")),
                HasSubstr("'loc' is a word of vdev and reserve, not of the machine"));
    EXPECT_EQ(complaint_of(in_a_vm("vdev ser8250 create a,4K")),
              "vm.qvmconf:4:14: error: vdev ser8250 (line 4) has no 'create'\n"
              "   4 | vdev ser8250 create a,4K\n"
              "     |              ^\n"
              "     = it is a word of vdev shmem");
    EXPECT_THAT(complaint_of(in_a_vm("vdev pckeyboard loc 0x60")),
                HasSubstr("it is a word of vdev ioapic, vdev ser8250, vdev pci, vdev shmem"));
    EXPECT_THAT(complaint_of(in_a_vm("vdev ivshmem share a allow b")),
                HasSubstr("it is a word of vdev shmem"));
}

TEST(ConfigParser, AWordTwiceNamesBothLines) {
    EXPECT_EQ(complaint_of(in_a_vm("system other\n")),
              "vm.qvmconf:4:1: error: 'system' stands already on line 1\n"
              "   4 | system other\n"
              "     | ^\n"
              "     = remove one of them");
    EXPECT_THAT(complaint_of(in_a_vm("vdev shmem\nname a\nname b\n")),
                HasSubstr("vm.qvmconf:6:1: error: 'name' stands already on line 5"));
    EXPECT_THAT(complaint_of(in_a_vm("dryrun dryrun")), HasSubstr("'dryrun' stands already"));
    EXPECT_THAT(complaint_of(in_a_vm("set debug 1 set debug 2")),
                HasSubstr("4:17: error: variable 'debug' is set already on line 4"));
    EXPECT_EQ(complaint_of(in_a_vm("vdev shmem name a vdev shmem name b")), "no complaint");
    EXPECT_THAT(complaint_of_words({"@vm", "system", "b"}, {{"vm", in_a_vm("")}}),
                HasSubstr("command line, word 2: error: 'system' stands already on vm:1:1\n   2 | system"));
    EXPECT_THAT(complaint_of(in_a_vm("reserve loc 0xd0000000,4K loc 0xd0001000,4K")),
                HasSubstr("'loc' stands already"));
}

TEST(ConfigParser, AMissingArgumentIsSaidAtItsWord) {
    EXPECT_EQ(complaint_of(in_a_vm("vdev ser8250\n    intr\nvdev timer8254\n")),
              "vm.qvmconf:5:5: error: 'intr' without its argument\n"
              "   5 |     intr\n"
              "     |     ^\n"
              "     = write intr CONTROLLER:PIN");
    EXPECT_THAT(complaint_of(in_a_vm("vdev")), HasSubstr("= write vdev TYPE"));
    EXPECT_THAT(complaint_of(in_a_vm("initrd load")), HasSubstr("4:8: error: 'load' without its argument"));
    EXPECT_THAT(complaint_of(in_a_vm("set debug")), HasSubstr("= write set VARIABLE VALUE"));
    EXPECT_THAT(complaint_of(in_a_vm("set")), HasSubstr("= write set VARIABLE VALUE"));
    EXPECT_THAT(complaint_of(in_a_vm("ram 1M backend")),
                HasSubstr("4:8: error: 'backend' without its argument"));
    EXPECT_THAT(complaint_of(in_a_vm("reserve")), HasSubstr("4:1: error: 'reserve' without a range"));
    EXPECT_THAT(complaint_of(in_a_vm("reserve reserve loc 0xd0000000,4K")),
                HasSubstr("4:1: error: 'reserve' without a"));
    EXPECT_THAT(complaint_of(in_a_vm("reserve pass")), HasSubstr("'reserve' without a range"));
}

TEST(ConfigParser, AnArgumentMayStandOnTheNextLine) {
    EXPECT_EQ(complaint_of(in_a_vm("vdev ioapic name pic vdev shmem loc 0x10000000 intr\npic:3\n")),
              "no complaint");
}

TEST(ConfigParser, StandAloneWordsDoNotEndAContext) {
    const VmConfig config = plan_of("system vm ram 1M load k vdev shmem safety none set debug x name late");
    EXPECT_EQ(config.vdevs.at(0).name->value, "late");
}

TEST(ConfigParser, QuotedTextIsNeverAWord) {
    EXPECT_EQ(complaint_of(in_a_vm("\"cpu\"\n")),
              "vm.qvmconf:4:1: error: a quoted text where a word belongs\n"
              "   4 | \"cpu\"\n"
              "     | ^\n"
              "     = is the word before it missing?");
    EXPECT_EQ(plan_of("system vm ram 1M load k vdev shmem name\n\"cpu\"").vdevs.at(0).name->value, "cpu");
}

TEST(ConfigParser, OneMistakeIsOneFinding) {
    for (const char* text :
         {"rom 5", "ram 12X", "ramm 3", "vdev shmem lock 0x1000 vdev shmem", "cpu sched 0 cpu",
          "logger debug,info,error slog", "unsupported register ignore", "debug", "initrd kernel",
          "load 0x1000,", "vdev shmem create a,5 allow b", "vdev ivshmem share a/b size 4K",
          "vdev ioapic name a:b vdev timer8254 intr a:0", "vdev iopic name pic vdev timer8254 intr pic:0",
          "vdev shmem intr pic:99 loc 0xd0000000", "backend memory-backend-ram"})
        EXPECT_EQ(count_errors(complaint_of(in_a_vm(text))), 1U) << complaint_of(in_a_vm(text));
    EXPECT_EQ(count_errors(complaint_of("system a/b ram 0 load \"\"")), 3U);
}

TEST(ConfigParser, AllMistakesAreSaidAtOnce) {
    const std::string said =
        complaint_of("system a/b\nram 5\nload \"\"\ncmdlin x\ncpu\n  sched 100\nvdev nix\n");
    EXPECT_EQ(count_errors(said), 6U) << said;
}

TEST(ConfigParser, MemoryIsALengthOrAStartAndALength) {
    EXPECT_EQ(complaint_of(in_a_vm("ram 1M,2M,3M\n")),
              "vm.qvmconf:4:5: error: '1M,2M,3M' is not [START,]LENGTH\n"
              "   4 | ram 1M,2M,3M\n"
              "     |     ^\n"
              "     = write a length such as 192M, or 1M,191M");
    EXPECT_THAT(complaint_of(in_a_vm("rom 64K")), HasSubstr("4:5: error: '64K' is not START,LENGTH"));
    EXPECT_THAT(complaint_of(in_a_vm("reserve loc 64K")), HasSubstr("'64K' is not START,LENGTH"));
    EXPECT_THAT(complaint_of(in_a_vm("ram 0x1001,1M")),
                HasSubstr("4:5: error: start 0x1001 is not a multiple of the page size 4096\n"));
    EXPECT_THAT(complaint_of(in_a_vm("ram 1G,5000")),
                HasSubstr("4:8: error: length 5000 is not whole pages of 4096 bytes\n   4 | ram 1G,5000\n"
                          "     |        ^\n     = the next length is 8K"));
    EXPECT_THAT(complaint_of(in_a_vm("ram 0")), HasSubstr("a length of 0"));
    EXPECT_THAT(complaint_of(in_a_vm("ram 1G,")), HasSubstr("4:8: error: length: '' is no number"));
    EXPECT_THAT(complaint_of(in_a_vm("ram ,1G")), HasSubstr("4:5: error: start: '' is no number"));
    EXPECT_THAT(complaint_of(in_a_vm("ram 99999999T")), HasSubstr("length: 99999999T is beyond 2^64 - 1"));
    EXPECT_THAT(complaint_of(in_a_vm("ram 8192T")),
                HasSubstr("length 8192T is more than x86-64 has addresses, 4096T"));
    EXPECT_THAT(complaint_of(in_a_vm("ram 4096T,4K")), HasSubstr("start 4096T is beyond the last address"));
}

TEST(ConfigParser, ABackendIsKeptAsTextWithItsPlace) {
    const VmConfig config = plan_of(
        "system vm ram 1G backend\n memory-backend-file,mem-path=\"/a b\",x=1\n"
        "load k");
    ASSERT_TRUE(config.memory.at(0).backend);
    EXPECT_EQ(config.memory[0].backend->value, "memory-backend-file,mem-path=/a b,x=1");
}

TEST(ConfigParser, ABackendStandsBehindRam) {
    EXPECT_THAT(complaint_of(in_a_vm("ram 1M backend memfd")),
                HasSubstr("4:16: error: 'memfd' is no memory backend\n"));
    EXPECT_THAT(complaint_of(in_a_vm("cpu backend memory-backend-ram")),
                HasSubstr("4:5: error: 'backend' stands directly behind the argument of 'ram'"));
    EXPECT_THAT(complaint_of(in_a_vm("ram 5 backend memory-backend-ram")), HasSubstr("is not whole pages"));
    EXPECT_THAT(complaint_of(in_a_vm("ram 1M backend memory-backend-ram backend memory-backend-ram")),
                HasSubstr("4:35: error: 'backend' stands directly"));
}

TEST(ConfigParser, AnAddressOfALoadIsANumberBeforeAComma) {
    const VmConfig config = plan_of("system v ram 1M load a,b data load 0x1000,c,d data load 4K,0x1,e");
    EXPECT_EQ(config.loads.at(0).file.value, "a,b");
    EXPECT_FALSE(config.loads[0].address);
    EXPECT_EQ(config.loads.at(1).address->value, GuestAddress{0x1000});
    EXPECT_EQ(config.loads[1].file.value, "c,d");
    EXPECT_EQ(config.loads.at(2).file.value, "0x1,e");
    EXPECT_THAT(complaint_of(in_a_vm("data load 0x1q,file")),
                HasSubstr("4:11: error: address: '0x1q' is no number"));
    EXPECT_THAT(complaint_of(in_a_vm("data load 8192T,file")),
                HasSubstr("address 9007199254740992 is not within"));
    EXPECT_THAT(complaint_of(in_a_vm("data load 0x1000,")), HasSubstr("4:18: error: an empty file name"));
    EXPECT_THAT(complaint_of(in_a_vm("initrd vdev shmem")), HasSubstr("4:1: error: 'initrd' without 'load'"));
}

TEST(ConfigParser, ACommandLineHasALimit) {
    const std::string full(max_cmdline_bytes, 'a');
    EXPECT_EQ(complaint_of(in_a_vm("cmdline " + full)), "no complaint");
    EXPECT_THAT(complaint_of(in_a_vm("cmdline b" + full)),
                HasSubstr("a command line of 2048 bytes: a kernel takes 2047"));
}

TEST(ConfigParser, SafetyIsNotPromised) {
    EXPECT_EQ(plan_of(in_a_vm("safety none")).safety->value, Safety::none);
    EXPECT_EQ(plan_of(in_a_vm("safety warn")).safety->value, Safety::warn);
    EXPECT_THAT(complaint_of(in_a_vm("safety required")), HasSubstr("not supported here: safety required"));
    EXPECT_THAT(complaint_of(in_a_vm("safety first")),
                HasSubstr("'first' is not one of none, warn, required"));
}

TEST(ConfigParser, VariablesHaveTypes) {
    const VmConfig config = plan_of(in_a_vm("set exit-on-halt on\ncpu set slog-buffer 8K set debug \"a b\""));
    ASSERT_THAT(config.settings, SizeIs(3));
    EXPECT_TRUE(std::get<bool>(config.settings[0].value.value));
    EXPECT_EQ(std::get<std::uint64_t>(config.settings[1].value.value), 8192U);
    EXPECT_EQ(std::get<std::string>(config.settings[2].value.value), "a b");
    EXPECT_THAT(complaint_of(in_a_vm("set exit-on-halt maybe")),
                HasSubstr("4:18: error: 'maybe' is neither yes nor no"));
    EXPECT_THAT(complaint_of(in_a_vm("set slog-buffer big")), HasSubstr("slog-buffer: 'big' is no number"));
    EXPECT_THAT(complaint_of(in_a_vm("set exit-on-hlt 1")), HasSubstr("did you mean 'exit-on-halt'?"));
    EXPECT_THAT(complaint_of(in_a_vm("set qqqqqqqqqq 1")), Not(HasSubstr("did you mean")));
}

TEST(ConfigParser, CpusHaveTheirOptions) {
    const VmConfig config = plan_of(in_a_vm("cpu partition 2 runmask 0,3,1023 sched 99o cpu sched 1"));
    ASSERT_THAT(config.cpus, SizeIs(2));
    EXPECT_EQ(config.cpus[0].partition->value, 2U);
    EXPECT_EQ(config.cpus[0].runmask.at(2).value, 1023U);
    EXPECT_EQ(config.cpus[0].sched->value, (Sched{99, SchedPolicy::other}));
    EXPECT_EQ(config.cpus[1].sched->value, (Sched{1, std::nullopt}));
    EXPECT_THAT(complaint_of(in_a_vm("cpu runmask 0,1,0")), HasSubstr("4:17: error: CPU 0 twice"));
    EXPECT_THAT(complaint_of(in_a_vm("cpu runmask 0,")), HasSubstr("4:15: error: CPU: '' is no number"));
    EXPECT_THAT(complaint_of(in_a_vm("cpu runmask 1024")), HasSubstr("CPU 1024 is not within 0 to 1023"));
    EXPECT_THAT(complaint_of(in_a_vm("cpu partition 32")), HasSubstr("partition 32 is not within 0 to 31"));
}

TEST(ConfigParser, ThereAreAtMost254Cpus) {
    std::string text = in_a_vm("");
    for (std::size_t i = 0; i < max_vcpus; ++i) text += "cpu\n";
    EXPECT_THAT(plan_of(text).cpus, SizeIs(254));
    EXPECT_EQ(complaint_of(text + "cpu sched 10\ncpu sched 999\n"),
              "vm.qvmconf:258:1: error: more than 254 virtual CPUs\n"
              " 258 | cpu sched 10\n"
              "     | ^");
}

TEST(ConfigParser, ListsHaveLimits) {
    const auto many = [](std::string_view line, std::size_t count) {
        std::string text = in_a_vm("");
        for (std::size_t i = 0; i < count; ++i) text += fmt::format("{}\n", line);
        return complaint_of(text);
    };
    EXPECT_EQ(many("vdev shmem", max_pci_vdevs), "no complaint");
    EXPECT_THAT(many("vdev shmem", max_vdevs + 1), HasSubstr("error: more than 64 vdevs"));
    EXPECT_EQ(many("ram 4K", max_memory_lines - 1), "no complaint");
    EXPECT_THAT(many("ram 4K", max_memory_lines), HasSubstr("67:1: error: more than 64 ranges of memory"));
    EXPECT_EQ(many("acpi load x", max_loads - 1), "no complaint");
    EXPECT_THAT(many("acpi load x", max_loads + 1), HasSubstr("35:1: error: more than 32 files to load"));
}

TEST(ConfigParser, ADroppedUseIsNamed) {
    Sources sources;
    Findings findings{sources};
    const std::vector<Token> tokens = read_tokens_of_text("ram 5 vdev gic", "f", {}, sources, findings);
    const Parsed parsed = parse_tokens(tokens, findings);
    EXPECT_EQ(parsed.broken, (std::set{Word::ram, Word::vdev}));
}

}  // namespace
}  // namespace guestmem::vmm
