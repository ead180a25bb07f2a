// SPDX-License-Identifier: Apache-2.0
#include "guestmem/vmm/own_service.hpp"

#include <gtest/gtest.h>

#include "guestmem/share/session.hpp"
#include "guestmem/sys/faults.hpp"
#include "guestmem/sys/file_system.hpp"
#include "guestmem/sys/testing/temp_folder.hpp"
#include "guestmem/vmm/testing/share_world.hpp"

namespace guestmem::vmm {
namespace {

class OwnServiceTest : public ::testing::Test {
protected:
    [[nodiscard]] std::string path() const { return folder_.path_of("control"); }
    [[nodiscard]] Result<share::Session> attach() const {
        share::SessionOptions options;
        options.control = path();
        options.share = "mailbox";
        options.may_create = true;
        options.size_bytes = 4096;
        return share::Session::attach(options);
    }
    guestmem::testing::TempFolder folder_;
    testing::TextLog log_;
};

TEST_F(OwnServiceTest, HostProgramsAttachToItWhileItLives) {
    auto service = OwnService::create(path(), log_);
    ASSERT_TRUE(service) << service.error().message();
    EXPECT_EQ((*service)->control(), path());
    EXPECT_TRUE(attach());
    service->reset();
    EXPECT_FALSE(attach());
    EXPECT_FALSE(path_facts(path())->exists) << "its socket goes with it";
}

TEST_F(OwnServiceTest, AllSharesTogetherHaveNoMoreThanTheirBudget) {
    const auto service = OwnService::create(path(), log_, 6 * 4096);
    ASSERT_TRUE(service);
    share::SessionOptions options;
    options.control = path();
    options.may_create = true;
    options.size_bytes = 4 * 4096;
    options.share = "first";
    const auto first = share::Session::attach(options);
    ASSERT_TRUE(first) << first.error().message();
    options.share = "second";
    EXPECT_FALSE(share::Session::attach(options));
    options.size_bytes = 2 * 4096;
    EXPECT_TRUE(share::Session::attach(options));
}

TEST_F(OwnServiceTest, ASocketThatALiveServiceHasIsLeftAlone) {
    const auto first = OwnService::create(path(), log_);
    ASSERT_TRUE(first);
    EXPECT_FALSE(OwnService::create(path(), log_));
    EXPECT_TRUE(attach());
}

TEST_F(OwnServiceTest, EveryCallThatFailsIsAnErrorAndLeavesNothing) {
    for (std::uint64_t nth = 0;; ++nth) {
        ASSERT_LT(nth, 1000U);
        auto service = Result<std::unique_ptr<OwnService>>{nullptr};
        bool has_fired = false;
        {
            const FaultInjector injector{nth};
            service = OwnService::create(path(), log_);
            // Its thread makes calls, too, once it is there.
            has_fired = injector.has_fired();
        }
        if (service) service->reset();
        if (!has_fired) break;
        EXPECT_FALSE(path_facts(path()) && path_facts(path())->exists) << nth;
    }
}

}  // namespace
}  // namespace guestmem::vmm
