// SPDX-License-Identifier: Apache-2.0
#include <gmock/gmock.h>
#include <guestmem/share.h>

#include <array>
#include <cerrno>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <string>
#include <vector>

#include "guestmem/share/testing/fake_service.hpp"
#include "guestmem/sys/poll.hpp"
#include "guestmem/sys/testing/loop_thread.hpp"
#include "guestmem/sys/testing/temp_folder.hpp"

namespace guestmem::share {
namespace {

using ::testing::ElementsAre;
using testing::FakeService;
using testing::FakeShare;
using ::testing::HasSubstr;

constexpr int patience_ms = 20'000;

class ShareInC : public ::testing::Test {
protected:
    ~ShareInC() override {
        for (gm_share_session* const session : sessions_) gm_share_close(session);
        loop_.call([this](EventLoop&) { service_.reset(); });
    }
    void serve(FakeShare share = {}) {
        share.path = path_;
        loop_.call([&](EventLoop& loop) { service_ = std::make_unique<FakeService>(loop, share); });
    }
    template <typename Function>
    auto in_service(Function&& function) {
        return loop_.call([&](EventLoop&) { return function(*service_); });
    }
    [[nodiscard]] gm_share_options options() const {
        gm_share_options wanted = GM_SHARE_OPTIONS_INIT;
        wanted.control = path_.c_str();
        wanted.share = "mailbox";
        wanted.timeout_ms = patience_ms;
        return wanted;
    }
    gm_share_session* attach(const gm_share_options& wanted) {
        gm_share_session* session = nullptr;
        EXPECT_EQ(gm_share_attach(&wanted, &session), GM_SHARE_OK) << gm_share_last_error();
        if (session != nullptr) sessions_.push_back(session);
        return session;
    }
    gm_share_session* attach() { return attach(options()); }
    static gm_share_facts facts_of(const gm_share_session* session) {
        gm_share_facts facts = GM_SHARE_FACTS_INIT;
        EXPECT_EQ(gm_share_get_facts(session, &facts), GM_SHARE_OK);
        return facts;
    }
    static bool is_readable(int number) { return poll_readable(FdView{number}, 0).value(); }

    guestmem::testing::TempFolder folder_;
    std::string path_ = folder_.path_of("control");
    guestmem::testing::LoopThread loop_;
    std::unique_ptr<FakeService> service_;
    std::vector<gm_share_session*> sessions_;
};

TEST_F(ShareInC, AttachesMapsAndSaysWhatItGot) {
    serve();
    gm_share_options wanted = options();
    wanted.flags = GM_SHARE_CREATE | GM_SHARE_WANT_SLOT;
    wanted.slot = 2;
    wanted.size_bytes = 4096;
    const gm_share_session* const session = attach(wanted);
    const gm_share_facts facts = facts_of(session);
    EXPECT_EQ(facts.struct_size, sizeof(gm_share_facts));
    EXPECT_EQ(facts.slot, 2U);
    EXPECT_EQ(facts.slots, 4U);
    EXPECT_EQ(facts.vectors, 2U);
    EXPECT_EQ(facts.size_bytes, 8192U);
    EXPECT_EQ(facts.generation, 1U);
    EXPECT_EQ(facts.memory_generation, 1U);
    EXPECT_TRUE(facts.is_sealed == 1 && facts.may_notify == 1 && facts.is_lost == 0 &&
                facts.is_read_only == 0);
    gm_share_mapping* memory = nullptr;
    ASSERT_EQ(gm_share_map(session, &memory), GM_SHARE_OK);
    EXPECT_EQ(gm_share_size(memory), 8192U);
    std::memset(gm_share_data(memory), 1, gm_share_size(memory));
    gm_share_unmap(memory);
    EXPECT_EQ(gm_share_abi_version(), 0x0001'0000U);
}

TEST_F(ShareInC, RingsWaitsAndKeepsTheKicksThatHadNoRoom) {
    serve();
    gm_share_session* const one = attach();
    gm_share_session* const two = attach();
    ASSERT_EQ(gm_share_ring(two, 0, 0), GM_SHARE_OK);
    ASSERT_EQ(gm_share_ring(two, 0, 1), GM_SHARE_OK);
    ASSERT_EQ(gm_share_ring(two, 0, 1), GM_SHARE_OK);
    EXPECT_TRUE(is_readable(gm_share_vector_fd(one, 1)));
    EXPECT_TRUE(is_readable(gm_share_any_fd(one)));
    std::uint32_t events = 0;
    gm_share_kick kick{};
    std::size_t count = 0;
    ASSERT_EQ(gm_share_wait(one, nullptr, 0, 0, patience_ms, &events, &kick, 1, &count), GM_SHARE_OK);
    EXPECT_EQ(events, GM_SHARE_KICKED);
    EXPECT_TRUE(count == 1 && kick.vector == 0 && kick.count == 1);
    ASSERT_EQ(gm_share_wait(one, nullptr, 0, 0, patience_ms, &events, &kick, 1, &count), GM_SHARE_OK);
    EXPECT_EQ(events, GM_SHARE_KICKED);
    EXPECT_TRUE(count == 1 && kick.vector == 1 && kick.count == 2);
    ASSERT_EQ(gm_share_wait(one, nullptr, 0, 0, 0, &events, &kick, 1, &count), GM_SHARE_OK);
    EXPECT_EQ(events, 0U);
    EXPECT_EQ(count, 0U);
    const std::uint32_t none = 2;
    EXPECT_EQ(gm_share_wait(one, &none, 1, 0, 0, &events, nullptr, 0, nullptr), GM_SHARE_OUT_OF_RANGE);
    EXPECT_EQ(gm_share_ring(one, 9, 0), GM_SHARE_NOT_FOUND);
    EXPECT_THAT(gm_share_last_error(), HasSubstr("no peer 9"));
}

TEST_F(ShareInC, KnowsWhoIsThereAndWaitsForIt) {
    serve();
    gm_share_session* const session = attach();
    in_service([](FakeService& service) {
        service.show(1, true);
        service.show(3, true);
    });
    EXPECT_TRUE(is_readable(gm_share_changes_fd(session)));
    std::uint32_t events = 0;
    ASSERT_EQ(
        gm_share_wait(session, nullptr, 0, GM_SHARE_PRESENCE, patience_ms, &events, nullptr, 0, nullptr),
        GM_SHARE_OK);
    EXPECT_EQ(events, GM_SHARE_PRESENCE);
    std::array<std::uint32_t, 4> ids{};
    std::size_t count = 0;
    ASSERT_EQ(gm_share_peers(session, ids.data(), 1, &count), GM_SHARE_OK);
    EXPECT_EQ(count, 2U);
    EXPECT_THAT(ids, ElementsAre(1, 0, 0, 0)) << "no more than there is room for";
    EXPECT_EQ(gm_share_is_present(session, 3), 1);
    EXPECT_EQ(gm_share_is_present(session, 2), 0);
    EXPECT_EQ(gm_share_wait_ready(session, 3, 0, 0, patience_ms), GM_SHARE_OK);
    EXPECT_EQ(gm_share_wait_ready(session, 3, 1, 4096, 0), GM_SHARE_TIMED_OUT);
    EXPECT_EQ(gm_share_wait_ready(session, 3, 1, 1, 0), GM_SHARE_OUT_OF_RANGE);
}

TEST_F(ShareInC, ALostSessionComesBackAndSaysSo) {
    serve();
    gm_share_options wanted = options();
    wanted.flags = GM_SHARE_NO_REATTACH;
    gm_share_session* const session = attach(wanted);
    in_service([](FakeService& service) { service.cut(0); });
    std::uint32_t events = 0;
    ASSERT_EQ(gm_share_refresh(session, &events), GM_SHARE_OK);
    EXPECT_TRUE((events & GM_SHARE_LOST) != 0 && (events & GM_SHARE_REATTACHED) == 0);
    EXPECT_EQ(facts_of(session).is_lost, 1);
    ASSERT_EQ(gm_share_reattach(session), GM_SHARE_OK);
    ASSERT_EQ(gm_share_refresh(session, &events), GM_SHARE_OK);
    EXPECT_TRUE((events & GM_SHARE_REATTACHED) != 0 && (events & GM_SHARE_LOST) == 0);
    EXPECT_EQ(facts_of(session).generation, 2U);
}

TEST_F(ShareInC, NoticesThatHadNoRoomAreTheNextCalls) {
    serve({.slots = 64, .vectors = 1, .is_classic = true});
    gm_share_session* const session = attach();
    const EventFd bell = EventFd::create().value();
    in_service([&](FakeService& service) {
        service.say(0, 5, bell.view());
        service.say(0, 5);
    });
    ASSERT_EQ(gm_share_refresh(session, nullptr), GM_SHARE_OK);
    gm_share_notice notice{};
    std::size_t count = 0;
    int has_lost = 1;
    ASSERT_EQ(gm_share_take_notices(session, &notice, 1, &count, &has_lost), GM_SHARE_OK);
    EXPECT_TRUE(count == 1 && notice.id == 5 && notice.has_come == 1 && has_lost == 0);
    ASSERT_EQ(gm_share_take_notices(session, &notice, 1, &count, &has_lost), GM_SHARE_OK);
    EXPECT_TRUE(count == 1 && notice.id == 5 && notice.has_come == 0);
    ASSERT_EQ(gm_share_take_notices(session, &notice, 1, &count, &has_lost), GM_SHARE_OK);
    EXPECT_EQ(count, 0U);
}

TEST_F(ShareInC, StructsOfOtherVersionsAreTakenAsFarAsTheyAreKnown) {
    serve();
    struct {
        gm_share_options options;
        std::uint64_t later = 0;
    } wanted{.options = options()};
    wanted.options.struct_size = sizeof wanted;
    gm_share_session* session = nullptr;
    ASSERT_EQ(gm_share_attach(&wanted.options, &session), GM_SHARE_OK) << "zeros ask for nothing";
    gm_share_close(session);
    session = nullptr;
    wanted.later = 1;
    EXPECT_EQ(gm_share_attach(&wanted.options, &session), GM_SHARE_UNSUPPORTED);
    for (const std::size_t size : {std::size_t{0}, std::size_t{8}, std::size_t{1} << 40}) {
        wanted.options.struct_size = size;
        EXPECT_EQ(gm_share_attach(&wanted.options, &session), GM_SHARE_INVALID_ARGUMENT);
    }
    gm_share_options flags = options();
    flags.flags = 1U << 31;
    EXPECT_EQ(gm_share_attach(&flags, &session), GM_SHARE_UNSUPPORTED);
    EXPECT_EQ(session, nullptr);

    struct {
        gm_share_facts facts = GM_SHARE_FACTS_INIT;
        std::uint64_t later = 77;
    } larger;
    larger.facts.struct_size = sizeof larger;
    ASSERT_EQ(gm_share_get_facts(attach(), &larger.facts), GM_SHARE_OK);
    EXPECT_EQ(larger.facts.struct_size, sizeof larger);
    EXPECT_EQ(larger.later, 77U);
    larger.facts.struct_size = 1;
    EXPECT_EQ(gm_share_get_facts(sessions_.front(), &larger.facts), GM_SHARE_INVALID_ARGUMENT);
}

TEST_F(ShareInC, NullIsAnErrorOrNothing) {
    serve();
    gm_share_session* const session = attach();
    gm_share_options wanted = options();
    EXPECT_EQ(gm_share_attach(nullptr, &sessions_.front()), GM_SHARE_INVALID_ARGUMENT);
    EXPECT_EQ(gm_share_attach(&wanted, nullptr), GM_SHARE_INVALID_ARGUMENT);
    wanted.share = nullptr;
    gm_share_session* none = nullptr;
    EXPECT_EQ(gm_share_attach(&wanted, &none), GM_SHARE_INVALID_ARGUMENT);
    EXPECT_EQ(gm_share_last_errno(), EINVAL);
    EXPECT_EQ(gm_share_get_facts(nullptr, nullptr), GM_SHARE_INVALID_ARGUMENT);
    EXPECT_EQ(gm_share_get_facts(session, nullptr), GM_SHARE_INVALID_ARGUMENT);
    EXPECT_EQ(gm_share_reattach(nullptr), GM_SHARE_INVALID_ARGUMENT);
    EXPECT_EQ(gm_share_map(session, nullptr), GM_SHARE_INVALID_ARGUMENT);
    EXPECT_EQ(gm_share_map(nullptr, nullptr), GM_SHARE_INVALID_ARGUMENT);
    EXPECT_EQ(gm_share_peers(nullptr, nullptr, 0, nullptr), GM_SHARE_INVALID_ARGUMENT);
    EXPECT_EQ(gm_share_peers(session, nullptr, 1, nullptr), GM_SHARE_INVALID_ARGUMENT);
    EXPECT_EQ(gm_share_peers(session, nullptr, 0, nullptr), GM_SHARE_OK);
    EXPECT_EQ(gm_share_ring(nullptr, 0, 0), GM_SHARE_INVALID_ARGUMENT);
    EXPECT_EQ(gm_share_wait(nullptr, nullptr, 0, 0, 0, nullptr, nullptr, 0, nullptr),
              GM_SHARE_INVALID_ARGUMENT);
    EXPECT_EQ(gm_share_wait(session, nullptr, 1, 0, 0, nullptr, nullptr, 0, nullptr),
              GM_SHARE_INVALID_ARGUMENT);
    EXPECT_EQ(gm_share_wait(session, nullptr, 0, 0, 0, nullptr, nullptr, 1, nullptr),
              GM_SHARE_INVALID_ARGUMENT);
    EXPECT_EQ(gm_share_wait(session, nullptr, 0, 0, 0, nullptr, nullptr, 0, nullptr), GM_SHARE_OK);
    EXPECT_EQ(gm_share_refresh(nullptr, nullptr), GM_SHARE_INVALID_ARGUMENT);
    EXPECT_EQ(gm_share_wait_ready(nullptr, 0, 0, 0, 0), GM_SHARE_INVALID_ARGUMENT);
    EXPECT_EQ(gm_share_take_notices(nullptr, nullptr, 0, nullptr, nullptr), GM_SHARE_INVALID_ARGUMENT);
    EXPECT_EQ(gm_share_take_notices(session, nullptr, 1, nullptr, nullptr), GM_SHARE_INVALID_ARGUMENT);
    EXPECT_EQ(gm_share_is_present(nullptr, 0), 0);
    EXPECT_EQ(gm_share_data(nullptr), nullptr);
    EXPECT_EQ(gm_share_size(nullptr), 0U);
    EXPECT_EQ(gm_share_vector_fd(nullptr, 0), -1);
    EXPECT_EQ(gm_share_vector_fd(session, 2), -1);
    EXPECT_EQ(gm_share_changes_fd(nullptr), -1);
    EXPECT_EQ(gm_share_any_fd(nullptr), -1);
    gm_share_close(nullptr);
    gm_share_unmap(nullptr);
}

TEST_F(ShareInC, ALongErrorIsCutAndNotLost) {
    const std::string name(100'000, 'x');
    gm_share_options wanted = options();
    wanted.share = name.c_str();
    gm_share_session* session = nullptr;
    EXPECT_EQ(gm_share_attach(&wanted, &session), GM_SHARE_UNAVAILABLE);
    EXPECT_LT(std::strlen(gm_share_last_error()), 1024U);
    EXPECT_THAT(gm_share_last_error(), HasSubstr("share 'xxx"));
}

TEST_F(ShareInC, TheHostOperationsReturnErrnos) {
    serve({.slots = 16, .vectors = 1, .size_bytes = 8192});
    gm_host_shm* one = nullptr;
    gm_host_shm* two = nullptr;
    ASSERT_EQ(gm_host_shm_create(64, &one), 0);
    ASSERT_EQ(gm_host_shm_create(0, &two), 0);
    EXPECT_NE(gm_host_shm_client(one), nullptr);
    EXPECT_EQ(gm_host_shm_idx(one), -1);
    EXPECT_EQ(gm_host_shm_name(one), nullptr);
    EXPECT_EQ(gm_host_shm_fd(one), -1);
    EXPECT_EQ(gm_host_shm_poke(one, 1), ENOTCONN);
    EXPECT_EQ(gm_host_shm_attach(one, path_.c_str(), "a/b", 2), EINVAL);
    EXPECT_EQ(gm_host_shm_attach(one, path_.c_str(), "mailbox", 0), ERANGE);
    ASSERT_EQ(gm_host_shm_attach(one, path_.c_str(), "mailbox", 2), 0) << gm_share_last_error();
    ASSERT_EQ(gm_host_shm_attach(two, path_.c_str(), "mailbox", 2), 0);
    EXPECT_EQ(gm_host_shm_attach(two, path_.c_str(), "other", 2), EEXIST);
    EXPECT_STREQ(gm_host_shm_name(two), "mailbox");
    EXPECT_EQ(gm_host_shm_size(one), 2U);
    EXPECT_EQ(gm_host_shm_idx(two), 1);
    std::memcpy(gm_host_shm_data(one), "x", 1);
    EXPECT_EQ(std::memcmp(gm_host_shm_data(two), "x", 1), 0);
    std::uint32_t status = 0;
    ASSERT_EQ(gm_host_shm_status(one, &status), 0);
    EXPECT_EQ(status, 0x0003'0000U);
    ASSERT_EQ(gm_host_shm_poke(two, GM_HOST_SHM_POKE_ALL_BUT_ME), 0);
    EXPECT_TRUE(is_readable(gm_host_shm_fd(one)));
    ASSERT_EQ(gm_host_shm_wait_status(one, patience_ms, &status), 0);
    EXPECT_EQ(status, 0x0003'0002U);
    EXPECT_EQ(gm_host_shm_wait_status(one, 0, &status), ETIMEDOUT);
    EXPECT_EQ(gm_host_shm_has_other_memory(one), 0);
    EXPECT_EQ(gm_host_shm_renew(one), 0);
    gm_host_shm_detach(two);
    EXPECT_EQ(gm_host_shm_data(two), nullptr);
    gm_host_shm_destroy(one);
    gm_host_shm_destroy(two);
}

TEST_F(ShareInC, TheHostOperationsTakeNull) {
    std::uint32_t status = 0;
    EXPECT_EQ(gm_host_shm_create(0, nullptr), EINVAL);
    gm_host_shm* huge = nullptr;
    EXPECT_EQ(gm_host_shm_create(static_cast<std::size_t>(-1), &huge), ENOMEM);
    EXPECT_EQ(huge, nullptr);
    EXPECT_EQ(gm_host_shm_attach(nullptr, nullptr, "a", 1), EINVAL);
    EXPECT_EQ(gm_host_shm_poke(nullptr, 1), EINVAL);
    EXPECT_EQ(gm_host_shm_status(nullptr, &status), EINVAL);
    EXPECT_EQ(gm_host_shm_wait_status(nullptr, 0, &status), EINVAL);
    EXPECT_EQ(gm_host_shm_renew(nullptr), EINVAL);
    EXPECT_EQ(gm_host_shm_size(nullptr), 0U);
    EXPECT_EQ(gm_host_shm_data(nullptr), nullptr);
    EXPECT_EQ(gm_host_shm_name(nullptr), nullptr);
    EXPECT_EQ(gm_host_shm_idx(nullptr), -1);
    EXPECT_EQ(gm_host_shm_fd(nullptr), -1);
    EXPECT_EQ(gm_host_shm_client(nullptr), nullptr);
    EXPECT_EQ(gm_host_shm_has_other_memory(nullptr), 0);
    gm_host_shm_detach(nullptr);
    gm_host_shm_destroy(nullptr);
}

/// Every compiler says the same of the header; the examples are built with what CMake found.
TEST(ShareHeader, IsC11AndCpp) {
    const guestmem::testing::TempFolder folder;
    folder.write("a.c",
                 "#include <guestmem/share.h>\n"
                 "gm_share_options options = GM_SHARE_OPTIONS_INIT;\n"
                 "gm_share_facts facts = GM_SHARE_FACTS_INIT;\n"
                 "uint32_t (*version)(void) = gm_share_abi_version;\n");
    const std::string flags =
        " -Wall -Wextra -Wpedantic -Wmissing-field-initializers -Werror -fsyntax-only -I" GUESTMEM_SOURCE " ";
    for (const std::string compiler : {"gcc -std=c11", "g++ -std=c++17 -x c++", "clang-19 -std=c11"}) {
        const std::string program = compiler.substr(0, compiler.find(' '));
        if (std::system(("command -v " + program + " >/dev/null").c_str()) != 0) continue;
        EXPECT_EQ(std::system((compiler + flags + folder.path_of("a.c")).c_str()), 0) << compiler;
    }
    if (std::system("command -v gcc >/dev/null") != 0) GTEST_SKIP() << "SKIPPED: there is no gcc";
}

}  // namespace
}  // namespace guestmem::share
