// SPDX-License-Identifier: Apache-2.0
#include <fmt/format.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <array>
#include <bit>
#include <chrono>
#include <filesystem>
#include <iostream>
#include <limits>
#include <optional>
#include <random>
#include <regex>
#include <set>
#include <string>
#include <vector>

#include "guestmem/mem/backends/option_text.hpp"
#include "guestmem/mem/backends/plan.hpp"
#include "guestmem/mem/backends/prealloc.hpp"
#include "guestmem/sys/file_system.hpp"
#include "guestmem/sys/sparse_file.hpp"
#include "guestmem/sys/testing/fault_loop.hpp"
#include "guestmem/sys/testing/temp_folder.hpp"

namespace guestmem {
namespace {

using ::testing::AllOf;
using ::testing::Each;
using testing::for_each_fault;
using ::testing::HasSubstr;
using ::testing::SizeIs;
using testing::TempFolder;

constexpr std::uint64_t mib = std::uint64_t{1} << 20;
constexpr std::uint64_t gib = std::uint64_t{1} << 30;
constexpr std::uint64_t two_63 = std::uint64_t{1} << 63;
constexpr std::uint64_t no_end = std::numeric_limits<std::uint64_t>::max();

MachineFacts plenty() {
    MachineFacts machine;
    machine.limits.available_bytes = 64 * gib;
    machine.huge_pages = {{2 * mib, 8, 8, 0, 0, 0}};
    machine.default_huge_page_bytes = 2 * mib;
    machine.nodes.online = {0};
    return machine;
}

/// A file of 64 MiB on a disk; inode 0 is one that is not there yet.
FileFactsBefore facts_of(std::uint64_t inode, std::uint64_t device = 1) {
    FileFactsBefore facts;
    facts.folder = {true, FileKind::folder, 0, 0, 1, 2, true, true};
    facts.file_system = {"ext4", 4096, std::nullopt, false, false};
    if (inode != 0) facts.path = {true, FileKind::regular, 64 * mib, 0, device, inode, true, true};
    return facts;
}

BackendPlan plan_of(const std::string& text, const FileFactsBefore& file = {}) {
    const auto options = parse_backend(text);
    EXPECT_TRUE(options) << text;
    BackendPlan plan = plan_backend(*options, plenty(), file);
    EXPECT_FALSE(plan.problems.has_refusal()) << text;
    return plan;
}

constexpr auto shared = "share=on";
constexpr auto cloned = "share=off,readonly=on,rom=off";
constexpr auto rom = "readonly=on";

BackendPlan of_file(const std::string& id, std::uint64_t offset, std::uint64_t size, const std::string& more,
                    std::uint64_t inode = 7) {
    return plan_of(fmt::format("memory-backend-file,id={},size={},offset={},mem-path=/vm/a.ram,{}", id, size,
                               offset, more),
                   facts_of(inode));
}

std::vector<std::string> codes_of(const Problems& problems) {
    std::vector<std::string> codes;
    for (const Problem& problem : problems.all()) codes.emplace_back(problem.code);
    return codes;
}
using Codes = std::vector<std::string>;

Codes together(const std::vector<BackendPlan>& plans) { return codes_of(check_together(plans, plenty())); }

TEST(BackendsTogether, OverlapByOnePageAndNotWhenTheyOnlyTouch) {
    const BackendPlan first = of_file("a", 0, mib, shared);
    const Problems problems =
        check_together(std::vector{first, of_file("b", mib - 4096, mib, shared)}, plenty());
    ASSERT_EQ(codes_of(problems), Codes{"overlap"});
    EXPECT_EQ(problems.all().front().severity, Severity::refusal);
    EXPECT_THAT(problems.all().front().message,
                AllOf(HasSubstr("'a' and 'b'"), HasSubstr("bytes 1044480 to 1048575 of /vm/a.ram")));
    EXPECT_EQ(together({first, of_file("b", mib, mib, shared)}), Codes{});
    EXPECT_EQ(together({of_file("b", mib, mib, shared), first}), Codes{}) << "in either order";
}

TEST(BackendsTogether, OverlapByASingleByteIsOne) {
    BackendPlan second = of_file("b", mib, mib, shared);
    second.options.offset_bytes = mib - 1;  // no plan says so; the rule counts bytes all the same
    EXPECT_EQ(together({of_file("a", 0, mib, shared), second}), Codes{"overlap"});
}

TEST(BackendsTogether, OverlapsDependOnWhoWrites) {
    struct Pair {
        const char* one;
        const char* other;
        Codes codes;
        Severity severity = Severity::refusal;
    };
    const std::vector<Pair> pairs{{shared, shared, {"overlap"}},
                                  {shared, cloned, {"overlap-with-private"}},
                                  {shared, "share=off", {"overlap-with-private"}},
                                  {shared, rom, {"overlap-with-rom"}, Severity::warning},
                                  {shared, "readonly=on,share=on", {"overlap-with-rom"}, Severity::warning},
                                  {cloned, cloned, {}},
                                  {cloned, "share=off", {}},
                                  {cloned, rom, {}},
                                  {rom, rom, {}},
                                  {rom, "readonly=on,share=on", {}}};
    for (const Pair& pair : pairs)
        for (const bool swapped : {false, true}) {
            SCOPED_TRACE(std::string{pair.one} + " and " + pair.other);
            std::vector plans{of_file("a", 0, mib, pair.one), of_file("b", 0, mib, pair.other)};
            if (swapped) std::swap(plans[0], plans[1]);
            const Problems problems = check_together(plans, plenty());
            EXPECT_EQ(codes_of(problems), pair.codes);
            EXPECT_TRUE(pair.codes.empty() || problems.all().front().severity == pair.severity);
            const std::string who = pair.severity == Severity::refusal ? "that 'b' has not" : "the ROM 'b'";
            if (!pair.codes.empty() && pair.codes.front() != "overlap") {
                EXPECT_THAT(problems.all().front().message, HasSubstr(who));
            }
        }
}

TEST(BackendsTogether, AFileIsKnownByDeviceAndInodeNotByItsPath) {
    const std::string text = "memory-backend-file,size=1M,share=on,mem-path=/vm/";
    const BackendPlan one = plan_of(text + "a,id=a", facts_of(7));
    EXPECT_EQ(together({one, plan_of(text + "link,id=b", facts_of(7))}), Codes{"overlap"});
    EXPECT_EQ(together({one, plan_of(text + "a,id=b", facts_of(8))}), Codes{});
    EXPECT_EQ(together({one, plan_of(text + "a,id=b", facts_of(7, 2))}), Codes{});
}

TEST(BackendsTogether, AFileThatIsNotThereYetIsKnownByItsFolderAndName) {
    const std::string text = "memory-backend-file,size=1M,share=on,mem-path=";
    const BackendPlan one = plan_of(text + "/vm/a,id=a", facts_of(0));
    EXPECT_EQ(together({one, plan_of(text + "/vm/a,id=b", facts_of(0))}),
              (Codes{"file-made-twice", "overlap"}));
    EXPECT_EQ(together({one, plan_of(text + "/vm/../vm//a,id=b", facts_of(0))}),
              (Codes{"file-made-twice", "overlap"}));
    EXPECT_EQ(together({one, plan_of(text + "/vm/b,id=b", facts_of(0))}), Codes{});
    FileFactsBefore elsewhere = facts_of(0);
    elsewhere.folder.inode = 3;
    EXPECT_EQ(together({one, plan_of(text + "/other/a,id=b", elsewhere)}), Codes{});
}

TEST(BackendsTogether, AFileThatTwoWouldMakeHasToBeMadeFirst) {
    const Problems problems = check_together(
        std::vector{of_file("a", 0, mib, shared, 0), of_file("b", mib, mib, shared, 0)}, plenty());
    ASSERT_EQ(codes_of(problems), Codes{"file-made-twice"});
    EXPECT_EQ(problems.all().front().severity, Severity::refusal);
    EXPECT_THAT(problems.all().front().message,
                AllOf(HasSubstr("'a' and 'b'"), HasSubstr("to 1048576 and to 2097152")));
    EXPECT_EQ(problems.all().front().advice, "make it first: truncate -s 2097152 /vm/a.ram");
    FileFactsBefore empty = facts_of(7);
    empty.path.size_bytes = 0;
    const std::string text = "memory-backend-file,size=1M,mem-path=/vm/a.ram,id=";
    EXPECT_EQ(together({plan_of(text + "a", empty), plan_of(text + "b,offset=1M", empty)}),
              Codes{"file-made-twice"});
    EXPECT_EQ(together({plan_of(text + "a", empty)}), Codes{});
}

TEST(BackendsTogether, FilesWithoutANameAreNeverTheSame) {
    FileFactsBefore folder = facts_of(0);
    folder.path = folder.folder;
    const std::string text = "memory-backend-file,size=1M,share=on,mem-path=/vm,id=";
    EXPECT_EQ(together({plan_of(text + "a", folder), plan_of(text + "b", folder)}), Codes{});
}

TEST(BackendsTogether, ACrowdOfReadersHidesNoWriter) {
    std::vector<BackendPlan> plans;
    for (int i = 0; i < 200; ++i) plans.push_back(of_file(fmt::format("r{}", i), 0, mib, rom));
    plans.push_back(of_file("clone", 0, 4 * mib, cloned));
    EXPECT_EQ(together(plans), Codes{});
    plans.push_back(of_file("w1", 2 * mib, mib, shared));
    EXPECT_EQ(together(plans), Codes{"overlap-with-private"}) << "the clone reaches further than the ROMs";
    plans.push_back(of_file("w2", 2 * mib, mib, shared));
    EXPECT_THAT(together(plans),
                ::testing::UnorderedElementsAre("overlap", "overlap-with-private", "overlap-with-private"));
    plans.back() = of_file("w2", 0, mib, shared);
    EXPECT_THAT(together(plans), ::testing::Contains("overlap-with-rom"));
    EXPECT_THAT(together(plans), ::testing::Contains("overlap-with-private").Times(2));
}

TEST(BackendsTogether, ACrowdAtOnePlaceIsToldUpToALimit) {
    std::vector<BackendPlan> plans(500, of_file("w", 0, mib, shared));
    for (BackendPlan& plan : plans) plan.options.id.clear();
    const Codes codes = together(plans);
    EXPECT_THAT(codes, Each("overlap"));
    EXPECT_GE(codes.size(), 499U);
    EXPECT_LE(codes.size(), 500U * 64);
}

TEST(BackendsTogether, AnIdIsThereOnceAndNoIdIsNone) {
    const BackendPlan ram = plan_of("memory-backend-ram,id=a,size=1M");
    const Problems problems = check_together(std::vector{ram, ram}, plenty());
    ASSERT_EQ(codes_of(problems), Codes{"id-twice"});
    EXPECT_EQ(problems.all().front().severity, Severity::refusal);
    EXPECT_THAT(problems.all().front().message, HasSubstr("'a'"));
    BackendPlan other = ram;
    other.options.id = "b";
    EXPECT_EQ(together({ram, other}), Codes{});
    BackendPlan nameless = ram;
    nameless.options.id.clear();
    EXPECT_EQ(together({nameless, nameless}), Codes{});
}

TEST(BackendsTogether, MemoryThatIsEnoughForEachMayBeTooLittleForAll) {
    const std::vector plans{plan_of("memory-backend-ram,id=a,size=1G,prealloc=on"),
                            plan_of("memory-backend-memfd,id=b,size=1G,prealloc=on"),
                            plan_of("memory-backend-ram,id=c,size=32G")};
    MachineFacts machine = plenty();
    const std::uint64_t just = with_kernel_share(2 * gib);
    machine.limits.available_bytes = just;
    const Problems later = check_together(plans, machine);
    ASSERT_EQ(codes_of(later), Codes{"little-memory-together"}) << "what comes later is no refusal";
    EXPECT_EQ(later.all().front().severity, Severity::warning);
    EXPECT_THAT(later.all().front().message, AllOf(HasSubstr("34G"), HasSubstr(std::to_string(just))));
    machine.limits.available_bytes = 34 * gib;
    EXPECT_EQ(codes_of(check_together(plans, machine)), Codes{});
    machine.limits.available_bytes = just - 1;
    const Problems problems = check_together(plans, machine);
    ASSERT_EQ(codes_of(problems), Codes{"too-little-memory-together"});
    EXPECT_EQ(problems.all().front().severity, Severity::refusal);
    EXPECT_THAT(problems.all().front().message, AllOf(HasSubstr("2G"), HasSubstr(std::to_string(just - 1))));
    machine = plenty();
    machine.limits.cgroup_headroom_bytes = gib;
    EXPECT_EQ(codes_of(check_together(plans, machine)), Codes{"too-little-memory-together"});
}

TEST(BackendsTogether, LockedMemoryIsAllOfItAgainstTheLimit) {
    FileFactsBefore device = facts_of(9);
    device.path.kind = FileKind::character_device;
    const std::vector plans{plan_of("memory-backend-ram,id=a,size=1G"),
                            plan_of("memory-backend-memfd,id=b,size=1G"),
                            plan_of("memory-backend-physical,id=c,size=1G,mem-path=/dev/mem", device)};
    MachineFacts machine = plenty();
    EXPECT_EQ(codes_of(check_locked(plans, machine)), Codes{});
    machine.limits.locked_bytes = 2 * gib;
    EXPECT_EQ(codes_of(check_locked(plans, machine)), Codes{}) << "physical memory is not ours to lock";
    machine.limits.locked_bytes = 2 * gib - 1;
    const Problems problems = check_locked(plans, machine);
    ASSERT_EQ(codes_of(problems), Codes{"memlock-limit"});
    EXPECT_EQ(problems.all().front().severity, Severity::refusal);
    EXPECT_THAT(problems.all().front().message, AllOf(HasSubstr("2G"), HasSubstr("2147483647")));
    EXPECT_THAT(problems.all().front().advice, HasSubstr("ulimit -l 2097152"));
}

TEST(BackendsTogether, DiskAndAddressesThatAreEnoughForEachMayBeTooFewForAll) {
    FileFactsBefore facts = facts_of(0);
    facts.file_system->free_bytes = 3 * mib;
    const auto plans_of = [&](const std::string& more) {
        return std::vector{plan_of("memory-backend-file,id=a,size=2M,share=on,mem-path=/vm/a" + more, facts),
                           plan_of("memory-backend-file,id=b,size=2M,share=on,mem-path=/vm/b" + more, facts)};
    };
    const std::vector taken = plans_of(",prealloc=on");
    const Problems problems = check_together(taken, plenty());
    ASSERT_EQ(codes_of(problems), Codes{"disk-full-together"});
    EXPECT_THAT(problems.all().front().message, AllOf(HasSubstr("4194304 more"), HasSubstr("has 3145728")));
    std::vector later = plans_of("");
    EXPECT_EQ(codes_of(check_together(later, plenty())), Codes{"disk-too-small-together"});
    later[1].file.folder.device = 2;
    EXPECT_EQ(codes_of(check_together(later, plenty())), Codes{}) << "another file system";
    MachineFacts machine = plenty();
    machine.limits.address_space_bytes = 4 * mib;
    EXPECT_EQ(codes_of(check_together(later, machine)), Codes{});
    --machine.limits.address_space_bytes;
    EXPECT_EQ(codes_of(check_together(later, machine)), Codes{"address-space-limit-together"});
}

TEST(BackendsTogether, HugePagesOfASharedFileAreCountedOnce) {
    FileFactsBefore facts = facts_of(7);
    facts.file_system = {"hugetlbfs", 2 * mib, std::nullopt, true, true};
    const std::string text = "memory-backend-file,size=10M,share=on,readonly=on,mem-path=/huge/rom,id=";
    std::vector plans{plan_of(text + "a", facts), plan_of(text + "b", facts)};
    EXPECT_EQ(codes_of(check_together(plans, plenty())), Codes{});
    plans[1].file.path.inode = 8;
    EXPECT_EQ(codes_of(check_together(plans, plenty())), Codes{"too-few-huge-pages-together"});
}

TEST(BackendsTogether, HugePagesThatAreEnoughForEachMayBeTooFewForAll) {
    const std::string text = "memory-backend-memfd,hugetlb=on,size=10M,id=";
    const std::vector plans{plan_of(text + "a"), plan_of(text + "b")};
    const Problems problems = check_together(plans, plenty());
    ASSERT_EQ(codes_of(problems), Codes{"too-few-huge-pages-together"});
    EXPECT_EQ(problems.all().front().severity, Severity::refusal);
    EXPECT_THAT(problems.all().front().message,
                AllOf(HasSubstr("10 huge pages of 2M"), HasSubstr("8 are free")));
    EXPECT_EQ(together({plans[0], plan_of("memory-backend-memfd,hugetlb=on,size=6M,id=b")}), Codes{});
    EXPECT_EQ(together({plans[0], plan_of(text + "b,reserve=off")}), Codes{});
}

TEST(BackendsTogether, EveryRuleHasATest) {
    const std::string text =
        read_text_file(GUESTMEM_SOURCE "/guestmem/mem/backends/together.cpp", 1 << 20).value();
    static const std::regex call{R"re((?:refuse|warn)\(\s*"([^"]*)")re"};
    std::set<std::string> codes;
    for (std::sregex_iterator at{text.begin(), text.end(), call}, end; at != end; ++at)
        codes.insert((*at)[1]);
    EXPECT_EQ(codes, (std::set<std::string>{"address-space-limit-together", "disk-full-together",
                                            "disk-too-small-together", "file-made-twice", "id-twice",
                                            "overlap", "overlap-with-private", "little-memory-together",
                                            "memlock-limit", "overlap-with-rom",
                                            "too-few-huge-pages-together", "too-little-memory-together"}));
}

TEST(BackendsTogether, NoneAndOneAreFine) {
    EXPECT_EQ(together({}), Codes{});
    EXPECT_EQ(together({of_file("a", 0, mib, shared)}), Codes{});
}

TEST(BackendsTogether, AThousandArePlannedAndCheckedInNoTime) {
    const auto begin = std::chrono::steady_clock::now();
    const MachineFacts machine = ask_machine().value();
    std::vector<BackendPlan> plans;
    for (std::uint64_t i = 0; i < 1000; ++i) {
        FileFactsBefore facts = facts_of(100);
        facts.path.size_bytes = 1000 * mib;
        const auto options = parse_backend(
            fmt::format("memory-backend-file,id=m{0},size=1M,share=on,offset={0}M,mem-path=/vm/a.ram", i));
        plans.push_back(plan_backend(options.value(), machine, facts));
    }
    const Problems problems = check_together(plans, machine);
    const auto took = std::chrono::steady_clock::now() - begin;
    EXPECT_THAT(codes_of(problems), SizeIs(0));
    std::cout << "1000 backends: " << std::chrono::duration<double, std::milli>{took}.count() << " ms\n";
    EXPECT_LT(took, std::chrono::milliseconds{500}) << "the target is 50";
}

TEST(BackendsTogether, AThousandClonesOfOneTemplateAreFine) {
    std::vector<BackendPlan> plans;
    for (int i = 0; i < 1000; ++i) plans.push_back(of_file(fmt::format("m{}", i), 0, 64 * mib, cloned));
    EXPECT_EQ(together(plans), Codes{});
}

TEST(BackendsTogether, TwoNamesOfARealFileAreOneFile) {
    const TempFolder folder;
    const std::string path = folder.write("a.ram", std::string(8192, 'x'));
    std::filesystem::create_symlink(path, folder.path_of("b.ram"));
    std::vector<BackendPlan> plans;
    for (const auto* name : {"a.ram", "b.ram"}) {
        const BackendOptions options{.kind = BackendKind::file,
                                     .id = name,
                                     .size_bytes = 8192,
                                     .is_shared = true,
                                     .mem_path = folder.path_of(name)};
        plans.push_back(plan_backend(options, plenty(), ask_file(options).value()));
    }
    EXPECT_EQ(together(plans), Codes{"overlap"});
}

// Numbers that nobody should write, and facts that no kernel should say.

class Dice {
public:
    explicit Dice(std::uint32_t seed) : random_(seed) {}
    bool flip() { return random_() % 2 == 0; }
    std::uint64_t below(std::uint64_t bound) { return random_() % bound; }
    std::uint64_t number() {
        static constexpr std::array<std::uint64_t, 16> edges{
            0,         1,         2,          4095,   4096,       4097,       2 * mib,       4 * mib,
            gib << 26, gib << 27, two_63 - 1, two_63, two_63 + 1, no_end - 1, no_end - 4095, no_end};
        const std::uint64_t edge = edges.at(below(edges.size()));
        return flip() ? edge : edge - below(3) * 4096;
    }
    /// Mostly a size that is fine, so that the later rules are reached, too.
    std::uint64_t size() { return below(4) == 0 ? number() : (1 + below(8)) * mib; }

private:
    std::mt19937_64 random_;
};

/// All that a plan follows from.
struct World {
    BackendOptions options;
    MachineFacts machine;
    FileFactsBefore file;
};

World random_world(Dice& dice) {
    World w{.options = {.kind = static_cast<BackendKind>(dice.below(5)), .id = "m"},
            .machine = plenty(),
            .file = {}};
    BackendOptions& o = w.options;
    if (o.kind == BackendKind::file || o.kind == BackendKind::physical) {
        o.mem_path = "/vm/a.ram";
        w.file = facts_of(7);
    }
    o.size_bytes = dice.size();
    if (dice.flip()) o.offset_bytes = dice.size();
    if (dice.below(4) == 0) o.align_bytes = dice.number();
    if (dice.flip()) o.is_shared = dice.flip();
    o.is_readonly = dice.below(3) == 0;
    o.rom = static_cast<Rom>(dice.below(6) < 4 ? 0 : dice.below(3));
    o.is_discarded = dice.flip();
    o.is_huge = dice.below(4) == 0;
    if (dice.below(4) == 0) o.huge_page_bytes = dice.number();
    o.is_prealloc = dice.flip();
    o.is_reserved = dice.below(4) != 0;
    PathFacts& path = w.file.path;
    path.exists = path.exists && dice.below(4) != 0;
    if (dice.below(4) == 0) path.kind = static_cast<FileKind>(dice.below(5));
    if (dice.flip()) path.size_bytes = dice.flip() ? 0 : dice.number();
    if (dice.flip()) path.allocated_bytes = dice.number();
    if (dice.below(4) == 0) w.file.file_system.reset();
    if (w.file.file_system && dice.below(4) == 0) {
        w.file.file_system = {"hugetlbfs", 2 * mib, std::nullopt, true, true};
        if (dice.flip()) w.file.file_system->page_bytes = dice.number();
    }
    if (w.file.file_system && dice.flip()) w.file.file_system->free_bytes = dice.number();
    MachineFacts& machine = w.machine;
    if (dice.flip()) machine.default_huge_page_bytes = dice.number();
    for (HugePagePool& pool : machine.huge_pages)
        if (dice.below(3) == 0) {
            pool.count_free = pool.count_overcommit = dice.number();
            pool.count_total = dice.number();
        }
    for (std::uint64_t* limit : {&machine.limits.available_bytes, &machine.limits.commit_left_bytes,
                                 &machine.limits.address_space_bytes, &machine.limits.file_size_bytes})
        if (dice.below(6) == 0) *limit = dice.number();
    if (dice.below(4) == 0) machine.limits.cgroup_headroom_bytes = dice.number();
    machine.limits.overcommit = static_cast<Overcommit>(dice.below(3));
    return w;
}

TEST(BackendPlanHostile, RandomOptionsAndFactsGiveAPlanThatAddsUpOrARefusal) {
    constexpr std::uint32_t seed = 20260822;
    std::cout << "seed " << seed << "\n";
    Dice dice{seed};
    std::vector<BackendPlan> plans;
    for (int round = 0; round < 20'000; ++round) {
        const World w = random_world(dice);
        plans.push_back(plan_backend(w.options, w.machine, w.file));
        const BackendPlan& plan = plans.back();
        SCOPED_TRACE(::testing::Message() << "round " << round << ": " << to_text(plan.options));
        ASSERT_LE(plan.memory_now_bytes, plan.memory_worst_bytes);
        ASSERT_LE(plan.memory_worst_bytes, 2 * plan.mapped_bytes) << "a private copy of a new page";
        for (const Problem& problem : plan.problems.all())
            ASSERT_FALSE(problem.code.empty() || problem.message.empty());
        for (const std::string& text : {opening_of(plan), mapping_of(plan), ending_of(plan)})
            ASSERT_FALSE(text.empty());
        if (plan.effect != FileEffect::none) {
            ASSERT_LE(plan.options.offset_bytes, two_63);
            ASSERT_LT(plan.mapped_bytes, two_63 - plan.options.offset_bytes);
        }
        if (plan.problems.has_refusal()) continue;
        ASSERT_TRUE(mode_of(plan.options));
        ASSERT_TRUE(std::has_single_bit(plan.page_bytes));
        ASSERT_EQ(plan.mapped_bytes % plan.page_bytes, 0U);
        ASSERT_EQ(plan.options.offset_bytes % plan.page_bytes, 0U);
        ASSERT_GT(plan.options.size_bytes, 0U);
        ASSERT_GE(plan.mapped_bytes, plan.options.size_bytes);
        ASSERT_LT(plan.mapped_bytes - plan.options.size_bytes, plan.page_bytes);
        ASSERT_LE(plan.memory_now_bytes,
                  std::max(w.machine.limits.available_bytes, plan.is_huge ? no_end : 0));
    }
    const auto count_good =
        std::ranges::count_if(plans, [](const BackendPlan& plan) { return !plan.problems.has_refusal(); });
    EXPECT_GT(count_good, 1000) << "most rounds are to reach the end";
    EXPECT_TRUE(check_together(plans, plenty()).has_refusal());
}

// The machine and files that are there.

TEST(BackendFacts, OfThisMachineCanBeAsked) {
    const auto machine = ask_machine();
    ASSERT_TRUE(machine) << machine.error().message();
    EXPECT_GT(machine->limits.available_bytes, 0U);
    EXPECT_FALSE(machine->nodes.online.empty());
}

TEST(BackendFacts, OfTheMachineAreAnErrorWhenTheKernelDoesNotAnswer) {
    const std::uint64_t count = for_each_fault(
        testing::FaultLoopOptions{.faults = testing::FaultsAre::survivable}, [] { return ask_machine(); },
        [] {});
    EXPECT_GT(count, 10U);
    for (const SysCall call : {SysCall::open, SysCall::read, SysCall::getrlimit}) {
        const FaultInjector injector{0, {.only = call}};
        EXPECT_FALSE(ask_machine()) << to_string(call);
    }
}

TEST(BackendFacts, OfAFileAreItsOwnItsFoldersAndItsFileSystems) {
    const TempFolder folder;
    const std::string path = folder.write("a.ram", std::string(8192, 'x'));
    const auto there = ask_file({.kind = BackendKind::file, .mem_path = path});
    ASSERT_TRUE(there);
    EXPECT_TRUE(there->path.exists && there->path.kind == FileKind::regular &&
                there->path.size_bytes == 8192);
    EXPECT_TRUE(there->folder.exists && there->folder.kind == FileKind::folder && there->file_system);
    const auto absent = ask_file({.kind = BackendKind::file, .mem_path = folder.path_of("b.ram")});
    ASSERT_TRUE(absent);
    EXPECT_TRUE(!absent->path.exists && absent->folder.exists && absent->file_system);
    const auto nowhere = ask_file({.kind = BackendKind::file, .mem_path = folder.path_of("no/b.ram")});
    ASSERT_TRUE(nowhere);
    EXPECT_TRUE(!nowhere->path.exists && !nowhere->folder.exists && !nowhere->file_system);
    const auto below = ask_file({.kind = BackendKind::file, .mem_path = path + "/b.ram"});
    EXPECT_TRUE(below && !below->path.exists && below->folder.kind == FileKind::regular) << "no folder";
    const auto none = ask_file({.kind = BackendKind::memfd, .mem_path = path});
    EXPECT_TRUE(none && !none->path.exists && !none->folder.exists) << "this kind has no path";
    EXPECT_EQ(folder.entries(), std::vector<std::string>{"a.ram"}) << "asking makes nothing";
}

TEST(BackendFacts, OfAFileAreTheDataAroundItsRangeAndWhetherItsNameIsALinkToNothing) {
    const TempFolder folder;
    const std::string path = folder.path_of("ram");
    const Fd file = create_file(path, 0600).value();
    ASSERT_TRUE(resize_file(file, 4 * mib) && allocate_file(file, 0, mib));
    ASSERT_TRUE(write_at(file, 0, std::vector<std::byte>(mib, std::byte{1})));
    const auto outside = [&](std::uint64_t offset, std::uint64_t size) {
        return ask_file(
                   {.kind = BackendKind::file, .size_bytes = size, .mem_path = path, .offset_bytes = offset})
            ->outside_data_bytes;
    };
    EXPECT_EQ(outside(0, 4 * mib), 0U);
    EXPECT_EQ(outside(mib / 2, mib), mib / 2);
    EXPECT_EQ(outside(mib / 4, mib / 4), 3 * mib / 4);
    EXPECT_EQ(outside(2 * mib, mib), mib);
    EXPECT_EQ(outside(~std::uint64_t{0} - 4095, 8192), mib) << "behind the end of any file";
    std::filesystem::create_symlink("nowhere", folder.path_of("link"));
    EXPECT_TRUE(ask_file({.kind = BackendKind::file, .mem_path = folder.path_of("link")})->is_broken_link);
    EXPECT_FALSE(ask_file({.kind = BackendKind::file, .mem_path = folder.path_of("absent")})->is_broken_link);
    EXPECT_EQ(ask_file({.kind = BackendKind::shm})->file_system->type, "tmpfs");
}

TEST(BackendFacts, OfAFileAreAnErrorWhenAnyCallFails) {
    const TempFolder folder;
    const std::string path = folder.write("a.ram", "x");
    EXPECT_GT(for_each_fault([&] { return ask_file({.kind = BackendKind::file, .mem_path = path}); }), 2U);
}

TEST(BackendFacts, GiveThePlanOfARealFile) {
    const TempFolder folder;
    const std::string path = folder.write("a.ram", std::string(8192, 'x'));
    const BackendOptions options{.kind = BackendKind::file, .size_bytes = 8192, .mem_path = path};
    const BackendPlan plan = plan_backend(options, ask_machine().value(), ask_file(options).value());
    EXPECT_TRUE(plan.problems.all().empty());
    EXPECT_EQ(plan.mapped_bytes, 8192U);
    BackendOptions longer = options;
    longer.size_bytes = 12288;
    const BackendPlan short_plan = plan_backend(longer, ask_machine().value(), ask_file(longer).value());
    EXPECT_EQ(codes_of(short_plan.problems), Codes{"file-too-short"});
    EXPECT_EQ(std::filesystem::file_size(path), 8192U) << "a plan changes nothing";
}

}  // namespace
}  // namespace guestmem
