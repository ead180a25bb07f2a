// SPDX-License-Identifier: Apache-2.0
#include "guestmem/sys/process_memory.hpp"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <csignal>
#include <cstdio>
#include <filesystem>
#include <limits>
#include <string>
#include <utility>
#include <vector>

#include "guestmem/sys/faults.hpp"
#include "guestmem/sys/fd.hpp"
#include "guestmem/sys/testing/fault_loop.hpp"
#include "guestmem/sys/testing/temp_folder.hpp"

namespace guestmem {
namespace {

using testing::for_each_fault;
using ::testing::HasSubstr;
using ::testing::IsEmpty;
using ::testing::Not;
using ::testing::SizeIs;
using testing::TempFolder;

constexpr std::uint64_t kib = 1024;
constexpr std::uint32_t other_user = 65534;

// As Linux 6.1 writes it; the blanks at the line ends are its own.
const std::string whole_entry =
    "7f1697fff000-7f169bfff000 rw-s 00001000 fe:0a 371907                     /memfd:ram 0 (deleted)\n"
    "Size:              65536 kB\n"
    "KernelPageSize:        4 kB\n"
    "MMUPageSize:           4 kB\n"
    "Rss:                1001 kB\n"
    "Pss:                1002 kB\n"
    "Pss_Dirty:             9 kB\n"
    "Shared_Clean:       1003 kB\n"
    "Shared_Dirty:       1004 kB\n"
    "Private_Clean:      1005 kB\n"
    "Private_Dirty:      1006 kB\n"
    "Referenced:            9 kB\n"
    "Anonymous:          1007 kB\n"
    "LazyFree:              0 kB\n"
    "AnonHugePages:      1008 kB\n"
    "ShmemPmdMapped:     1009 kB\n"
    "FilePmdMapped:      1010 kB\n"
    "Shared_Hugetlb:     1011 kB\n"
    "Private_Hugetlb:    1012 kB\n"
    "Swap:               1013 kB\n"
    "SwapPss:            1014 kB\n"
    "Locked:                9 kB\n"
    "THPeligible:    0\n"
    "ProtectionKey:         0\n"
    "VmFlags: rd wr sh mr mw me ms sd \n";

/// An entry with the lines that each has; `behind` is what stands behind the inode.
std::string entry(const std::string& range, std::uint64_t size_kib, const std::string& behind = "") {
    return range + " rw-p 00000000 00:00 0" + behind + "\nSize: " + std::to_string(size_kib) +
           " kB\nRss: 0 kB\nPss: 0 kB\n";
}

std::vector<ProcessMapping> parsed(const std::string& text) {
    auto mappings = parse_smaps(text, "smaps");
    EXPECT_TRUE(mappings) << (mappings ? "" : mappings.error().message()) << "\n" << text;
    return mappings ? *std::move(mappings) : std::vector<ProcessMapping>{};
}

std::string refusal(const std::string& text) {
    const auto mappings = parse_smaps(text, "smaps");
    EXPECT_FALSE(mappings) << text;
    if (mappings) return "";
    EXPECT_EQ(mappings.error().code(), Errc::corrupt) << text;
    return mappings.error().message();
}

/// The mapping of the current process that has the byte.
ProcessMapping own_mapping_at(const void* byte) {
    const auto mappings = own_mappings().value();
    const auto address = reinterpret_cast<std::uintptr_t>(byte);
    const auto found = std::ranges::find_if(
        mappings, [&](const auto& one) { return one.base <= address && address <= one.last(); });
    EXPECT_NE(found, mappings.end());
    return found == mappings.end() ? ProcessMapping{} : *found;
}

TEST(ParseSmaps, GivesEachLineItsPlace) {
    const auto all = parsed(whole_entry);
    ASSERT_THAT(all, SizeIs(1));
    const ProcessMapping& mapping = all[0];
    EXPECT_EQ(mapping.base, 0x7f1697fff000U);
    EXPECT_EQ(mapping.size_bytes, 65536 * kib);
    EXPECT_EQ(mapping.last(), 0x7f169bffefffU);
    EXPECT_TRUE(mapping.is_readable);
    EXPECT_TRUE(mapping.is_writable);
    EXPECT_FALSE(mapping.is_executable);
    EXPECT_EQ(mapping.sharing, MapSharing::shared);
    EXPECT_EQ(mapping.offset_bytes, 4096U);
    EXPECT_EQ(mapping.device_major, 0xfeU);
    EXPECT_EQ(mapping.device_minor, 0x0aU);
    EXPECT_EQ(mapping.inode, 371907U);
    EXPECT_EQ(mapping.name, "/memfd:ram 0");
    EXPECT_TRUE(mapping.is_deleted);
    EXPECT_EQ(mapping.page_bytes, 4 * kib);
    EXPECT_EQ(mapping.resident_bytes, 1001 * kib);
    EXPECT_EQ(mapping.proportional_bytes, 1002 * kib);
    EXPECT_EQ(mapping.shared_clean_bytes, 1003 * kib);
    EXPECT_EQ(mapping.shared_dirty_bytes, 1004 * kib);
    EXPECT_EQ(mapping.private_clean_bytes, 1005 * kib);
    EXPECT_EQ(mapping.private_dirty_bytes, 1006 * kib);
    EXPECT_EQ(mapping.anonymous_bytes, 1007 * kib);
    EXPECT_EQ(mapping.anonymous_huge_bytes, 1008 * kib);
    EXPECT_EQ(mapping.shmem_huge_bytes, 1009 * kib);
    EXPECT_EQ(mapping.file_huge_bytes, 1010 * kib);
    EXPECT_EQ(mapping.shared_hugetlb_bytes, 1011 * kib);
    EXPECT_EQ(mapping.private_hugetlb_bytes, 1012 * kib);
    EXPECT_EQ(mapping.swapped_bytes, 1013 * kib);
    EXPECT_EQ(mapping.swapped_proportional_bytes, 1014 * kib);
    EXPECT_EQ(mapping.flags, "rd wr sh mr mw me ms sd");
}

TEST(ParseSmaps, OfAnOldKernelHasZerosForTheLinesItLacks) {
    const auto all = parsed(entry("1000-3000", 8));
    ASSERT_THAT(all, SizeIs(1));
    EXPECT_EQ(all[0].page_bytes, 0U);
    EXPECT_EQ(all[0].swapped_bytes, 0U);
    EXPECT_THAT(all[0].flags, IsEmpty());
    EXPECT_FALSE(all[0].has_file());
    EXPECT_THAT(parsed(""), IsEmpty());
}

TEST(ParseSmaps, ReadsNamesAsTheyWere) {
    const auto name_of = [](const std::string& behind) {
        const auto all =
            parsed("1000-2000 r--p 00000000 fe:00 7" + behind + "\nSize: 4 kB\nRss: 0 kB\nPss: 0 kB\n");
        return all.empty() ? "?" : all[0].name + (all[0].is_deleted ? "|deleted" : "");
    };
    EXPECT_EQ(name_of(""), "");
    EXPECT_EQ(name_of(" "), "");
    EXPECT_EQ(name_of("      /a"), "/a");
    EXPECT_EQ(name_of(" /a b  c"), "/a b  c");
    EXPECT_EQ(name_of(" /a "), "/a ");
    EXPECT_EQ(name_of(" /a (deleted)"), "/a|deleted");
    EXPECT_EQ(name_of(" /a (deleted) (deleted)"), "/a (deleted)|deleted");
    EXPECT_EQ(name_of(" /a\\012b\\012\\012"), "/a\nb\n\n");
    EXPECT_EQ(name_of(" /a\\b\\01"), "/a\\b\\01");
    EXPECT_EQ(name_of(" /x: 5 kB"), "/x: 5 kB");
    EXPECT_EQ(name_of(" /\x1b[2J\xff"), "/\x1b[2J\xff");
    const auto plain =
        parsed(entry("1000-2000", 4, " [anon:a (deleted)]") + entry("2000-3000", 4, " x (deleted)"));
    EXPECT_EQ(plain[0].name, "[anon:a (deleted)]");
    // Without a file nothing can be deleted.
    EXPECT_EQ(plain[1].name, "x (deleted)");
    EXPECT_FALSE(plain[1].is_deleted);
}

TEST(ParseSmaps, TakesAddressesUpToTheLastPage) {
    const auto all = parsed(entry("0-1000", 4) + entry("ffffffffff600000-ffffffffffff0000", 10176));
    ASSERT_THAT(all, SizeIs(2));
    EXPECT_EQ(all[0].base, 0U);
    EXPECT_EQ(all[1].last(), 0xfffffffffffeffffU);
    EXPECT_THAT(parsed(entry("0-fffffffffffffc00", (std::uint64_t{1} << 54) - 1)), SizeIs(1));
    EXPECT_THAT(refusal(entry("0-ffffffffffffffff", std::uint64_t{1} << 54)), HasSubstr("the size"));
}

TEST(ParseSmaps, AnEntryThatCoversEarlierOnesStandsForThem) {
    const auto all = parsed(entry("1000-2000", 4) + entry("3000-4000", 4) + entry("4000-5000", 4) +
                            entry("3000-6000", 12) + entry("6000-7000", 4));
    ASSERT_THAT(all, SizeIs(3));
    EXPECT_EQ(all[0].base, 0x1000U);
    EXPECT_EQ(all[1].base, 0x3000U);
    EXPECT_EQ(all[1].size_bytes, 0x3000U);
    EXPECT_EQ(all[2].base, 0x6000U);
}

TEST(ParseSmaps, AHeadThatIsNoneIsAnError) {
    for (const char* head :
         {"1000", "1000-2000", "1000-2000 rw-p", "1000-2000 rw-p 0 0:0", "2000-1000 rw-p 0 0:0 0",
          "1000-1000 rw-p 0 0:0 0", "1000-2000 rw- 0 0:0 0", "1000-2000 rw-pp 0 0:0 0",
          "1000-2000 wr-p 0 0:0 0", "1000-2000 rw-x 0 0:0 0", "1000-2000 rw-p x 0:0 0",
          "1000-2000 rw-p 0 00 0", "1000-2000 rw-p 0 0:0 -1", "1000-2000 rw-p 0 0:0 0x1",
          "1000-2000 rw-p 0 0:0 99999999999999999999", "1000-2000 rw-p 0 100000000:0 0",
          "10000000000000000-20000000000000000 rw-p 0 0:0 0", "-2000 rw-p 0 0:0 0",
          "0x1000-0x2000 rw-p 0 0:0 0"}) {
        const std::string text = std::string{head} + "\nSize: 4 kB\nRss: 0 kB\nPss: 0 kB\n";
        EXPECT_FALSE(parse_smaps(text, "smaps")) << head;
    }
    EXPECT_THAT(refusal("1000-1000 rw-p 0 0:0 0\nSize: 0 kB\nRss: 0 kB\nPss: 0 kB\n"),
                HasSubstr("is not a mapping"));
    EXPECT_EQ(refusal("1000-2000 rw-p x\n"),
              "smaps: '1000-2000 rw-p x' is not a mapping (ADDRESS-ADDRESS rwxp OFFSET DEV INODE)");
}

TEST(ParseSmaps, ALineWithoutItsNumberIsAnError) {
    const std::string good = entry("1000-2000", 4);
    for (const char* line : {"Swap: 4", "Swap: 4 MB", "Swap: -4 kB", "Swap: kB", "Swap:", "Swap: 1 2 kB",
                             "Swap: 18014398509481984 kB", "Swap: 4 kB\nSwap: 4 kB", "Rss: 0 kB",
                             "Size: 8 kB", "nothing", "Zero\n", "\n"})
        EXPECT_THAT(refusal(good + line + "\n"), HasSubstr("smaps: ")) << line;
    EXPECT_THAT(parsed(good + "Zero: many\nOther:\n"), SizeIs(1));
}

TEST(ParseSmaps, AnEntryWithoutARequiredLineIsAnErrorThatNamesIt) {
    const std::string head = "1000-2000 rw-p 00000000 00:00 0\n";
    EXPECT_EQ(refusal(head), "smaps: the mapping at 0x1000 has no line 'Size: NUMBER kB'");
    EXPECT_THAT(refusal(head + "Size: 4 kB\nPss: 0 kB\n"), HasSubstr("no line 'Rss:"));
    EXPECT_THAT(refusal(head + "Size: 4 kB\nRss: 0 kB\n" + entry("2000-3000", 4)),
                HasSubstr("no line 'Pss:"));
    EXPECT_THAT(refusal(entry("1000-2000", 4) + "2000-3000 rw-p 0 0:0 0\nRss: 0 kB\nPss: 0 kB\n"),
                HasSubstr("at 0x2000 has no line 'Size:"));
    EXPECT_THAT(refusal("Size: 4 kB\n"), HasSubstr("is not the begin of a mapping"));
}

TEST(ParseSmaps, AnErrorShowsNothingThatATerminalObeys) {
    EXPECT_THAT(refusal("\x1b[2J" + std::string(1000, 'x')), Not(HasSubstr("\x1b")));
    EXPECT_LT(refusal(std::string(100000, 'f')).size(), 200U);
}

TEST(ProcessMapping, AFlagIsAWholeWord) {
    ProcessMapping mapping;
    EXPECT_FALSE(mapping.has_flag("rd"));
    mapping.flags = "rd wr ht";
    EXPECT_TRUE(mapping.has_flag("rd"));
    EXPECT_TRUE(mapping.has_flag("ht"));
    EXPECT_FALSE(mapping.has_flag("r"));
    EXPECT_FALSE(mapping.has_flag("d w"));
    EXPECT_FALSE(mapping.has_flag(""));
}

TEST(OwnMappings, ShowWhatIsMapped) {
    const Fd file{::memfd_create("look at me", MFD_CLOEXEC)};
    ASSERT_EQ(::ftruncate(file.view().number(), 5 * 4096), 0);
    const Mapping mapping = Mapping::create(file, {.size_bytes = 4 * 4096,
                                                   .offset_bytes = 4096,
                                                   .access = MapAccess::read_write,
                                                   .guard_bytes = 4096})
                                .value();
    mapping.bytes()[4096] = std::byte{1};

    const ProcessMapping seen = own_mapping_at(mapping.bytes().data());

    EXPECT_EQ(seen.base, reinterpret_cast<std::uintptr_t>(mapping.bytes().data()));
    EXPECT_EQ(seen.size_bytes, 4 * 4096U);
    EXPECT_EQ(seen.offset_bytes, 4096U);
    EXPECT_EQ(seen.inode, file_facts(file)->inode);
    EXPECT_EQ(seen.name, "/memfd:look at me");
    EXPECT_TRUE(seen.is_deleted);
    EXPECT_EQ(seen.resident_bytes, 4096U);
    EXPECT_EQ(seen.private_dirty_bytes, 4096U);
    EXPECT_EQ(seen.page_bytes, 4096U);
    EXPECT_TRUE(seen.has_flag("sh"));
}

TEST(OwnMappings, TellDeletedFilesAndLineEndsInNames) {
    const TempFolder folder;
    const std::string path = folder.write("two\nlines", std::string(4096, 'x'));
    const Fd file = open_file(path, OpenMode::read).value();
    const Mapping mapping = Mapping::create(file, 4096, MapAccess::read_only).value();
    const ProcessMapping before = own_mapping_at(mapping.bytes().data());
    EXPECT_EQ(before.name, path);
    EXPECT_FALSE(before.is_deleted);
    EXPECT_FALSE(before.is_writable);
    std::filesystem::remove(path);
    const ProcessMapping after = own_mapping_at(mapping.bytes().data());
    EXPECT_EQ(after.name, path);
    EXPECT_TRUE(after.is_deleted);
}

TEST(OwnMappings, AreInOrderAndDoNotOverlap) {
    const auto mappings = own_mappings().value();
    ASSERT_FALSE(mappings.empty());
    for (std::size_t at = 1; at < mappings.size(); ++at)
        EXPECT_GT(mappings[at].base, mappings[at - 1].last());
    EXPECT_TRUE(std::ranges::any_of(mappings, [](const auto& one) { return one.name == "[stack]"; }));
}

TEST(OwnMappings, AnyCallThatFailsIsAnError) {
    EXPECT_GT(for_each_fault([] { return own_mappings(); }), 2U);
}

/// A child that sleeps until it is killed.
class Sleeper {
public:
    Sleeper() : pid_(::fork()) {
        if (pid_ != 0) return;
        for (;;) ::pause();
    }
    Sleeper(const Sleeper&) = delete;
    Sleeper& operator=(const Sleeper&) = delete;
    ~Sleeper() {
        kill();
        ::waitpid(pid_, nullptr, 0);
    }
    void kill() const { ::kill(pid_, SIGKILL); }
    [[nodiscard]] std::int32_t pid() const { return pid_; }

private:
    pid_t pid_;
};

TEST(ProcessMappings, OfAnotherProcessAreItsOwn) {
    const Mapping mapping = Mapping::create_anonymous({.size_bytes = 4096, .guard_bytes = 4096}).value();
    const Sleeper child;
    const auto mappings = process_mappings(child.pid());
    ASSERT_TRUE(mappings) << mappings.error().message();
    const auto base = reinterpret_cast<std::uintptr_t>(mapping.bytes().data());
    EXPECT_EQ(std::ranges::count(*mappings, base, &ProcessMapping::base), 1);
}

TEST(ProcessMappings, OfAProcessThatEndedAreAnError) {
    const Sleeper child;
    child.kill();
    siginfo_t info{};
    ASSERT_EQ(::waitid(P_PID, static_cast<id_t>(child.pid()), &info, WEXITED | WNOWAIT), 0);
    const auto mappings = process_mappings(child.pid());
    ASSERT_FALSE(mappings);
    EXPECT_EQ(mappings.error().code(), Errc::unavailable);
    EXPECT_THAT(mappings.error().message(), HasSubstr("process " + std::to_string(child.pid()) + ": it "));
}

TEST(ProcessMappings, OfNoProcessAreAnError) {
    const TempFolder proc;
    const auto mappings = process_mappings(4711, proc.path());
    ASSERT_FALSE(mappings);
    EXPECT_EQ(mappings.error().code(), Errc::not_found);
    EXPECT_EQ(mappings.error().message(), "process 4711: there is no such process");
    for (const std::int32_t pid : {0, -1}) {
        const auto none = process_mappings(pid);
        ASSERT_FALSE(none);
        EXPECT_EQ(none.error().code(), Errc::invalid_argument);
    }
}

TEST(ProcessMappings, OfSomebodyElseAreAnErrorThatSaysWhatIsNeeded) {
    if (::geteuid() != 0) GTEST_SKIP() << "SKIPPED: only root can become another user";
    const std::int32_t parent = ::getpid();
    const pid_t child = ::fork();
    if (child == 0) {
        // Not setresuid(): that of the C library wants to change the users of all threads.
        if (::syscall(SYS_setresuid, other_user, other_user, other_user) != 0) ::_exit(2);
        const auto mappings = process_mappings(parent);
        const bool is_right = !mappings && mappings.error().code() == Errc::permission_denied &&
                              mappings.error().message().contains("CAP_SYS_PTRACE");
        if (!is_right) std::fprintf(stderr, "%s\n", mappings ? "taken" : mappings.error().message().c_str());
        ::_exit(is_right ? 0 : 1);
    }
    int status = 0;
    ASSERT_EQ(::waitpid(child, &status, 0), child);
    EXPECT_EQ(status, 0);
}

/// A captured process.
class FakeProcess {
public:
    explicit FakeProcess(const std::string& smaps, const std::string& statm = "9 1 1 1 0 1 0\n") {
        std::filesystem::create_directories(proc_.path_of("7"));
        proc_.write("7/smaps", smaps);
        proc_.write("7/statm", statm);
    }
    [[nodiscard]] Result<std::vector<ProcessMapping>> mappings() const {
        return process_mappings(7, proc_.path());
    }
    [[nodiscard]] std::string path_of(const std::string& name) const { return proc_.path_of("7/" + name); }

private:
    TempFolder proc_;
};

TEST(ProcessMappings, WithoutMemoryAreAnErrorNotAnEmptyList) {
    const FakeProcess kernel_thread{"", "0 0 0 0 0 0 0\n"};
    const FakeProcess just_begun{""};
    const FakeProcess ended_meanwhile{entry("1000-2000", 4), "0 0 0 0 0 0 0\n"};
    const FakeProcess gone_meanwhile{entry("1000-2000", 4)};
    std::filesystem::remove(gone_meanwhile.path_of("statm"));
    for (const FakeProcess* process : {&kernel_thread, &just_begun, &ended_meanwhile, &gone_meanwhile}) {
        const auto mappings = process->mappings();
        ASSERT_FALSE(mappings);
        EXPECT_EQ(mappings.error().code(), Errc::unavailable);
    }
    EXPECT_THAT(FakeProcess{entry("1000-2000", 4)}.mappings().value(), SizeIs(1));
}

TEST(ProcessMappings, AnErrorInTheTextNamesTheFile) {
    const FakeProcess process{"1000-2000\n"};
    const auto mappings = process.mappings();
    ASSERT_FALSE(mappings);
    EXPECT_THAT(mappings.error().message(), HasSubstr(process.path_of("smaps")));
}

TEST(ProcessMappings, ATextBeyondTheLimitIsAnError) {
    const FakeProcess process{""};
    std::filesystem::resize_file(process.path_of("smaps"), max_smaps_bytes);
    EXPECT_EQ(process.mappings().error().code(), Errc::corrupt);
    std::filesystem::resize_file(process.path_of("smaps"), max_smaps_bytes + 1);
    EXPECT_EQ(process.mappings().error().code(), Errc::out_of_range);
}

TEST(ProcessMappings, AnyCallThatFailsIsAnError) {
    const FakeProcess process{entry("1000-2000", 4)};
    // Two files, each opened and read twice.
    EXPECT_EQ(for_each_fault([&] { return process.mappings(); }), 6U);
}

TEST(ProcessMappings, OfAProcessThatEndsAtAnyReadAreToldFromOtherErrors) {
    const FakeProcess process{entry("1000-2000", 4)};
    for (std::uint64_t nth = 0; nth < 4; ++nth)
        for (const auto& [os_error, code] :
             {std::pair{ESRCH, Errc::unavailable}, {EACCES, Errc::permission_denied}, {EIO, Errc::io}}) {
            const FaultInjector injector{nth, {.only = SysCall::read, .os_error = os_error}};
            const auto mappings = process.mappings();
            ASSERT_FALSE(mappings);
            EXPECT_EQ(mappings.error().code(), code);
            EXPECT_THAT(mappings.error().message(), HasSubstr("process 7: "));
        }
}

TEST(ProcessFaults, AreCounted) {
    EXPECT_GT(process_faults(::getpid()).value().minor, 0U);
    EXPECT_EQ(process_faults(std::numeric_limits<std::int32_t>::max()).error().code(), Errc::not_found);
}

TEST(ProcessFaults, ANameMayHaveAnything) {
    const TempFolder proc;
    ASSERT_EQ(::mkdir(proc.path_of("7").c_str(), 0700), 0);
    proc.write("7/stat", "7 (a) S 1 2 (b) ) S 1 7 7 0 -1 4194304 123 9 45 8 1 1 0 0\n");
    const ProcessFaults faults = process_faults(7, proc.path()).value();
    EXPECT_EQ(faults.minor, 123U);
    EXPECT_EQ(faults.major, 45U);
    for (const char* wrong : {"", "7 (a", "7 (a) S 1 7", "7 (a) S 1 7 7 0 -1 4194304 x 9 45 8\n"}) {
        proc.write("7/stat", wrong);
        EXPECT_EQ(process_faults(7, proc.path()).error().code(), Errc::corrupt) << wrong;
    }
}

}  // namespace
}  // namespace guestmem
