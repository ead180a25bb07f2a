// SPDX-License-Identifier: Apache-2.0
#include "guestmem/share/keeper/keeper_process.hpp"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <sys/stat.h>
#include <unistd.h>

#include <array>
#include <cerrno>
#include <csignal>
#include <filesystem>
#include <fstream>
#include <optional>
#include <string>
#include <system_error>
#include <vector>

#include "guestmem/share/keeper/testing/keeper_fixtures.hpp"
#include "guestmem/sys/deadline.hpp"
#include "guestmem/sys/host.hpp"
#include "guestmem/sys/testing/fault_loop.hpp"
#include "guestmem/sys/testing/resources.hpp"

namespace guestmem::share {
namespace {

using testing::Bells;
using ::testing::ElementsAre;
using testing::eventually;
using ::testing::HasSubstr;
using testing::in_child;
using ::testing::IsEmpty;
using testing::KeeperProcess;
using testing::KeeperThread;
using testing::Resources;
using testing::TempFolder;

constexpr std::chrono::seconds patience{20};

std::span<const std::byte> bytes_of(std::string_view text) { return std::as_bytes(std::span{text}); }

/// The service's end, by hand: what it says may be wrong.
class RawService {
public:
    explicit RawService(const std::string& path) : stream_(SeqpacketStream::connect(path).value()) {}

    void say(const KeeperMessage& message, std::span<const FdView> fds = {}) const {
        say(std::span<const std::byte>{encode(message)}, fds);
    }
    void say(std::span<const std::byte> bytes, std::span<const FdView> fds = {}) const {
        EXPECT_TRUE(stream_.send(bytes, fds));
    }
    /// The next message; nothing at the end of the connection, or when nothing comes.
    std::optional<KeeperMessage> hear() const {
        std::array<std::byte, max_keeper_message_bytes> buffer{};
        if (!wait_readable(stream_.view(), Deadline{patience}).value()) return std::nullopt;
        auto received = stream_.receive(buffer);
        if (!received || !*received || (*received)->count_bytes == 0) return std::nullopt;
        count_fds_ += (*received)->fds.size();
        return decode_keeper_message(std::span{buffer}.first((*received)->count_bytes)).value();
    }
    /// Says next until everything is handed over.
    void settle() const {
        ASSERT_EQ(hear().value_or(KeeperMessage{}).verb, KeeperVerb::welcome);
        for (;;) {
            say({.verb = KeeperVerb::next});
            const auto batch = hear();
            ASSERT_TRUE(batch && batch->verb == KeeperVerb::holding);
            if (batch->keys.empty()) return;
        }
    }
    bool is_cut() const {
        return eventually([this] { return stream_.is_hung_up(); }, patience);
    }
    std::size_t count_fds() const { return count_fds_; }
    const SeqpacketStream& stream() const { return stream_; }

private:
    SeqpacketStream stream_;
    mutable std::size_t count_fds_ = 0;
};

std::size_t count_held(const std::string& path) {
    return join_keeper({.path = path, .patience = patience}).value().kept.size();
}

KeeperMessage keep_message(std::uint32_t first, std::uint32_t count, std::uint32_t number = 0) {
    KeeperMessage message{.verb = KeeperVerb::keep, .number = number};
    for (std::uint32_t i = 0; i < count; ++i)
        message.keys.push_back({.kind = KeptKind::memory, .share = 0, .index = first + i});
    return message;
}

TEST(KeeperProcess, HasASocketOfItsOwnerAloneAndRemovesItAtSigterm) {
    const TempFolder folder;
    for (const int signal : {SIGTERM, SIGINT}) {
        KeeperProcess keeper{folder.path_of("keeper")};
        struct stat status{};
        ASSERT_EQ(::lstat(folder.path_of("keeper").c_str(), &status), 0);
        EXPECT_EQ(status.st_mode & 07777U, 0600U);
        EXPECT_TRUE(keeper.end(signal));
        EXPECT_THAT(folder.entries(), IsEmpty());
    }
}

TEST(KeeperProcess, LivesThroughAHangup) {
    const TempFolder folder;
    const KeeperProcess keeper{folder.path_of("keeper")};
    keeper.signal(SIGHUP);
    EXPECT_EQ(count_held(folder.path_of("keeper")), 0U);
    EXPECT_TRUE(keeper.is_alive());
}

TEST(KeeperProcess, IsAProcessOfItsOwnWithNothingOfItsStarter) {
    const TempFolder folder;
    const Fd of_the_starter = open_file("/dev/zero", OpenMode::read).value();
    const KeeperProcess keeper{folder.path_of("keeper")};
    const std::string proc = "/proc/" + std::to_string(keeper.number());
    std::string name;
    std::getline(std::ifstream{proc + "/comm"}, name);
    EXPECT_EQ(name, "guestmem-keeper");
    EXPECT_NE(::getsid(keeper.number()), ::getsid(0));
    std::size_t count_others = 0;
    ASSERT_TRUE(eventually([&] {
        count_others = 0;
        for (const auto& entry : std::filesystem::directory_iterator{proc + "/fd"}) {
            std::error_code gone;  // one that the keeper has closed meanwhile
            const auto target = std::filesystem::read_symlink(entry.path(), gone);
            if (!gone && target != "/dev/null") ++count_others;
        }
        return count_others == 2;
    })) << count_others
        << " descriptors besides the standard streams";  // its listener, its signals
}

TEST(KeeperProcess, OfALivePathIsNotStartedAgain) {
    const TempFolder folder;
    const KeeperProcess keeper{folder.path_of("keeper")};
    const auto second = start_keeper({.path = folder.path_of("keeper")});
    ASSERT_FALSE(second);
    EXPECT_EQ(second.error().code(), Errc::busy);
    EXPECT_EQ(count_held(folder.path_of("keeper")), 0U) << "the first one is still reached";
}

TEST(KeeperProcess, ReplacesTheFileOfAKilledOne) {
    const TempFolder folder;
    {
        KeeperProcess killed{folder.path_of("keeper")};
        ASSERT_TRUE(killed.end(SIGKILL));
    }
    ASSERT_THAT(folder.entries(), ElementsAre("keeper"));
    const KeeperProcess keeper{folder.path_of("keeper")};
    EXPECT_EQ(count_held(folder.path_of("keeper")), 0U);
}

TEST(KeeperProcess, SaysWhyItCannotStart) {
    const TempFolder folder;
    const auto nowhere = start_keeper({.path = folder.path_of("none/keeper")});
    ASSERT_FALSE(nowhere);
    EXPECT_EQ(nowhere.error().code(), Errc::not_found);
    EXPECT_THAT(nowhere.error().message(), HasSubstr("does not exist"));
    const auto in_the_way = start_keeper({.path = folder.write("file", "text")});
    ASSERT_FALSE(in_the_way);
    EXPECT_EQ(in_the_way.error().code(), Errc::already_exists);
    EXPECT_EQ(folder.read("file"), "text");
}

TEST(KeeperProcess, WhateverFailsAtItsStartNothingIsLeft) {
    const TempFolder folder;
    int round = 0;
    const auto path = [&] { return folder.path_of(std::to_string(round)); };
    const auto count = testing::for_each_fault(
        [&]() -> Result<void> {
            const std::int32_t number = GM_TRY(start_keeper({.path = path()}));
            ::kill(number, SIGTERM);
            return {};
        },
        [&] {
            EXPECT_TRUE(eventually([&] { return !std::filesystem::exists(path()); })) << round;
            ++round;
        });
    EXPECT_GE(count, 12U);
}

TEST(KeeperServer, GivesTheNextServiceWhatTheLastOneGave) {
    const TempFolder folder;
    const Bells bells{600};
    const Resources before = Resources::look();
    {
        const KeeperThread keeper{{.path = folder.path_of("keeper")}};
        for (int turn = 0; turn < 2; ++turn) {
            const Inheritance inherited = join_keeper({.path = folder.path_of("keeper")}).value();
            if (turn == 0) {
                EXPECT_THAT(inherited.kept, IsEmpty());
                ASSERT_TRUE(inherited.keeper->keep(bells.requests()));
            } else {
                EXPECT_TRUE(bells.are(inherited.kept));
            }
        }
    }
    EXPECT_EQ(Resources::look(), before);
    EXPECT_THAT(folder.entries(), IsEmpty());
}

TEST(KeeperServer, TellsASecondServiceWhoIsServed) {
    const TempFolder folder;
    const KeeperThread keeper{{.path = folder.path_of("keeper")}};
    const Inheritance first = join_keeper({.path = folder.path_of("keeper")}).value();
    const RawService second{folder.path_of("keeper")};
    const auto refusal = second.hear();
    ASSERT_TRUE(refusal);
    EXPECT_EQ(refusal->verb, KeeperVerb::refused);
    EXPECT_EQ(refusal->status, static_cast<std::uint32_t>(EBUSY));
    EXPECT_EQ(refusal->values[0], static_cast<std::uint32_t>(::getpid()));
    EXPECT_TRUE(first.keeper->sync()) << "the first one is not disturbed";
}

TEST(KeeperServer, CutsWhoSaysSomethingElse) {
    const TempFolder folder;
    const std::string path = folder.path_of("keeper");
    const Resources before = Resources::look();
    {
        const KeeperThread keeper{{.path = path}};
        const Bells bells{3};
        ASSERT_TRUE(join_keeper({.path = path}).value().keeper->keep(bells.requests()));
        const std::array own{bells.bell(0).view(), bells.bell(1).view()};
        const std::vector<std::byte> long_packet(max_keeper_message_bytes + 1);
        const std::vector<std::function<void(const RawService&)>> lies{
            [](const RawService& service) { service.say(bytes_of("garbage")); },
            [&](const RawService& service) { service.say(long_packet); },
            [&](const RawService& service) { service.say(bytes_of("x"), own); },
            [&](const RawService& service) { service.say(keep_message(10, 2)); },
            [&](const RawService& service) { service.say(keep_message(10, 1), own); },
            [&](const RawService& service) { service.say({.verb = KeeperVerb::sync, .number = 1}, own); },
            [](const RawService& service) { service.say({.verb = KeeperVerb::next}); },
            [](const RawService& service) { service.say({.verb = KeeperVerb::welcome}); },
        };
        for (std::size_t i = 0; i < lies.size(); ++i) {
            {
                const RawService service{path};
                ASSERT_NO_FATAL_FAILURE(service.settle());
                lies[i](service);
                EXPECT_TRUE(service.is_cut()) << i;
            }
            const Inheritance after = join_keeper({.path = path}).value();
            EXPECT_TRUE(bells.are(after.kept)) << "lie " << i << " changed what is held";
        }
    }
    EXPECT_EQ(Resources::look(), before);
}

TEST(KeeperServer, TakesNothingBeforeItHasHandedOver) {
    const TempFolder folder;
    const std::string path = folder.path_of("keeper");
    const KeeperThread keeper{{.path = path}};
    const Bells bells{2};
    ASSERT_TRUE(join_keeper({.path = path}).value().keeper->keep(bells.requests()));
    {
        const RawService service{path};
        ASSERT_TRUE(service.hear());
        service.say({.verb = KeeperVerb::end, .number = 1});
        EXPECT_TRUE(service.is_cut());
    }
    EXPECT_EQ(count_held(path), 2U);
}

TEST(KeeperServer, HoldsNoMoreThanItsCapacity) {
    const TempFolder folder;
    const std::string path = folder.path_of("keeper");
    const KeeperThread keeper{{.path = path, .capacity = 10}};
    const Bells bells{1};
    const std::vector<FdView> same(11, bells.bell(0).view());
    const RawService service{path};
    ASSERT_NO_FATAL_FAILURE(service.settle());
    service.say(keep_message(0, 10, 1), std::span{same}.first(10));
    EXPECT_EQ(service.hear().value_or(KeeperMessage{.status = 1}).status, 0U);
    service.say(keep_message(0, 11, 2), same);
    EXPECT_EQ(service.hear().value_or(KeeperMessage{}).status, static_cast<std::uint32_t>(ENOSPC));
}

TEST(KeeperServer, CutsAServiceThatDoesNotTakeWhatItIsGiven) {
    const TempFolder folder;
    const std::string path = folder.path_of("keeper");
    const KeeperThread keeper{{.path = path, .patience = std::chrono::milliseconds{1000}}};
    const Bells bells{1};
    ASSERT_TRUE(join_keeper({.path = path}).value().keeper->keep(bells.requests()));
    const RawService mute{path};
    EXPECT_TRUE(mute.is_cut());
    EXPECT_EQ(count_held(path), 1U);
}

TEST(KeeperServer, CutsAServiceThatAsksAndDoesNotHear) {
    const TempFolder folder;
    const std::string path = folder.path_of("keeper");
    const KeeperThread keeper{{.path = path, .patience = std::chrono::milliseconds{1000}}};
    const RawService deaf{path};
    ASSERT_NO_FATAL_FAILURE(deaf.settle());
    const auto question = encode({.verb = KeeperVerb::sync, .number = 1});
    EXPECT_TRUE(eventually(
        [&] {
            static_cast<void>(deaf.stream().send(question).has_value());
            return deaf.stream().is_hung_up();
        },
        patience));
    EXPECT_EQ(count_held(path), 0U);
}

TEST(KeeperServer, WaitsForAServiceThatIsQuiet) {
    const TempFolder folder;
    const std::string path = folder.path_of("keeper");
    const KeeperThread keeper{{.path = path, .patience = std::chrono::milliseconds{500}}};
    const Inheritance quiet = join_keeper({.path = path}).value();
    EXPECT_FALSE(wait_readable(quiet.keeper->gone(), Deadline{std::chrono::milliseconds{1500}}).value());
    EXPECT_TRUE(quiet.keeper->sync());
}

TEST(KeeperServer, TakesTheLastWordsOfADeadServiceThatHasNotHeardItsAnswers) {
    const TempFolder folder;
    const std::string path = folder.path_of("keeper");
    const KeeperThread keeper{{.path = path}};
    const Bells bells{40};
    {
        // Its unread answers make the kernel tell the keeper of an error before the packets behind it.
        const RawService service{path};
        ASSERT_NO_FATAL_FAILURE(service.settle());
        for (std::uint32_t i = 0; i < 40; ++i) {
            const std::array fd{bells.bell(i).view()};
            service.say(keep_message(i, 1, i + 1), fd);
        }
    }
    EXPECT_EQ(count_held(path), 40U);
}

TEST(KeeperServer, IsOfNoUseToOtherUsers) {
    if (::geteuid() != 0) GTEST_SKIP() << "SKIPPED: acting as another user needs root";
    const TempFolder folder;
    const std::string path = folder.path_of("keeper");
    const KeeperThread keeper{{.path = path, .users = {4242}}};
    const Bells bells{1};
    ASSERT_TRUE(join_keeper({.path = path}).value().keeper->keep(bells.requests()));
    ASSERT_EQ(::chmod(folder.path().c_str(), 0755), 0);
    const auto try_as = [&](uid_t user) {
        return in_child([&] {
            if (::setresuid(user, user, user) != 0) return 100;
            const auto stream = SeqpacketStream::connect(path);
            if (!stream) return stream.error().os_error();
            std::array<std::byte, max_keeper_message_bytes> buffer{};
            if (!wait_readable(stream->view(), Deadline{patience}).value()) return 101;
            const auto received = stream->receive(buffer);
            if (!received || !*received || !(*received)->fds.empty()) return 102;
            const auto message = decode_keeper_message(std::span{buffer}.first((*received)->count_bytes));
            return message->verb == KeeperVerb::welcome ? 0 : static_cast<int>(message->status);
        });
    };
    EXPECT_EQ(try_as(4243), EACCES) << "by the file's mode";
    ASSERT_EQ(::chmod(path.c_str(), 0666), 0);
    EXPECT_EQ(try_as(4243), EACCES) << "by its credentials";
    EXPECT_EQ(try_as(4242), 0) << "a user that was named";
}

/// One life of a keeper in a child in which system call `nth` fails; the answer to "was there such a call".
bool outlives_fault(const TempFolder& folder, std::uint64_t nth) {
    const std::string path = folder.path_of("keeper");
    auto listener = SeqpacketListener::create(path).value();
    const EventFd stop = EventFd::create().value();
    const pid_t child = ::fork();
    if (child == 0) {
        int status = 0;
        {
            FaultInjector injector{nth};
            const bool is_good = run_keeper(std::move(listener), {.path = path}, stop.view()).has_value();
            status = (is_good ? 0 : 2) + (injector.has_fired() ? 1 : 0);
        }
        ::_exit(status);
    }
    listener.leave_file();
    listener = {};
    const Bells bells{300};
    EXPECT_TRUE(join_keeper({.path = path, .patience = patience}).value().keeper->keep(bells.requests()));
    EXPECT_TRUE(bells.are(join_keeper({.path = path, .patience = patience}).value().kept));
    EXPECT_TRUE(stop.ring());
    int status = 0;
    EXPECT_EQ(::waitpid(child, &status, 0), child);
    EXPECT_TRUE(WIFEXITED(status) && WEXITSTATUS(status) < 2);
    return WEXITSTATUS(status) == 1;
}

TEST(KeeperServer, WhateverFailsInItNothingItHoldsIsLost) {
    const TempFolder folder;
    std::uint64_t nth = 0;
    for (bool has_fired = true; has_fired && nth < 500; ++nth) {
        SCOPED_TRACE(nth);
        has_fired = outlives_fault(folder, nth);
    }
    EXPECT_GT(nth, 15U);
    EXPECT_LT(nth, 500U);
}

}  // namespace
}  // namespace guestmem::share
