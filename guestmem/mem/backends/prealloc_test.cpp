// SPDX-License-Identifier: Apache-2.0
#include "guestmem/mem/backends/prealloc.hpp"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <cerrno>
#include <chrono>
#include <csignal>
#include <filesystem>
#include <fstream>
#include <optional>
#include <stdexcept>
#include <string>
#include <thread>
#include <vector>

#include "guestmem/mem/backends/backend.hpp"
#include "guestmem/mem/backends/option_text.hpp"
#include "guestmem/mem/backends/testing/child.hpp"
#include "guestmem/mem/backends/testing/host_pages.hpp"
#include "guestmem/mem/testing/test_map.hpp"
#include "guestmem/sys/fault_guard.hpp"
#include "guestmem/sys/faults.hpp"
#include "guestmem/sys/file_system.hpp"
#include "guestmem/sys/memfd.hpp"
#include "guestmem/sys/memory_advice.hpp"
#include "guestmem/sys/testing/resources.hpp"
#include "guestmem/sys/testing/temp_folder.hpp"

namespace guestmem {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::IsEmpty;
using namespace testing;  // NOLINT(google-build-using-namespace): the words of tests

constexpr std::uint64_t mib = std::uint64_t{1} << 20;
/// More than one part for each of three threads.
constexpr std::uint64_t three_parts_bytes = 130 * mib;

Mapping anonymous(std::uint64_t size_bytes) {
    return Mapping::create_anonymous({.size_bytes = size_bytes}).value();
}

BackendPlan planned(const std::string& text) {
    const BackendOptions options = parse_backend(text).value();
    return plan_backend(options, ask_machine().value(), ask_file(options).value());
}

/// A plan that was good when it was made, with all that stood against it forgotten.
BackendPlan forced(BackendPlan plan) {
    plan.problems = {};
    return plan;
}

std::string message_of(const BackendPlan& plan) {
    const auto backend = Backend::create(plan);
    EXPECT_FALSE(backend);
    return backend ? "" : backend.error().message();
}

class PreallocThreads : public ::testing::TestWithParam<std::uint64_t> {};
INSTANTIATE_TEST_SUITE_P(All, PreallocThreads,
                         ::testing::Values(0, 1, 2, 3, 5, 8, 15, 16, 17, ~std::uint64_t{0}));

TEST_P(PreallocThreads, GiveEveryPage) {
    const Mapping mapping = anonymous(three_parts_bytes + page_size_bytes);
    ASSERT_TRUE(preallocate(mapping.bytes(), {.count_threads = GetParam()}));
    EXPECT_EQ(count_resident_pages(mapping.bytes()), mapping.bytes().size() / page_size_bytes);
}

TEST_P(PreallocThreads, MayBeMoreThanPages) {
    for (const std::uint64_t count_pages : {1U, 2U, 3U}) {
        const Mapping mapping = anonymous(count_pages * page_size_bytes);
        ASSERT_TRUE(preallocate(mapping.bytes(), {.count_threads = GetParam()}));
        EXPECT_EQ(count_resident_pages(mapping.bytes()), count_pages);
    }
}

TEST(Prealloc, OfAllSixteenThreadsGivesEveryPage) {
    constexpr std::uint64_t size_bytes = 1024 * mib + page_size_bytes;
    if (ask_machine().value().limits.available_bytes < 2 * size_bytes)
        GTEST_SKIP() << "16 threads need 1 GiB of memory, which is not free";
    const Mapping mapping = anonymous(size_bytes);
    ASSERT_TRUE(preallocate(mapping.bytes(), {.count_threads = 16}));
    EXPECT_EQ(count_resident_pages(mapping.bytes()), size_bytes / page_size_bytes);
}

TEST(Prealloc, TellsHowFarItIs) {
    constexpr std::uint64_t size = 200 * mib + page_size_bytes;
    for (const std::uint64_t threads : {std::uint64_t{1}, std::uint64_t{2}}) {
        const auto memory = HostMemory::create_anonymous({.size_bytes = size}).value();
        static_cast<void>(advise(memory->bytes(), Advice::huge_pages));
        std::vector<std::uint64_t> told;
        const auto caller = std::this_thread::get_id();
        ASSERT_TRUE(preallocate(memory->bytes(),
                                {.count_threads = threads, .progress = [&](std::uint64_t done_bytes) {
                                     EXPECT_EQ(std::this_thread::get_id(), caller);
                                     told.push_back(done_bytes);
                                 }}));
        EXPECT_TRUE(std::ranges::is_sorted(told));
        ASSERT_FALSE(told.empty());
        EXPECT_EQ(told.back(), size) << threads << " threads";
        if (threads == 1) {
            EXPECT_EQ(told.size(), 13U) << "pieces of 16 MiB";
        }
    }
}

TEST(Prealloc, EndsItsThreadsWhenProgressThrows) {
    const auto memory = HostMemory::create_anonymous({.size_bytes = 256 * mib}).value();
    static_cast<void>(advise(memory->bytes(), Advice::huge_pages));
    const PreallocOptions options{.count_threads = 3,
                                  .progress = [](std::uint64_t) { throw std::runtime_error{"enough"}; }};
    EXPECT_THROW(static_cast<void>(preallocate(memory->bytes(), options)), std::runtime_error);
    // How far the others came before they heard of it depends on who ran when.
    const auto count_taken = count_resident_pages(memory->bytes());
    std::this_thread::sleep_for(std::chrono::milliseconds{50});
    EXPECT_EQ(count_resident_pages(memory->bytes()), count_taken) << "a thread went on";
}

TEST(Prealloc, OfNoBytesIsDone) { EXPECT_TRUE(preallocate({}, {.count_threads = 4})); }

TEST(Prealloc, GoesOnWithFewerThreadsWhenNoMoreAreGiven) {
    if (::geteuid() != 0) GTEST_SKIP() << "only root can become a user who has no process left";
    in_child([] {
        // Root is under no such limit.
        const rlimit none{.rlim_cur = 0, .rlim_max = 0};
        ASSERT_EQ(::setrlimit(RLIMIT_NPROC, &none), 0);
        become_user(other_user);
        const Mapping mapping = anonymous(three_parts_bytes);
        EXPECT_TRUE(preallocate(mapping.bytes(), {.count_threads = 3}));
        EXPECT_EQ(count_resident_pages(mapping.bytes()), three_parts_bytes / page_size_bytes);
    });
}

TEST(Prealloc, ChangesNoByteOfAFile) {
    const TempFolder folder;
    const std::vector<std::byte> content = counted_bytes(2 * mib);
    const std::string text{reinterpret_cast<const char*>(content.data()), content.size()};
    const std::string path = folder.write("ram", text);
    for (const char* share : {"share=on", "share=off"}) {
        const auto backend = Backend::create(
            planned("memory-backend-file,id=a,size=2M,prealloc=on,mem-path=" + path + "," + share));
        ASSERT_TRUE(backend) << backend.error().message();
        EXPECT_TRUE(std::ranges::equal((*backend)->memory()->bytes(), content));
        EXPECT_EQ(folder.read("ram"), text);
    }
}

/// Adds 1 to the first word of a page, again and again, while it is preallocated; no addition may be lost.
void expect_no_lost_write(std::optional<FaultInjector::Options> fault) {
    const Mapping mapping = anonymous(page_size_bytes);
    const std::atomic_ref word{*reinterpret_cast<std::uint32_t*>(mapping.bytes().data())};
    std::atomic<bool> is_done{false};
    std::uint32_t count_added = 0;
    std::thread writer{[&] {
        for (; !is_done || count_added == 0; ++count_added) word.fetch_add(1);
    }};
    constexpr int count_rounds = 3000;
    for (int i = 0; i < count_rounds; ++i) {
        std::optional<FaultInjector> injector;
        if (fault) injector.emplace(0, *fault);
        EXPECT_TRUE(preallocate(mapping.bytes(), {.count_threads = 1}));
    }
    is_done = true;
    writer.join();
    EXPECT_EQ(word.load(), count_added);
}

constexpr FaultInjector::Options no_populate{.only = SysCall::madvise, .os_error = EINVAL, .repeat = 2};

TEST(Prealloc, LosesNoWriteOfOthers) { expect_no_lost_write(std::nullopt); }

TEST(Prealloc, LosesNoWriteOfOthersOnAnOldKernel) {
    ASSERT_TRUE(install_fault_guard());
    expect_no_lost_write(no_populate);
}

TEST(Prealloc, WithoutTheGuardIsAClearErrorOnAnOldKernel) {
    in_child([] {
        ASSERT_NE(std::signal(SIGBUS, SIG_DFL), SIG_ERR);
        const Mapping mapping = anonymous(4 * page_size_bytes);
        const FaultInjector injector{0, no_populate};
        const auto done = preallocate(mapping.bytes(), {.count_threads = 1});
        ASSERT_FALSE(done);
        EXPECT_EQ(done.error().code(), Errc::unsupported);
        EXPECT_THAT(done.error().message(), HasSubstr("prealloc: this kernel cannot populate pages"));
        EXPECT_EQ(count_resident_pages(mapping.bytes()), 0U);
    });
}

TEST(Prealloc, InAThreadThatBlocksSigbusIsAClearErrorOnAnOldKernel) {
    ASSERT_TRUE(install_fault_guard());
    std::thread thread{[] {
        sigset_t signals{};
        sigemptyset(&signals);
        sigaddset(&signals, SIGBUS);
        ASSERT_EQ(::pthread_sigmask(SIG_BLOCK, &signals, nullptr), 0);
        const Mapping mapping = anonymous(page_size_bytes);
        const FaultInjector injector{0, no_populate};
        EXPECT_FALSE(preallocate(mapping.bytes(), {.count_threads = 1}));
    }};
    thread.join();
}

/// A memfd that was cut short behind its mapping: the second half of the pages cannot be had.
TEST(Prealloc, OfPagesThatAreLostIsAnErrorAndNoSignal) {
    ASSERT_TRUE(install_fault_guard() && prepare_thread_for_guest_memory());
    const Fd file =
        create_sparse_memory({.name = "cut", .size_bytes = 4 * page_size_bytes}, Sealing::none).value();
    const Mapping mapping = Mapping::create(file, 4 * page_size_bytes, MapAccess::read_write).value();
    ASSERT_EQ(::ftruncate(file.view().number(), 2 * page_size_bytes), 0);
    for (const bool is_old : {false, true}) {
        std::optional<FaultInjector> injector;
        if (is_old) injector.emplace(0, no_populate);
        const auto done = preallocate(mapping.bytes(), {.count_threads = 1});
        ASSERT_FALSE(done);
        EXPECT_EQ(done.error().code(), Errc::exhausted);
        EXPECT_THAT(done.error().message(),
                    HasSubstr("prealloc: among 16384 bytes is a page that cannot be had"));
    }
}

TEST(Prealloc, IsNotBegunWhenTheLimitsCannotBeRead) {
    for (const SysCall call : {SysCall::open, SysCall::read, SysCall::getrlimit}) {
        const Mapping mapping = anonymous(4 * page_size_bytes);
        const FaultInjector injector{0, {.only = call}};
        EXPECT_FALSE(preallocate(mapping.bytes(), {.count_threads = 1})) << to_string(call);
        EXPECT_EQ(count_resident_pages(mapping.bytes()), 0U);
    }
}

/// Huge pages, forking and merging come before.
constexpr std::uint64_t count_advice_before = 3;

TEST(Prealloc, ThatFailsHalfWayLeavesNoFile) {
    const TempFolder folder;
    const std::string text =
        "memory-backend-file,id=a,size=130M,share=on,prealloc=on,prealloc-threads=2,mem-path=" +
        folder.path_of("ram");
    const Resources before = Resources::look();
    for (const std::uint64_t nth : {count_advice_before, count_advice_before + 1}) {
        const BackendPlan plan = planned(text);
        const FaultInjector injector{nth, {.only = SysCall::madvise}};
        EXPECT_THAT(message_of(plan), HasSubstr("backend 'a': prealloc: populate for writing"));
        EXPECT_THAT(folder.entries(), IsEmpty());
        EXPECT_EQ(Resources::look(), before);
    }
}

TEST(Prealloc, ThatFailsHalfWayLeavesAnEmptyFileEmpty) {
    const TempFolder folder;
    const BackendPlan plan =
        planned("memory-backend-file,id=a,size=130M,share=on,prealloc=on,prealloc-threads=2,mem-path=" +
                folder.write("ram", ""));
    const FaultInjector injector{count_advice_before + 1, {.only = SysCall::madvise}};
    EXPECT_FALSE(Backend::create(plan));
    struct stat status{};
    ASSERT_EQ(::stat(folder.path_of("ram").c_str(), &status), 0);
    EXPECT_EQ(status.st_size, 0);
    EXPECT_EQ(status.st_blocks, 0);
}

TEST(Prealloc, ThatFailsLeavesAnotherFileThatTookTheName) {
    const TempFolder folder;
    const std::string path = folder.path_of("ram");
    const BackendPlan plan =
        planned("memory-backend-file,id=a,size=1M,share=on,prealloc=on,mem-path=" + path);
    // The name goes to another file while pages are taken, and then there are no more.
    const auto take_the_name = [&](std::uint64_t) {
        std::filesystem::rename(folder.write("other", "of somebody"), path);
        throw std::runtime_error{"the end"};
    };
    EXPECT_THROW(static_cast<void>(Backend::create(plan, take_the_name)), std::runtime_error);
    EXPECT_EQ(folder.read("ram"), "of somebody");
}

TEST(Prealloc, OfRomAndOfWhatIsNotReservedIsRefused) {
    const TempFolder folder;
    const std::string path = folder.write("ram", std::string(page_size_bytes, 'a'));
    for (const char* share : {"on", "off"})
        EXPECT_THAT(message_of(planned("memory-backend-file,id=a,size=4K,readonly=on,prealloc=on,mem-path=" +
                                       path + ",share=" + share)),
                    HasSubstr("prealloc=on of ROM"));
    EXPECT_THAT(message_of(planned("memory-backend-ram,id=a,size=4K,prealloc=on,reserve=off")),
                HasSubstr("prealloc=on with reserve=off"));
}

constexpr std::uint64_t tmpfs_bytes = 1 * mib;

/// In a child: its own mounts, and a tmpfs of 1 MiB at `folder`.
template <typename Body>
void on_small_tmpfs(const TempFolder& folder, Body&& body) {
    in_child([&] {
        ASSERT_TRUE(mount_small_tmpfs(folder.path(), tmpfs_bytes));
        body();
    });
}

class FullTmpfs : public ::testing::Test {
protected:
    void SetUp() override {
        const int status =
            status_of_child([&] { EXPECT_TRUE(mount_small_tmpfs(folder_.path(), tmpfs_bytes)); });
        if (::geteuid() != 0 || status != 0) GTEST_SKIP() << "this user may not mount a tmpfs of its own";
    }
    [[nodiscard]] std::string text(std::uint64_t kib) const {
        return "memory-backend-file,id=a,share=on,prealloc=on,mem-path=" + folder_.path_of("ram") +
               ",size=" + std::to_string(kib) + "K";
    }
    /// A good plan for half of it, and then somebody takes three quarters.
    [[nodiscard]] BackendPlan plan_and_fill() const {
        BackendPlan plan = planned(text(512));
        EXPECT_FALSE(plan.problems.has_refusal());
        folder_.write("other", std::string(768 * 1024, 'x'));
        return plan;
    }
    static void expect_full(const BackendPlan& plan) {
        const Resources before = Resources::look();
        EXPECT_THAT(message_of(plan), HasSubstr("is a page that cannot be had: the file system is full"));
        EXPECT_EQ(Resources::look(), before);
    }

    TempFolder folder_;
};

TEST_F(FullTmpfs, IsRefusedByThePlan) {
    on_small_tmpfs(folder_, [&] {
        EXPECT_THAT(message_of(planned(text(1028))), HasSubstr("may need 1052672 more bytes"));
        EXPECT_THAT(folder_.entries(), IsEmpty());
        EXPECT_TRUE(Backend::create(planned(text(1024))));
    });
}

TEST_F(FullTmpfs, AfterThePlanIsAnErrorAndLeavesNoFile) {
    on_small_tmpfs(folder_, [&] {
        expect_full(plan_and_fill());
        EXPECT_THAT(folder_.entries(), ElementsAre("other"));
    });
}

TEST_F(FullTmpfs, AfterThePlanLeavesAnEmptyFileEmpty) {
    on_small_tmpfs(folder_, [&] {
        folder_.write("ram", "");
        expect_full(plan_and_fill());
        EXPECT_EQ(std::filesystem::file_size(folder_.path_of("ram")), 0U);
    });
}

TEST_F(FullTmpfs, AfterThePlanLeavesASparseFileItsSizeAndBytes) {
    on_small_tmpfs(folder_, [&] {
        folder_.write("ram", "labels");
        std::filesystem::resize_file(folder_.path_of("ram"), 512 * 1024);
        const std::string content = folder_.read("ram");
        expect_full(plan_and_fill());
        EXPECT_EQ(folder_.read("ram"), content);
    });
}

TEST_F(FullTmpfs, IsAnErrorOnAnOldKernelToo) {
    on_small_tmpfs(folder_, [&] {
        ASSERT_TRUE(install_fault_guard() && prepare_thread_for_guest_memory());
        const BackendPlan plan = plan_and_fill();
        FaultInjector injector{count_advice_before, no_populate};
        expect_full(plan);
        EXPECT_TRUE(injector.has_fired());
        EXPECT_THAT(folder_.entries(), ElementsAre("other"));
    });
}

TEST(HugePrealloc, OfMorePagesThanAreFreeIsRefusedByThePlan) {
    const HugePages pages{0};
    const auto free = HugePages::number_in("free_hugepages");
    if (!free) GTEST_SKIP() << "this kernel has no huge pages of 2M";
    const std::string size = std::to_string(2 * (*free + 8)) + "M";
    const BackendPlan plan =
        planned("memory-backend-memfd,id=a,hugetlb=on,hugetlbsize=2M,prealloc=on,size=" + size);
    EXPECT_THAT(message_of(plan), HasSubstr("huge pages of 2M are needed"));
}

TEST(HugePrealloc, OfPagesThatAreGoneAfterThePlanIsAnErrorAndNoSignal) {
    const HugePages pages{0};
    const auto free = HugePages::number_in("free_hugepages");
    if (!free) GTEST_SKIP() << "this kernel has no huge pages of 2M";
    const std::string text = "memory-backend-memfd,id=a,hugetlb=on,hugetlbsize=2M,prealloc=on,size=" +
                             std::to_string(2 * (*free + 8)) + "M";
    const Resources before = Resources::look();
    // What is reserved fails when it is mapped, what is not when it is populated.
    EXPECT_THAT(message_of(forced(planned(text))), HasSubstr("Cannot allocate memory"));
    EXPECT_THAT(message_of(forced(planned(text + ",reserve=off"))), HasSubstr("no huge page is free"));
    EXPECT_EQ(Resources::look(), before);
}

/// A control group of the first version of that size, which a child puts itself into.
class SmallGroup {
public:
    explicit SmallGroup(std::uint64_t limit_bytes)
        : path_("/sys/fs/cgroup/memory/guestmem-test-" + std::to_string(::getpid())) {
        std::error_code failure;
        if (::geteuid() != 0 || !std::filesystem::create_directory(path_, failure) || failure) return;
        is_there_ = bool{std::ofstream{path_ + "/memory.limit_in_bytes"} << limit_bytes << std::flush};
    }
    SmallGroup(const SmallGroup&) = delete;
    SmallGroup& operator=(const SmallGroup&) = delete;
    ~SmallGroup() { ::rmdir(path_.c_str()); }

    [[nodiscard]] bool is_there() const { return is_there_; }
    [[nodiscard]] bool enter() const {
        return bool{std::ofstream{path_ + "/cgroup.procs"} << ::getpid() << std::flush};
    }

private:
    std::string path_;
    bool is_there_ = false;
};

TEST(Prealloc, ThatAControlGroupWouldKillForStopsBefore) {
    const SmallGroup group{96 * mib};
    if (!group.is_there())
        GTEST_SKIP() << "no control group of the first version can be made here: not root, or not mounted";
    in_child([&] {
        ASSERT_TRUE(group.enter());
        const Mapping mapping = anonymous(128 * mib);
        const auto done = preallocate(mapping.bytes(), {.count_threads = 2});
        ASSERT_FALSE(done);
        EXPECT_EQ(done.error().code(), Errc::exhausted);
        EXPECT_THAT(
            done.error().message(),
            HasSubstr("prealloc: 0 bytes are done, the next 134217728 need 139460608 with page tables, and "
                      "the control group "));
        EXPECT_EQ(count_resident_pages(mapping.bytes()), 0U);
        EXPECT_TRUE(preallocate(mapping.bytes().first(16 * mib), {.count_threads = 2}));
    });
}

TEST(Prealloc, ThatAControlGroupWouldKillForStopsBetweenChunks) {
    const SmallGroup group{prealloc_chunk_bytes + 64 * mib};
    if (!group.is_there())
        GTEST_SKIP() << "no control group of the first version can be made here: not root, or not mounted";
    const TempFolder folder;
    in_child([&] {
        const BackendPlan plan = planned(
            "memory-backend-file,id=a,size=384M,share=on,prealloc=on,prealloc-threads=1,mem-path=/dev/shm/" +
            folder.path().substr(folder.path().rfind('/') + 1));
        ASSERT_TRUE(group.enter());
        EXPECT_THAT(message_of(plan),
                    HasSubstr("prealloc: 268435456 bytes are done, the next 134217728 need 139460608"));
        EXPECT_FALSE(std::filesystem::exists(plan.options.mem_path));
    });
}

TEST(Prealloc, OfAPrivateObjectCountsEachPageTwice) {
    const SmallGroup group{400 * mib};
    if (!group.is_there())
        GTEST_SKIP() << "no control group of the first version can be made here: not root, or not mounted";
    in_child([&] {
        const BackendPlan plan = planned("memory-backend-memfd,id=a,size=256M,share=off,prealloc=on");
        EXPECT_EQ(plan.memory_now_bytes, 512 * mib);
        ASSERT_TRUE(group.enter());
        EXPECT_THAT(message_of(plan), HasSubstr("0 bytes are done, the next 268435456 need"));
        EXPECT_TRUE(Backend::create(planned("memory-backend-memfd,id=a,size=128M,share=off,prealloc=on"))
                        .has_value());
    });
}

TEST(Prealloc, OfWhatFitsGoesToTheEndHoweverManyThreadsAreAtIt) {
    const SmallGroup group{400 * mib};
    if (!group.is_there())
        GTEST_SKIP() << "no control group of the first version can be made here: not root, or not mounted";
    in_child([&] {
        ASSERT_TRUE(group.enter());
        for (const std::uint64_t threads : {std::uint64_t{1}, std::uint64_t{2}, std::uint64_t{16}}) {
            const Mapping mapping = anonymous(380 * mib);
            const auto done = preallocate(mapping.bytes(), {.count_threads = threads});
            EXPECT_TRUE(done) << threads << ": " << (done ? "" : done.error().message());
        }
    });
}

TEST(Prealloc, OfPagesThatAreThereNeedsNoMemory) {
    const SmallGroup group{400 * mib};
    if (!group.is_there())
        GTEST_SKIP() << "no control group of the first version can be made here: not root, or not mounted";
    const TempFolder folder;
    in_child([&] {
        ASSERT_TRUE(group.enter());
        const std::string path = "/dev/shm/" + folder.path().substr(folder.path().rfind('/') + 1);
        const Fd file = create_file(path, 0600).value();
        ASSERT_TRUE(allocate_file(file, 0, 300 * mib));
        const BackendPlan plan =
            planned("memory-backend-file,id=a,size=300M,share=on,prealloc=on,mem-path=" + path);
        EXPECT_EQ(plan.memory_now_bytes, 0U);
        const auto backend = Backend::create(plan);
        EXPECT_TRUE(backend) << (backend ? "" : backend.error().message());
        ASSERT_TRUE(remove_file(path));
    });
}

}  // namespace
}  // namespace guestmem
