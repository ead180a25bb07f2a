// SPDX-License-Identifier: Apache-2.0
#include "guestmem/share/keeper/systemd_store.hpp"

#include <fcntl.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <sys/un.h>
#include <unistd.h>

#include <array>
#include <csignal>
#include <cstdlib>
#include <filesystem>
#include <string>
#include <vector>

#include "guestmem/share/keeper/testing/keeper_fixtures.hpp"
#include "guestmem/sys/memfd.hpp"
#include "guestmem/sys/poll.hpp"
#include "guestmem/sys/process.hpp"
#include "guestmem/sys/service_manager.hpp"
#include "guestmem/sys/testing/fake_service_manager.hpp"
#include "guestmem/sys/testing/fault_loop.hpp"

namespace guestmem::share {
namespace {

using testing::Bells;
using ::testing::ElementsAre;
using testing::FakeServiceManager;
using ::testing::HasSubstr;
using testing::in_child;
using ::testing::IsEmpty;
using testing::TempFolder;

constexpr KeptKey memory_key{.kind = KeptKind::memory, .share = 1, .index = 2};
constexpr KeptKey hung_up_key{.kind = KeptKind::connection, .share = 1, .index = 3};

TEST(SystemdStore, IsThereWhereTheManagerOrTheCallerSaysSo) {
    EXPECT_FALSE(SystemdStore::is_available(StoreWord::of_the_caller)) << "nobody to notify";
    {
        const FakeServiceManager silent{""};
        EXPECT_FALSE(SystemdStore::is_available());
        EXPECT_TRUE(SystemdStore::is_available(StoreWord::of_the_caller));
    }
    {
        const FakeServiceManager without{"0"};
        EXPECT_FALSE(SystemdStore::is_available(StoreWord::of_the_caller)) << "the manager says no";
    }
    const FakeServiceManager with{"1"};
    EXPECT_TRUE(SystemdStore::is_available());
}

TEST(SystemdStore, KeepsReplacesAndForgetsByName) {
    const FakeServiceManager manager{"64"};
    SystemdStore store{{}};
    const Bells bells{2};
    ASSERT_TRUE(store.keep(bells.requests()));
    ASSERT_TRUE(store.sync());
    EXPECT_THAT(manager.names(), ElementsAre("d3.0", "d3.1"));

    ASSERT_TRUE(store.keep(bells.requests()));
    ASSERT_TRUE(store.sync());
    EXPECT_THAT(manager.names(), ElementsAre("d3.0", "d3.1")) << "one for each key";

    ASSERT_TRUE(store.forget(std::array{bells.keys()[0], KeptKey{.kind = KeptKind::bell}}));
    ASSERT_TRUE(store.sync());
    EXPECT_THAT(manager.names(), ElementsAre("d3.1"));
    ASSERT_TRUE(store.end());
    EXPECT_THAT(manager.names(), IsEmpty());
    EXPECT_FALSE(store.gone().is_open());
}

TEST(SystemdStore, WhatIsKeptAgainUnchangedIsNotGivenAgain) {
    const FakeServiceManager manager{"64"};
    SystemdStore store{{}};
    const Bells bells{2};
    const Fd memory = create_sealed_memory({.name = "again", .size_bytes = 4096}).value();
    auto [ours, theirs] = SeqpacketStream::pair().value();
    auto requests = bells.requests();
    requests.push_back({memory_key, memory.view()});
    requests.push_back({hung_up_key, ours.view()});
    ASSERT_TRUE(store.keep(requests));
    ASSERT_TRUE(store.sync());
    const std::size_t count = manager.messages().size();

    ASSERT_TRUE(store.keep(requests));
    ASSERT_TRUE(store.sync());
    EXPECT_EQ(manager.messages().size(), count + 1) << "the barrier";

    requests[2].fd = bells.bell(0).view();
    requests[3].fd = theirs.view();
    std::swap(requests[0].fd, requests[1].fd);
    ASSERT_TRUE(store.keep(requests));
    ASSERT_TRUE(store.sync());
    EXPECT_EQ(manager.messages().size(), count + 1 + 4 * 2 + 1)
        << "others under the same keys are: removed, and stored";
}

TEST(SystemdStore, WhatAnEarlierInstanceHasStoredIsGivenAgainOnceAndTheRestForgotten) {
    const FakeServiceManager manager{"64"};
    const Bells bells{2};
    {
        SystemdStore first{{}};
        ASSERT_TRUE(first.keep(bells.requests()));
    }
    SystemdStore second{{}};
    for (const KeptKey& key : bells.keys()) second.remember(key);
    ASSERT_TRUE(second.keep(std::array{bells.requests()[0]}));
    ASSERT_TRUE(second.forget_rest());
    ASSERT_TRUE(second.sync());
    EXPECT_THAT(manager.names(), ElementsAre("d3.0"));
    EXPECT_TRUE(second.is_answering().value());
}

TEST(SystemdStore, RoomIsAskedForBeforeAnythingIsStored) {
    const FakeServiceManager manager{"4"};
    SystemdStore store{{.most_fds = 4}};
    const Bells bells{3};
    ASSERT_TRUE(store.keep(bells.requests()));
    EXPECT_TRUE(store.check_room(1));
    const auto full = store.check_room(2);
    ASSERT_FALSE(full);
    EXPECT_EQ(full.error().code(), Errc::exhausted);
    EXPECT_THAT(full.error().message(), HasSubstr("raise FileDescriptorStoreMax="));
    const SystemdStore by_names{{}};
    EXPECT_TRUE(by_names.check_room(16'000));
    EXPECT_THAT(by_names.check_room(32'000).error().message(), HasSubstr("LISTEN_FDNAMES"));
}

TEST(SystemdStore, TooManyInFlightIsAnErrorSoonAndWhatWasThereIsNotBelievedToBeStored) {
    const FakeServiceManager manager{"64"};
    SystemdStore store{{}};
    const Bells bells{1};
    const Bells others{1};
    ASSERT_TRUE(store.keep(bells.requests()));
    {
        // Its removal goes, and it does not.
        const FaultInjector injector{
            1, {.only = SysCall::notify, .os_error = ETOOMANYREFS, .repeat = 1'000'000}};
        const auto refused = store.keep(others.requests());
        ASSERT_FALSE(refused);
        EXPECT_EQ(refused.error().code(), Errc::timed_out);
    }
    ASSERT_TRUE(store.sync());
    EXPECT_TRUE(manager.names().empty());
    ASSERT_TRUE(store.keep(bells.requests()));
    ASSERT_TRUE(store.sync());
    EXPECT_THAT(manager.names(), ElementsAre("d3.0"));
}

TEST(SystemdStore, StoresWhatHangsUpToo) {
    const FakeServiceManager manager{"64"};
    SystemdStore store{{}};
    const Bells bells{1};
    ASSERT_TRUE(store.keep(bells.requests()));
    ASSERT_TRUE(store.sync());
    EXPECT_THAT(manager.messages().front(), HasSubstr("FDPOLL=0"));
}

TEST(SystemdStore, OneMoreThanTheUnitAllowsIsAnError) {
    const FakeServiceManager manager{"2"};
    SystemdStore store{{.most_fds = 2}};
    const Bells bells{2};
    const Bells more{1, 4};
    ASSERT_TRUE(store.keep(bells.requests()));
    const auto full = store.keep(more.requests());
    ASSERT_FALSE(full);
    EXPECT_EQ(full.error().code(), Errc::exhausted);
    EXPECT_THAT(full.error().message(), HasSubstr("raise FileDescriptorStoreMax="));
    EXPECT_TRUE(store.keep(bells.requests())) << "what it has may be replaced";
    ASSERT_TRUE(store.forget(std::array{bells.keys()[0]}));
    EXPECT_TRUE(store.keep(more.requests()));
}

TEST(SystemdStore, NamesThatDoNotFitIntoTheEnvironmentAreAnError) {
    const FakeServiceManager manager{"100000"};
    const EventFd bell = EventFd::create().value();
    // "j0.10000000" and its separator are 12 bytes; what is left of the room is for one such name, and a byte short.
    constexpr std::size_t name_bytes = 12;
    constexpr std::uint32_t first = 0x1000'0000;
    const std::size_t count = max_passed_names_bytes / name_bytes;
    const std::size_t rest = max_passed_names_bytes % name_bytes;
    const auto key_of = [](std::size_t index) {
        return KeptKey{
            .kind = KeptKind::journal, .share = 0, .index = first + static_cast<std::uint32_t>(index)};
    };
    const auto try_with = [&](std::size_t foreign_bytes) {
        SystemdStore store{{.foreign_bytes = foreign_bytes}};
        for (std::size_t i = 0; i + 1 < count; ++i) store.remember(key_of(i));
        return store.keep(std::array{KeepRequest{.key = key_of(count), .fd = bell.view()}});
    };
    EXPECT_TRUE(try_with(rest));
    const auto full = try_with(rest + 1);
    ASSERT_FALSE(full);
    EXPECT_EQ(full.error().code(), Errc::exhausted);
    EXPECT_THAT(full.error().message(), HasSubstr("LISTEN_FDNAMES"));
}

TEST(SystemdStore, WhateverFailsIsAnError) {
    FakeServiceManager manager{"64"};
    const Bells bells{2};
    const Bells others{2};
    // Which file it is need not be known: it is given again then.
    const testing::FaultLoopOptions survivable{.faults = testing::FaultsAre::survivable};
    const auto count = testing::for_each_fault(
        survivable,
        [&]() -> Result<void> {
            SystemdStore store{{}};
            GM_TRY(store.keep(bells.requests()));
            GM_TRY(store.keep(others.requests()));
            GM_TRY(store.forget(std::array{bells.keys()[0]}));
            GM_TRY(store.sync());
            return store.end();
        },
        [&] { manager.forget_all(); });
    EXPECT_GE(count, 2U + 4U + 1U + 1U + 2U);
}

/// What is opened after this has a number behind those that are passed.
void fill_descriptors_up_to(int number) {
    while (::open("/dev/null", O_RDONLY | O_CLOEXEC) < number) {
    }
}

/// Runs it in a child to which a doorbell, a socket that listens and a file are passed, under these names.
template <typename Function>
int with_passed(const std::string& path, Function&& function) {
    return in_child([&] {
        fill_descriptors_up_to(6);
        const Bells bells{1};
        const auto listener = UnixListener::create({.path = path}).value();
        const std::array<int, 3> high{::fcntl(bells.bell(0).view().number(), F_DUPFD, 100),
                                      ::fcntl(listener.view().number(), F_DUPFD, 100),
                                      ::fcntl(::open("/dev/null", O_RDONLY), F_DUPFD, 100)};
        for (int i = 0; i < 3; ++i)
            if (::dup2(high.at(static_cast<std::size_t>(i)), 3 + i) < 0) return 100;
        ::setenv("LISTEN_PID", std::to_string(::getpid()).c_str(), 1);
        ::setenv("LISTEN_FDS", "3", 1);
        ::setenv("LISTEN_FDNAMES", "d3.0:linux.socket:odd", 1);
        return function(bells);
    });
}

TEST(Inheritance, TellsKeptDescriptorsFromActivatedSocketsAndFromTheRest) {
    const TempFolder folder;
    const std::string path = folder.path_of("linux");
    EXPECT_EQ(with_passed(path,
                          [&](const Bells& bells) {
                              const auto inherited = inherit_from_service_manager();
                              if (!inherited) return 1;
                              if (!bells.are(inherited->kept)) return 2;
                              if (inherited->activated.size() != 1) return 3;
                              if (inherited->activated[0].name != "linux.socket") return 4;
                              if (inherited->activated[0].path != path) return 5;
                              if (inherited->unknown != std::vector<std::string>{"odd"}) return 6;
                              return inherited->keeper ? 7 : 0;
                          }),
              0);
}

TEST(Inheritance, WhateverFailsIsAnError) {
    const TempFolder folder;
    std::uint64_t nth = 0;
    for (int status = 1; status == 1 && nth < 100; ++nth) {
        status = with_passed(folder.path_of(std::to_string(nth)), [&](const Bells&) {
            const FaultInjector injector{nth};
            const bool is_good = inherit_from_service_manager().has_value();
            return is_good == injector.has_fired() ? 2 : static_cast<int>(injector.has_fired());
        });
        EXPECT_NE(status, 2) << nth;
    }
    EXPECT_GE(nth, 6U);
}

// The second program: this one again, started by tests/conformance/service_manager_peer.py, which restarts it
// when it is killed. Each life checks what the last one left.

constexpr const char* life_variable = "GUESTMEM_TEST_STORE_LIFE";
constexpr KeptKey counter_key{.kind = KeptKind::bell, .share = 1, .index = 0};

const KeptFd* find(const Inheritance& inherited, const KeptKey& key) {
    for (const KeptFd& one : inherited.kept)
        if (one.key == key) return &one;
    return nullptr;
}

int live_first(const Inheritance& inherited) {
    const EventFd counter = EventFd::create().value();
    const Fd memory = create_sealed_memory({.name = "life", .size_bytes = 4096}).value();
    auto [ours, theirs] = SeqpacketStream::pair().value();
    theirs = SeqpacketStream{};
    if (!counter.ring()) return 10;
    if (!inherited.keeper->keep(std::array{KeepRequest{counter_key, counter.view()},
                                           KeepRequest{memory_key, memory.view()},
                                           KeepRequest{hung_up_key, ours.view()}}))
        return 11;
    ::raise(SIGKILL);
    return 12;
}

int live_second(const Inheritance& inherited, const EventFd& counter) {
    if (inherited.kept.size() != 3 || find(inherited, hung_up_key) == nullptr) return 20;
    const Bells bells{1};
    if (!inherited.keeper->forget(std::array{hung_up_key})) return 21;
    if (!inherited.keeper->keep(std::array{KeepRequest{memory_key, bells.bell(0).view()}})) return 22;
    if (!bells.bell(0).ring() || !counter.ring() || !inherited.keeper->sync()) return 23;
    ::raise(SIGKILL);
    return 24;
}

int live_third(const Inheritance& inherited) {
    if (inherited.kept.size() != 2 || find(inherited, memory_key) == nullptr) return 30;
    const auto bell = EventFd::adopt(find(inherited, memory_key)->fd.duplicate().value());
    if (!bell || bell->drain().value() != 1) return 31;
    return inherited.keeper->end() ? 0 : 32;
}

int live() {
    const auto inherited = inherit_from_service_manager(StoreWord::of_the_caller);
    if (!inherited || !inherited->keeper) return 1;
    if (inherited->activated.size() != 1 || inherited->activated[0].name != "door") return 2;
    const KeptFd* const kept = find(*inherited, counter_key);
    if (kept == nullptr) return inherited->kept.empty() ? live_first(*inherited) : 3;
    const EventFd counter = EventFd::adopt(kept->fd.duplicate().value()).value();
    switch (counter.pending().value()) {
        case 1: return live_second(*inherited, counter);
        case 2: return live_third(*inherited);
        default: return 4;
    }
}

/// Before main(): where the variable is set, this program is the service, not the tests.
const bool is_service = [] {
    if (::getenv(life_variable) != nullptr) ::_exit(live());
    return false;
}();

/// The last line that the supervisor prints.
std::string run_lives(const std::vector<std::string>& options) {
    const TempFolder folder;
    auto [ours, its] = UnixStream::pair().value();
    ProcessOptions process{.arguments = {"env", std::string{life_variable} + "=1", "python3",
                                         GUESTMEM_SOURCE "/tests/conformance/service_manager_peer.py",
                                         "--listen", "door=" + folder.path_of("door")}};
    process.arguments.insert(process.arguments.end(), options.begin(), options.end());
    const std::string self = std::filesystem::read_symlink("/proc/self/exe").string();
    process.arguments.insert(process.arguments.end(), {"--", self});
    process.output = its.view();
    ChildProcess manager = ChildProcess::start(process).value();
    its = UnixStream{};
    EXPECT_TRUE(poll_readable(manager.ended(), 60'000).value());
    std::array<char, 1024> text{};
    const auto received = ours.receive(std::as_writable_bytes(std::span{text})).value();
    return received ? std::string{text.data(), received->count_bytes} : "";
}

TEST(SystemdStore, LivesThroughKillsUnderASecondImplementationOfTheManager) {
    ASSERT_FALSE(is_service);
    EXPECT_EQ(run_lives({}), "lives 3, stored 0, status 0\n");
    EXPECT_EQ(run_lives({"--silent"}), "lives 3, stored 0, status 0\n")
        << "the caller says that there is a store";
}

}  // namespace
}  // namespace guestmem::share
