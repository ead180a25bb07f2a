// SPDX-License-Identifier: Apache-2.0
#include "guestmem/mem/backends/plan.hpp"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <array>
#include <optional>
#include <regex>
#include <set>
#include <sstream>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "guestmem/mem/backends/option_text.hpp"
#include "guestmem/mem/backends/size_text.hpp"
#include "guestmem/mem/backends/testing/worlds.hpp"

namespace guestmem {
namespace {

using ::testing::Contains;
using ::testing::HasSubstr;
using ::testing::Not;
using namespace testing;  // NOLINT(google-build-using-namespace): the words of tests

struct Rule {
    std::string code;
    Severity severity;
    std::vector<std::string> says;  ///< in the message or in the advice
    std::string bad;
    std::string good;
};
constexpr Severity refusal = Severity::refusal;
constexpr Severity warning = Severity::warning;

// One rule a row, so that each is read at a glance.
// clang-format off
const std::vector<Rule> option_rules{
    {"mode", refusal, {"readonly=on"}, "file,rom=on", "file,rom=on,readonly=on"},
    {"shm-is-shared", refusal, {"memory-backend-ram"}, "shm,share=off", "shm,share=on"},
    {"physical-is-shared", refusal, {"share=off"}, "physical,share=off", "physical"},
    {"no-path", refusal, {"memory-backend-file needs mem-path"}, "file|no-path", "file"},
    {"no-path", refusal, {"memory-backend-physical needs"}, "physical|no-path", "physical"},
    {"prealloc-threads-without-prealloc", warning, {"prealloc=on"},
     "ram,prealloc-threads=4", "ram,prealloc-threads=4,prealloc=on"},
    {"prealloc-without-reserve", refusal, {"reserve=off"}, "ram,prealloc=on,reserve=off", "ram,reserve=off"},
    {"prealloc-of-rom", refusal, {"may not be written"}, "file,prealloc=on,readonly=on", "file,prealloc=on,share=on"},
    {"prealloc-copies-file", warning, {"all 4M of the file", "leave prealloc out"},
     "file,prealloc=on,readonly=on,rom=off", "file,readonly=on,rom=off"},
    {"prealloc-copies-file", warning, {"all 4M of the file"}, "file,prealloc=on|hugetlbfs", "file,prealloc=on|absent"},
    {"discard-of-readonly", warning, {"read-only"}, "file,discard-data=on,readonly=on", "file,readonly=on"},
    {"discard-of-private", warning, {"share=off"}, "file,discard-data=on", "file,discard-data=on,share=on"},
    {"discard-zeroes-file", warning, {"4194304 bytes", "from byte 1048576 on"},
     "file,discard-data=on,share=on,offset=1M", "file,discard-data=on,share=on|folder"},
    {"pmem-is-ordinary", warning, {"not flushed"}, "file,pmem=on", "file"},
    {"policy-without-nodes", refusal, {"host-nodes=0"}, "ram,policy=bind", "ram,policy=bind,host-nodes=0"},
    {"nodes-without-policy", refusal, {"policy=bind"}, "ram,host-nodes=0", "ram,host-nodes=0,policy=preferred"},
    {"hugetlbsize-without-hugetlb", warning, {"hugetlb=on"},
     "memfd,hugetlbsize=2M", "memfd,hugetlbsize=2M,hugetlb=on"},
    {"hugetlbsize-not-a-power", refusal, {"3145728"},
     "memfd,hugetlb=on,hugetlbsize=3M", "memfd,hugetlb=on,hugetlbsize=2M"},
    {"no-huge-pages", refusal, {"no huge pages"}, "memfd,hugetlb=on|default-huge=0", "memfd,hugetlb=on"},
    {"size-zero", refusal, {"size is 0"}, "ram|size=0", "ram|size=4096"},
    {"size-beyond-space", refusal, {"139637976731648", "127T"}, "memfd|size=139637976731648", "memfd,size=32G"},
    {"size-beyond-space", refusal, {"4194304 in pages of 8E"}, "memfd,hugetlb=on,hugetlbsize=8E", "memfd,hugetlb=on"},
    {"size-rounded-up", warning, {"4097", "8192"}, "ram,size=4097", "ram,size=8192"},
    {"size-not-whole-pages", refusal, {"4097", "pages of 4096", "8192"}, "file,size=4097", "file,size=8192"},
    {"size-not-whole-pages", refusal, {"3145728", "pages of 2097152", "4194304"},
     "memfd,hugetlb=on,size=3M", "memfd,size=3M"},
    {"offset-not-whole-pages", refusal, {"4097", "the one below is 4096"}, "file,offset=4097", "file,offset=4096"},
    {"offset-beyond-file", refusal, {"9223372036850581504", "4194304"},
     "file,offset=9223372036850581504", "physical,offset=9223372036850577408"},
    {"align-not-a-power", refusal, {"align 12288"}, "file,align=12K", "file,align=8K"},
    {"align-below-page", refusal, {"2048", "4096"}, "file,align=2K", "file,align=4K"},
    {"align-beyond-space", refusal, {"140737488355328"}, "file,align=128T", "file,align=64T"},
};

const std::vector<Rule> file_rules{
    {"file-missing", refusal, {"/vm/a.ram does not exist"}, "file,readonly=on|absent", "file|absent"},
    {"folder-is-no-file", refusal, {"/vm/a.ram is a folder"}, "file,readonly=on|folder", "file|folder"},
    {"folder-missing", refusal, {"/vm/a.ram"}, "file|no-folder", "file|absent"},
    {"folder-denied", refusal, {"its folder"}, "file|absent,folder-unwritable", "file|folder-unwritable"},
    {"folder-denied", refusal, {"this folder"}, "file|folder,unwritable", "file|folder"},
    {"file-size-limit", refusal, {"5242880", "5242879", "ulimit"},
     "file,offset=1M|absent,fsize=5242879", "file,offset=1M|absent,fsize=5M"},
    {"file-size-limit", refusal, {"4194304", "1048576"}, "file|length=0,fsize=1M", "file|fsize=1M"},
    {"file-size-limit", refusal, {"4194304", "1048576"}, "memfd|fsize=1M", "ram|fsize=1M"},
    {"file-size-limit", refusal, {"4194304", "1048576"}, "ram,share=on|fsize=1M", "ram,share=on|fsize=4M"},
    {"file-size-limit", refusal, {"4194304", "4194303"}, "shm|fsize=4194303", "shm|fsize=4M"},
    {"file-denied", refusal, {"may not be read"}, "file|unreadable", "file"},
    {"file-denied", refusal, {"may not be written", "readonly=on,rom=off"},
     "file|unwritable", "file,readonly=on,rom=off|unwritable"},
    {"file-denied", refusal, {"may not be written", "the guest sees ROM"},
     "file,share=on|unwritable", "file,share=on,readonly=on|unwritable"},
    {"file-denied", refusal, {"/dev/mem may not be written"},
     "physical|unwritable", "physical,readonly=on|unwritable"},
    {"file-too-short", refusal, {"16777216 bytes", "need 16781312", "use size=4190208", "truncate -s 16781312"},
     "file,offset=12292K", "file,offset=12M"},
    {"file-empty", refusal, {"/vm/a.ram is empty"}, "file,readonly=on|length=0", "file|length=0"},
    {"disk-full", refusal, {"3145728 more bytes", "(ext4) has 3145727"},
     "file,prealloc=on,share=on|allocated=1M,disk-free=3145727", "file,prealloc=on,share=on|allocated=1M,disk-free=3M"},
    {"disk-too-small", warning, {"4194304 more bytes", "has 4194303", "SIGBUS"},
     "file,share=on|absent,disk-free=4194303", "file|absent,disk-free=4194303"},
    {"device-missing", refusal, {"/dev/mem"}, "physical|absent", "physical"},
    {"device-wrong", refusal, {"/dev/mem"}, "physical|disk", "physical"},
    {"device-too-short", refusal, {"4194303 bytes", "need 4194304"},
     "physical|regular,length=4194303", "physical|regular,length=4M"},
    {"device-size-unknown", warning, {"/vm/a.ram is a device"}, "file|device", "file"},
    {"device-size-unknown", warning, {"/vm/a.ram is a device"}, "file|disk", "file"},
    {"file-wrong", refusal, {"/vm/a.ram"}, "file|socket", "file"},
    {"file-wrong", refusal, {"a text of the kernel"}, "file|proc", "file"},
    {"link-to-nothing", refusal, {"/vm/a.ram", "leads nowhere"}, "file|broken-link", "file|absent"},
    {"disk-too-small", warning, {"the shared memory object", "4194304 more", "has 4194303"},
     "shm|tmpfs,disk-free=4194303", "shm|tmpfs,disk-free=4M"},
    {"disk-full", refusal, {"the shared memory object"},
     "shm,prealloc=on|tmpfs,disk-free=4194303", "shm,prealloc=on|tmpfs,disk-free=4M"},
    {"disk-too-small", warning, {"4194304 more", "(tmpfs)"},
     "file|tmpfs,disk-free=4194303", "file|disk-free=4194303"},
    {"disk-too-small", warning, {"4194304 more", "an access"},
     "file,readonly=on|tmpfs,disk-free=4194303", "file,readonly=on|tmpfs,disk-free=4M"},
    {"disk-too-small", warning, {"3145728 more"},
     "file,readonly=on,rom=off|tmpfs,disk-free=3145727,allocated=16M,outside=15M",
     "file,readonly=on,rom=off|tmpfs,disk-free=3M,allocated=16M,outside=15M"},
    {"disk-full", refusal, {"4194304 more", "(hugetlbfs)"},
     "file,share=on|absent,hugetlbfs,disk-free=4194303", "file,share=on|absent,hugetlbfs,disk-free=4M"},
    {"disk-too-small", warning, {"4194304 more", "(hugetlbfs)"},
     "file,share=on,reserve=off|absent,hugetlbfs,disk-free=2M", "file,share=on|hugetlbfs,disk-free=4M"},
};

const std::vector<Rule> memory_rules{
    {"no-such-huge-pages", refusal, {"pages of 4M", "it has 2M, 1G"},
     "memfd,hugetlb=on,hugetlbsize=4M", "memfd,hugetlb=on,hugetlbsize=2M"},
    {"too-few-huge-pages", refusal, {"2 huge pages of 2M", "1 are free", "echo 65 >", "hugepages-2048kB"},
     "memfd,hugetlb=on|huge-free=1", "memfd,hugetlb=on|huge-free=2"},
    {"too-few-huge-pages", warning, {"2 huge pages of 2M", "SIGBUS"},
     "memfd,hugetlb=on,reserve=off|huge-free=1", "memfd,hugetlb=on,reserve=off"},
    {"huge-pages-of-file", warning, {"1 huge pages of 2M", "0 are free", "reserved them before"},
     "file,share=on|hugetlbfs,allocated=2M,huge-free=0", "file,share=on|hugetlbfs,allocated=4M,huge-free=0"},
    {"too-little-memory", refusal, {"4M are taken", "4194303"},
     "ram,prealloc=on|available=4194303", "ram,prealloc=on|available=8421376"},
    {"too-little-memory", refusal, {"4M are taken", "8421375"},
     "ram,prealloc=on|available=8421375", "ram,prealloc=on|available=8421376"},
    {"little-memory", warning, {"4M may be taken", "4194303"}, "ram|available=4194303", "ram|available=4M"},
    {"cgroup-limit", refusal, {"4M are taken", "control group /vms has left 4194303"},
     "ram,prealloc=on|cgroup=4194303", "ram,prealloc=on|cgroup=8421376"},
    {"cgroup-small", warning, {"4M may be taken", "control group /vms has left 4194303"},
     "ram|cgroup=4194303", "file,readonly=on|cgroup=1"},
    {"reserve-off-is-strict", refusal, {"vm.overcommit_memory=2"}, "ram,reserve=off|never", "ram,reserve=off|always"},
    {"commit-limit", refusal, {"4M are counted", "4194303"}, "ram|never,commit=4194303", "ram|never,commit=4M"},
    {"commit-limit", refusal, {"4M are counted", "4194303"},
     "file|never,commit=4194303", "file,share=on|never,commit=1"},
    {"commit-limit", refusal, {"4M are counted", "4194303"},
     "memfd,prealloc=on|never,commit=4194303", "memfd,prealloc=on|never,commit=4M"},
    {"commit-small", warning, {"4M are counted", "4194303", "SIGBUS", "prealloc=on"},
     "shm|never,commit=4194303", "shm|never,commit=4M"},
    {"commit-small", warning, {"4M are counted"},
     "file,readonly=on|tmpfs,never,commit=1", "file,readonly=on,reserve=off|never,commit=1"},
    {"commit-small", warning, {"3M are counted", "3145727"},
     "file,share=on|tmpfs,allocated=1M,never,commit=3145727", "file,share=on|tmpfs,allocated=1M,never,commit=3M"},
    {"beyond-machine", refusal, {"4M are mapped", "4194303 with swap", "reserve=off"},
     "ram|total=4194303", "ram,reserve=off|total=4194303"},
    {"beyond-machine", refusal, {"4M are mapped"}, "file|total=4194303", "memfd|total=4194303"},
    {"node-too-small", refusal, {"4M are taken", "nodes 0 have 8421375"},
     "ram,prealloc=on,host-nodes=0,policy=bind|two-nodes,node=8421375",
     "ram,prealloc=on,host-nodes=0,policy=bind|two-nodes,node=8421376"},
    {"node-small", warning, {"4M may be taken", "nodes 0 have 4194303"},
     "ram,host-nodes=0,policy=bind|two-nodes,node=4194303",
     "ram,host-nodes=0,policy=interleave|two-nodes,node=4194303"},
    {"node-missing", refusal, {"node 1", "online: 0"},
     "ram,host-nodes=0-1,policy=bind", "ram,host-nodes=0,policy=bind"},
    {"address-space-limit", refusal, {"4194304 are mapped", "4194303", "ulimit"}, "ram|as=4194303", "ram|as=4M"},
};
// clang-format on

std::vector<Rule> all_rules() {
    std::vector<Rule> all = option_rules;
    for (const auto* more : {&file_rules, &memory_rules}) all.insert(all.end(), more->begin(), more->end());
    return all;
}
TEST(BackendPlanRules, EachSaysItsOwnCodeAloneAndNotNextToIt) {
    for (const Rule& rule : all_rules()) {
        SCOPED_TRACE(rule.bad);
        const BackendPlan bad = plan_of(rule.bad);
        EXPECT_EQ(codes_of(bad), Codes{rule.code});
        if (bad.problems.all().empty()) continue;
        const Problem& problem = bad.problems.all().front();
        EXPECT_EQ(problem.severity, rule.severity);
        for (const std::string& piece : rule.says)
            EXPECT_THAT(problem.message + "|" + problem.advice, HasSubstr(piece));
        const BackendPlan good = plan_of(rule.good);
        EXPECT_THAT(codes_of(good), Not(Contains(rule.code))) << rule.good;
        EXPECT_FALSE(good.problems.has_refusal()) << rule.good;
    }
}

std::set<std::string> codes_in_source(const std::string& name) {
    const std::string text =
        read_text_file(GUESTMEM_SOURCE "/guestmem/mem/backends/" + name, 1 << 20).value();
    // The first argument, which may choose between two.
    static const std::regex call{R"((?:refuse|warn)\(([^,()]*),)"};
    static const std::regex literal{R"re("([^"]*)")re"};
    std::set<std::string> codes;
    for (std::sregex_iterator at{text.begin(), text.end(), call}, end; at != end; ++at) {
        const std::string argument = (*at)[1];
        const std::size_t before = codes.size();
        for (std::sregex_iterator one{argument.begin(), argument.end(), literal}; one != end; ++one)
            codes.insert((*one)[1]);
        EXPECT_TRUE(codes.size() > before || argument.contains('"')) << name << ": " << argument;
    }
    return codes;
}

TEST(BackendPlanRules, NoneIsWithoutATest) {
    std::set<std::string> written;
    for (const auto* name : {"plan.cpp", "option_checks.cpp", "file_checks.cpp", "memory_checks.cpp"})
        written.merge(codes_in_source(name));
    std::set<std::string> tested;
    for (const Rule& rule : all_rules()) tested.insert(rule.code);
    EXPECT_EQ(written, tested);
}

// Section 4 of the reference, row by row.

TEST(BackendPlanFiles, AnAbsentFileIsMadeAlsoForAPrivateMapping) {
    for (const std::string share : {"off", "on"}) {
        const BackendPlan plan = plan_of("file,offset=1M,share=" + share + "|absent");
        EXPECT_EQ(codes_of(plan), Codes{});
        EXPECT_EQ(plan.effect, FileEffect::created);
        EXPECT_EQ(opening_of(plan), "/vm/a.ram is made, with 5242880 bytes and mode 0644");
        EXPECT_EQ(ending_of(plan),
                  share == "on" ? "the file stays, with what was written" : "the file stays, and is zeros");
    }
}

TEST(BackendPlanFiles, AnAbsentFileIsNeverMadeForReading) {
    const BackendPlan plan = plan_of("file,readonly=on|absent");
    EXPECT_EQ(codes_of(plan), Codes{"file-missing"});
    EXPECT_EQ(plan.effect, FileEffect::none);
}

TEST(BackendPlanFiles, AnEmptyFileGrowsToOffsetAndSize) {
    const BackendPlan plan = plan_of("file,offset=4096|length=0");
    EXPECT_EQ(codes_of(plan), Codes{});
    EXPECT_EQ(plan.effect, FileEffect::grown);
    EXPECT_EQ(opening_of(plan), "/vm/a.ram, which is empty, grows to 4198400 bytes");
}

TEST(BackendPlanFiles, AnEmptyFileForReadingIsRefusedForRomAndForClones) {
    for (const auto* text : {"file,readonly=on|length=0", "file,readonly=on,rom=off|length=0"}) {
        EXPECT_EQ(codes_of(text), Codes{"file-empty"});
        EXPECT_EQ(plan_of(text).effect, FileEffect::none);
    }
}

TEST(BackendPlanFiles, AFileThatIsShorterByOneByteIsRefusedAndNeverGrown) {
    EXPECT_EQ(codes_of("file|length=4194303"), Codes{"file-too-short"});
    EXPECT_EQ(plan_of("file|length=4194303").effect, FileEffect::none);
    EXPECT_EQ(codes_of("file|length=4194304"), Codes{});
}

TEST(BackendPlanFiles, AFileShorterThanAPageIsNotAdvisedASizeOfZero) {
    const BackendPlan plan = plan_of("file|length=100");
    EXPECT_EQ(plan.problems.all().front().advice, "grow it: truncate -s 4194304 /vm/a.ram");
}

TEST(BackendPlanFiles, ALongerFileIsUsedFromItsOffsetAndStaysAsLong) {
    const BackendPlan plan = plan_of("file,offset=1M");
    EXPECT_EQ(codes_of(plan), Codes{});
    EXPECT_EQ(plan.effect, FileEffect::none);
    EXPECT_EQ(plan.mapped_bytes, 4 * mib);
    EXPECT_EQ(ending_of(plan), "the file stays as it is");
}

TEST(BackendPlanFiles, OffsetAndAlignmentHaveThreeErrorsOfTheirOwn) {
    EXPECT_EQ(codes_of("file,offset=1"), Codes{"offset-not-whole-pages"});
    EXPECT_EQ(codes_of("file,align=5000"), Codes{"align-not-a-power"});
    EXPECT_EQ(codes_of("file,align=1"), Codes{"align-below-page"});
}

TEST(BackendPlanFiles, AFolderGivesATemporaryFileOrIsRefusedForReading) {
    const BackendPlan plan = plan_of("file|folder");
    EXPECT_EQ(codes_of(plan), Codes{});
    EXPECT_EQ(plan.effect, FileEffect::temporary);
    EXPECT_EQ(opening_of(plan), "a file without a name is made in /vm/a.ram");
    EXPECT_EQ(ending_of(plan), "the file goes with its last user");
    EXPECT_EQ(codes_of("file,readonly=on|folder"), Codes{"folder-is-no-file"});
}

TEST(BackendPlanFiles, ABadSizeIsRefusedForAllButRamAndMakesNoFile) {
    for (const std::string size : {"100", "4097"})
        for (const std::string kind : {"file", "memfd", "shm"}) {
            std::string text = kind;
            text.append(",size=").append(size).append("|absent");
            const BackendPlan plan = plan_of(text);
            ASSERT_EQ(codes_of(plan), Codes{"size-not-whole-pages"});
            EXPECT_EQ(plan.effect, FileEffect::none);
            EXPECT_EQ(plan.problems.all().front().message,
                      "size " + size + " is not whole pages of 4096 bytes");
        }
}

TEST(BackendPlanFiles, RamOf4097BytesMapsTwoPages) {
    EXPECT_EQ(codes_of("ram,size=4097"), Codes{"size-rounded-up"});
    EXPECT_EQ(plan_of("ram,size=4097").mapped_bytes, 8192U);
}

TEST(BackendPlanFiles, DiscardDataZeroesASharedFileAndDoesNothingToAPrivateOne) {
    const BackendPlan shared = plan_of("file,discard-data=on,share=on");
    EXPECT_EQ(codes_of(shared), Codes{"discard-zeroes-file"});
    EXPECT_EQ(ending_of(shared), "the file stays, and this part of it is zeroed");
    const BackendPlan kept = plan_of("file,discard-data=on");
    EXPECT_EQ(codes_of(kept), Codes{"discard-of-private"});
    EXPECT_EQ(ending_of(kept), "the file stays as it is");
}

TEST(BackendPlanFiles, HugePagesThatAreNotFreeAreRefusedAndWithoutReserveAWarning) {
    EXPECT_TRUE(plan_of("memfd,hugetlb=on|huge-free=0").problems.has_refusal());
    EXPECT_EQ(codes_of("memfd,hugetlb=on,reserve=off|huge-free=0"), Codes{"too-few-huge-pages"});
    EXPECT_FALSE(plan_of("memfd,hugetlb=on,reserve=off|huge-free=0").problems.has_refusal());
}

TEST(BackendPlanFiles, AHugePageSizeIsAPowerOfTwoThatTheKernelHas) {
    EXPECT_EQ(codes_of("memfd,size=12M,hugetlb=on,hugetlbsize=3M"), Codes{"hugetlbsize-not-a-power"});
    EXPECT_EQ(codes_of("memfd,size=12M,hugetlb=on,hugetlbsize=4M"), Codes{"no-such-huge-pages"});
}

TEST(BackendPlanFiles, NodesAndPoliciesHaveFourErrorsOfTheirOwn) {
    EXPECT_EQ(codes_of("ram,host-nodes=0"), Codes{"nodes-without-policy"});
    EXPECT_EQ(codes_of("ram,policy=interleave"), Codes{"policy-without-nodes"});
    EXPECT_EQ(codes_of("ram,policy=interleave,host-nodes=127"), Codes{"node-missing"});
    EXPECT_THAT(parse_backend("memory-backend-ram,id=m,size=4M,host-nodes=128,policy=bind").error().message(),
                HasSubstr("there is no node 128"));
}

// Section 5: QEMU's defects. Bad sizes and empty files are above, overlaps are in together_test.cpp.

TEST(BackendPlanDefects, PreallocOfRomIsRefusedForBothSharings) {
    for (const std::string share : {"off", "on"})
        EXPECT_EQ(codes_of("file,prealloc=on,readonly=on,share=" + share), Codes{"prealloc-of-rom"});
}

TEST(BackendPlanDefects, PreallocOfAClonesTemplateSaysHowMuchItCopies) {
    const BackendPlan plan = plan_of("file,prealloc=on,readonly=on,rom=off");
    EXPECT_EQ(codes_of(plan), Codes{"prealloc-copies-file"});
    EXPECT_EQ(plan.memory_now_bytes, 4 * mib);
}

// Section 2: every cell on a writable, a read-only and an absent file.

struct Cell {
    bool share;
    bool readonly;
    Rom rom;
    std::string_view mapping;  ///< empty: refused
    std::string_view ending;   ///< of a file that is there
};
constexpr std::string_view writable_ram = "private, writable: the guest sees RAM";
constexpr std::string_view clone =
    "private, writable: the guest sees RAM, and what it writes stays in this VM";
constexpr std::string_view stays = "the file stays as it is";
constexpr std::array<Cell, 12> cells{{
    {false, false, Rom::automatic, writable_ram, stays},
    {false, false, Rom::off, writable_ram, stays},
    {false, false, Rom::on, "", ""},
    {false, true, Rom::automatic, "private, read-only: the guest sees ROM", stays},
    {false, true, Rom::on, "private, read-only: the guest sees ROM", stays},
    {false, true, Rom::off, clone, stays},
    {true, false, Rom::automatic, "shared, writable: the guest sees RAM",
     "the file stays, with what was written"},
    {true, false, Rom::off, "shared, writable: the guest sees RAM", "the file stays, with what was written"},
    {true, false, Rom::on, "", ""},
    {true, true, Rom::automatic, "shared, read-only: the guest sees ROM", stays},
    {true, true, Rom::on, "shared, read-only: the guest sees ROM", stays},
    {true, true, Rom::off, "", ""},
}};

std::string text_of(const Cell& cell, const std::string& facts_text) {
    constexpr std::array<std::string_view, 3> roms{"auto", "on", "off"};
    return std::string{"file,share="} + (cell.share ? "on" : "off") +
           ",readonly=" + (cell.readonly ? "on" : "off") +
           ",rom=" + std::string{roms.at(static_cast<std::size_t>(cell.rom))} + facts_text;
}

TEST(BackendPlanCells, EachSaysHowTheFileIsOpenedMappedAndLeft) {
    for (const Cell& cell : cells) {
        SCOPED_TRACE(text_of(cell, ""));
        const BackendPlan plan = plan_of(text_of(cell, ""));
        EXPECT_EQ(codes_of(plan), cell.mapping.empty() ? Codes{"mode"} : Codes{});
        EXPECT_EQ(plan.effect, FileEffect::none);
        if (cell.mapping.empty()) continue;
        EXPECT_EQ(plan.mode, mode_of(plan.options).value());
        EXPECT_EQ(opening_of(plan), cell.readonly ? "/vm/a.ram is opened for reading"
                                                  : "/vm/a.ram is opened for reading and writing");
        EXPECT_EQ(mapping_of(plan), "4194304 bytes in pages of 4K, " + std::string{cell.mapping});
        EXPECT_EQ(ending_of(plan), cell.ending);
    }
}

TEST(BackendPlanCells, AReadOnlyFileIsDeniedToThoseThatOpenItForWriting) {
    for (const Cell& cell : cells) {
        Codes expected = cell.mapping.empty() ? Codes{"mode"} : Codes{};
        if (!cell.readonly) expected.emplace_back("file-denied");
        EXPECT_EQ(codes_of(text_of(cell, "|unwritable")), expected) << text_of(cell, "");
    }
}

TEST(BackendPlanCells, AnAbsentFileIsMadeByThoseThatOpenItForWriting) {
    for (const Cell& cell : cells) {
        Codes expected = cell.mapping.empty() ? Codes{"mode"} : Codes{};
        if (cell.readonly) expected.emplace_back("file-missing");
        const BackendPlan plan = plan_of(text_of(cell, "|absent"));
        EXPECT_EQ(codes_of(plan), expected) << text_of(cell, "");
        EXPECT_EQ(plan.effect, cell.readonly ? FileEffect::none : FileEffect::created);
    }
}

TEST(BackendPlanSentences, SayWhatIsMadeForEachKind) {
    EXPECT_EQ(opening_of(plan_of("ram")), "nothing is opened");
    EXPECT_EQ(opening_of(plan_of("ram,share=on")), "an anonymous file is made, and its size is sealed");
    EXPECT_EQ(opening_of(plan_of("memfd")), "an anonymous file is made, and its size is sealed");
    EXPECT_EQ(opening_of(plan_of("memfd,seal=off")), "an anonymous file is made");
    EXPECT_EQ(opening_of(plan_of("shm")), "a shared memory object without a name is made");
    EXPECT_EQ(opening_of(plan_of("physical")), "/dev/mem is opened for reading and writing");
    EXPECT_EQ(ending_of(plan_of("physical")), "the memory stays as it is");
    for (const auto* kind : {"ram", "memfd", "shm"})
        EXPECT_EQ(ending_of(plan_of(kind)), "the memory goes with its last user");
    EXPECT_THAT(mapping_of(plan_of("memfd,hugetlb=on")), HasSubstr("in pages of 2M"));
    EXPECT_THAT(mapping_of(plan_of("ram,policy=bind,host-nodes=0")), HasSubstr("; of nodes 0"));
}

struct Cost {
    std::string text;
    std::uint64_t now;
    std::uint64_t worst;
};
constexpr std::uint64_t whole = 4 * mib;

TEST(BackendPlanCosts, AreOfWhatIsWrittenNowAndInTime) {
    const std::vector<Cost> costs{
        {"ram", 0, whole},
        {"ram,share=on", 0, whole},
        {"ram,prealloc=on", whole, whole},
        {"ram,share=on,prealloc=on", whole, whole},
        {"memfd", 0, whole},
        {"memfd,share=off", 0, 2 * whole},
        {"memfd,prealloc=on", whole, whole},
        {"memfd,share=off,prealloc=on", 2 * whole, 2 * whole},
        {"memfd,hugetlb=on", whole, whole},
        {"memfd,hugetlb=on,reserve=off", 0, whole},
        {"shm", 0, whole},
        {"shm,prealloc=on", whole, whole},
        {"physical", 0, 0},
        {"physical,readonly=on", 0, 0},
        {"file", 0, whole},
        {"file,prealloc=on", whole, whole},
        {"file,share=on", 0, 0},
        {"file,share=on,prealloc=on", 0, 0},
        {"file,readonly=on", 0, 0},
        {"file,readonly=on,share=on", 0, 0},
        {"file,readonly=on,rom=off", 0, whole},
        {"file,readonly=on,rom=off,prealloc=on", whole, whole},
        {"file,share=on|tmpfs", 0, whole},
        {"file,share=on,prealloc=on|tmpfs", whole, whole},
        {"file,share=on,prealloc=on|tmpfs,allocated=1M", whole - mib, whole - mib},
        {"file,share=on|tmpfs,allocated=16M", 0, 0},
        {"file|tmpfs,allocated=16M", 0, whole},
        {"file|tmpfs,allocated=1M", 0, 2 * whole - mib},
        {"file,prealloc=on|tmpfs,absent", 2 * whole, 2 * whole},
        {"memfd,share=off,hugetlb=on", whole, whole},
        {"file|hugetlbfs", whole, whole},
        {"file,reserve=off|hugetlbfs", 0, whole},
        {"file,readonly=on|tmpfs,allocated=1M", 0, whole - mib},
        {"file,readonly=on|hugetlbfs", whole, whole},
        {"file,readonly=on,reserve=off|hugetlbfs", 0, 0},
        {"file,share=on|hugetlbfs,allocated=16M", 0, 0},
    };
    for (const Cost& cost : costs) {
        const BackendPlan plan = plan_of(cost.text);
        EXPECT_FALSE(plan.problems.has_refusal()) << cost.text;
        EXPECT_EQ(plan.memory_now_bytes, cost.now) << cost.text;
        EXPECT_EQ(plan.memory_worst_bytes, cost.worst) << cost.text;
    }
}

TEST(BackendPlanCosts, ADeviceIsNotMeasuredByTheFileSystemOfItsName) {
    const BackendPlan plan = plan_of("file,share=on,prealloc=on|device,tmpfs,disk-free=1,available=1");
    EXPECT_EQ(codes_of(plan), Codes{"device-size-unknown"});
    EXPECT_EQ(plan.memory_worst_bytes, 0U);
}

TEST(BackendPlanHostile, ARefusalOfTheOptionsDoesNotHideSizesThatWrap) {
    const BackendPlan plan = plan_of("file,rom=on,offset=18446744073709547520|absent");
    EXPECT_EQ(codes_of(plan), (Codes{"mode", "offset-beyond-file"}));
    EXPECT_EQ(plan.effect, FileEffect::none);
}

}  // namespace
}  // namespace guestmem
