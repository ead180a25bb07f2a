// SPDX-License-Identifier: Apache-2.0
#include "guestmem/share/host_shm.hpp"

#include <gmock/gmock.h>

#include <cerrno>
#include <future>
#include <memory>
#include <string>

#include "guestmem/share/testing/fake_service.hpp"
#include "guestmem/sys/poll.hpp"
#include "guestmem/sys/testing/loop_thread.hpp"
#include "guestmem/sys/testing/temp_folder.hpp"

namespace guestmem::share {
namespace {

using ::testing::Each;
using testing::FakeLies;
using testing::FakeService;
using testing::FakeShare;
using ::testing::HasSubstr;

constexpr int patience_ms = 20'000;

class HostShmTest : public ::testing::Test {
protected:
    ~HostShmTest() override {
        loop_.call([this](EventLoop&) { service_.reset(); });
    }
    void serve(FakeShare share) {
        share.path = options().control;
        loop_.call([&](EventLoop& loop) { service_ = std::make_unique<FakeService>(loop, share); });
    }
    void serve() { serve({.slots = 16, .vectors = 1, .size_bytes = 16 * host_shm_page_bytes}); }
    template <typename Function>
    auto in_service(Function&& function) {
        return loop_.call([&](EventLoop&) { return function(*service_); });
    }
    [[nodiscard]] HostShmOptions options() const {
        return {.name = "testing",
                .size_pages = 16,
                .control = folder_.path_of("control"),
                .timeout_ms = patience_ms};
    }
    [[nodiscard]] static std::string problem_of(const Result<void>& done) {
        return done ? "" : done.error().message();
    }
    [[nodiscard]] HostShm attached() const {
        HostShm shm = HostShm::create(0).value();
        EXPECT_EQ(problem_of(shm.attach(options())), "");
        return shm;
    }
    [[nodiscard]] static Error refusal(const HostShmOptions& wanted) {
        HostShm shm = HostShm::create(0).value();
        auto done = shm.attach(wanted);
        EXPECT_FALSE(shm.is_attached());
        return done ? Error{Errc::io, "it attached"} : std::move(done).error();
    }

    guestmem::testing::TempFolder folder_;
    guestmem::testing::LoopThread loop_;
    std::unique_ptr<FakeService> service_;
};

TEST_F(HostShmTest, AttachesWithASizeInPagesAndAnIndex) {
    serve();
    HostShm shm = HostShm::create(100).value();
    EXPECT_EQ(shm.size_pages(), 0U);
    EXPECT_EQ(shm.index(), std::nullopt);
    EXPECT_EQ(shm.private_data().size(), 100U);
    EXPECT_THAT(shm.private_data(), Each(std::byte{0}));
    ASSERT_EQ(problem_of(shm.attach(options())), "");
    EXPECT_EQ(shm.size_pages(), 16U);
    EXPECT_EQ(shm.bytes().size(), 65'536U);
    EXPECT_EQ(shm.name(), "testing");
    EXPECT_EQ(shm.index(), 0U);
    const AttachCall asked = in_service([](FakeService& service) { return service.last_call(); });
    EXPECT_TRUE(asked.may_create);
    EXPECT_EQ(asked.size_bytes, 65'536U);
    EXPECT_EQ(asked.slots, 16U);
}

TEST_F(HostShmTest, TheFirstMakersSizeIsRead) {
    serve();
    HostShm shm = HostShm::create(0).value();
    HostShmOptions wanted = options();
    wanted.size_pages = 2;
    ASSERT_EQ(problem_of(shm.attach(wanted)), "");
    EXPECT_EQ(shm.size_pages(), 16U);
}

TEST_F(HostShmTest, TheUpperHalfOfTheStatusIsWhoIsActiveTheOwnBitIncluded) {
    serve();
    HostShm one = attached();
    EXPECT_EQ(one.status().value(), 0x0001'0000U);
    {
        HostShm two = attached();
        EXPECT_EQ(two.status().value(), 0x0003'0000U);
        EXPECT_EQ(one.status().value(), 0x0003'0000U);
        in_service([](FakeService& service) { service.show(15, true); });
        EXPECT_EQ(one.status().value(), 0x8003'0000U);
        two.detach();
        EXPECT_EQ(one.wait_status(patience_ms).value(), 0x8001'0000U);
    }
    EXPECT_EQ(one.wait_status(0).value(), 0U);
}

TEST_F(HostShmTest, APokeIsSeenOnceAndPokesMerge) {
    serve();
    HostShm one = attached();
    HostShm two = attached();
    HostShm three = attached();
    ASSERT_TRUE(one.status());
    ASSERT_TRUE(two.poke(1U << 0));
    ASSERT_TRUE(two.poke(1U << 0));
    ASSERT_TRUE(three.poke(1U << 0));
    EXPECT_TRUE(poll_readable(one.view(), 0).value());
    EXPECT_EQ(one.status().value(), 0x0007'0006U);
    EXPECT_EQ(one.status().value(), 0x0007'0000U) << "cleared by reading";
    EXPECT_FALSE(poll_readable(one.view(), 0).value());
    EXPECT_EQ(two.status().value() & 0xffffU, 0U);
}

TEST_F(HostShmTest, AllIsEverybodyAndAllOnesIsEverybodyButTheCaller) {
    serve();
    HostShm one = attached();
    HostShm two = attached();
    HostShm three = attached();
    ASSERT_TRUE(two.poke(host_shm_poke_all_but_me));
    EXPECT_EQ(one.status().value() & 0xffffU, 2U);
    EXPECT_EQ(two.status().value() & 0xffffU, 0U);
    EXPECT_EQ(three.status().value() & 0xffffU, 2U);
    ASSERT_TRUE(two.poke(host_shm_poke_all));
    EXPECT_EQ(one.status().value() & 0xffffU, 2U);
    EXPECT_EQ(two.status().value() & 0xffffU, 2U);
    EXPECT_EQ(three.status().value() & 0xffffU, 2U);
    ASSERT_TRUE(two.poke(0x0001'0000U)) << "bits above 15 mean nothing";
    EXPECT_EQ(one.status().value() & 0xffffU, 0U);
}

TEST_F(HostShmTest, AnIndexThatNobodyHoldsIsNotPoked) {
    serve();
    HostShm one = attached();
    ASSERT_TRUE(one.poke(1U << 9));
    EXPECT_EQ(in_service([](FakeService& service) { return service.doorbell(9, 0).pending().value(); }), 0U);
}

TEST_F(HostShmTest, WhoAttachesHearsNoPokeOfAnEarlierHolder) {
    serve();
    HostShm one = attached();
    {
        HostShm two = attached();
        ASSERT_TRUE(one.poke(1U << 1));
    }
    ASSERT_TRUE(guestmem::testing::eventually([&] { return one.status().value() >> 16 == 1; }));
    HostShm next = attached();
    EXPECT_EQ(next.index(), 1U);
    EXPECT_EQ(next.status().value() & 0xffffU, 0U);
}

TEST_F(HostShmTest, APokeWakesAWaitThatRuns) {
    serve();
    HostShm one = attached();
    HostShm two = attached();
    ASSERT_TRUE(one.status());
    auto waiting = std::async(std::launch::async, [&] { return one.wait_status(patience_ms); });
    ASSERT_TRUE(two.poke(host_shm_poke_all_but_me));
    EXPECT_EQ(waiting.get().value(), 0x0003'0002U);
}

TEST_F(HostShmTest, EachMistakeHasItsDocumentedNumber) {
    HostShm none = HostShm::create(0).value();
    EXPECT_EQ(none.poke(1).error().os_error(), ENOTCONN);
    EXPECT_EQ(none.status().error().os_error(), ENOTCONN);
    EXPECT_EQ(none.renew().error().os_error(), ENOTCONN);
    EXPECT_EQ(refusal(options()).os_error(), ECONNREFUSED) << "no service";
    serve();
    HostShmOptions wanted = options();
    for (const char* name : {"", "with/slash", "of-more-than-thirty-one-letters!"}) {
        wanted.name = name;
        const Error error = refusal(wanted);
        EXPECT_EQ(error.os_error(), EINVAL) << name;
        EXPECT_EQ(guest_shm_status_of(error), GuestShmStatus::illegal_name);
    }
    wanted = options();
    wanted.size_pages = 0;
    EXPECT_EQ(refusal(wanted).os_error(), ERANGE);
    wanted.size_pages = ~std::uint64_t{0};
    EXPECT_EQ(refusal(wanted).os_error(), ERANGE);

    const struct {
        Error said;
        int os_error;
        GuestShmStatus status;
    } cases[]{
        {{Errc::permission_denied, EACCES, "no"}, EACCES, GuestShmStatus::no_permission},
        {{Errc::exhausted, ENOSPC, "all places are taken"}, EBUSY, GuestShmStatus::client_max},
        {{Errc::busy, EBUSY, "slot is taken"}, EBUSY, GuestShmStatus::client_max},
        {{Errc::exhausted, ENOMEM, "no memory"}, ENOMEM, GuestShmStatus::nomem},
        {{Errc::not_found, ENOENT, "no share"}, ENOENT, GuestShmStatus::does_not_exist},
        {{Errc::corrupt, 0, "who knows"}, EIO, GuestShmStatus::unknown_failure},
    };
    for (const auto& one : cases) {
        in_service([&](FakeService& service) { service.lies = {.refusal = one.said}; });
        const Error error = refusal(options());
        EXPECT_EQ(error.os_error(), one.os_error) << one.said.message();
        EXPECT_EQ(guest_shm_status_of(error), one.status) << one.said.message();
    }
    in_service([](FakeService& service) { service.lies = {}; });
    HostShm shm = attached();
    EXPECT_EQ(shm.attach(options()).error().os_error(), EEXIST);
    EXPECT_TRUE(shm.is_attached());
}

TEST_F(HostShmTest, AShareOfMoreThanSixteenSlotsIsRefused) {
    serve({.slots = 17, .vectors = 1});
    EXPECT_EQ(refusal(options()).os_error(), ENOTSUP);
    EXPECT_THAT(refusal(options()).message(), HasSubstr("17 slots"));
}

TEST_F(HostShmTest, WithoutTheRightToNotifyItIsRefused) {
    serve({.slots = 16, .vectors = 1, .may_notify = false});
    EXPECT_EQ(refusal(options()).os_error(), EACCES);
}

TEST_F(HostShmTest, AServiceThatComesBackHasOtherMemoryAndTheOldStays) {
    serve();
    HostShm shm = attached();
    shm.bytes()[3] = std::byte{8};
    in_service([](FakeService& service) {
        service.end();
        service.start();
    });
    EXPECT_EQ(shm.status().value(), 0x0001'0000U);
    EXPECT_TRUE(shm.has_other_memory());
    EXPECT_EQ(shm.bytes()[3], std::byte{8});
    ASSERT_TRUE(shm.renew());
    EXPECT_FALSE(shm.has_other_memory());
    EXPECT_EQ(shm.bytes()[3], std::byte{0});
}

TEST_F(HostShmTest, DetachingLeavesNothingAndTheHandleCanAttachAgain) {
    serve();
    HostShm shm = HostShm::create(0).value();
    ASSERT_EQ(problem_of(shm.attach(options())), "");
    shm.detach();
    EXPECT_FALSE(shm.is_attached());
    EXPECT_FALSE(shm.view().is_open());
    EXPECT_TRUE(shm.bytes().empty());
    shm.detach();
    // The service sees it, and has the slot back.
    EXPECT_TRUE(guestmem::testing::eventually(
        [&] { return in_service([](FakeService& service) { return !service.is_held(0); }); }));
    ASSERT_EQ(problem_of(shm.attach(options())), "");
    EXPECT_EQ(shm.index(), 0U);
}

}  // namespace
}  // namespace guestmem::share
