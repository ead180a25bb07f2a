// SPDX-License-Identifier: Apache-2.0
#include "guestmem/vmm/devices/created_region.hpp"

#include <gtest/gtest.h>

#include <algorithm>
#include <array>
#include <atomic>
#include <memory>
#include <string>
#include <utility>

#include "guestmem/base/log.hpp"
#include "guestmem/sys/testing/loop_thread.hpp"
#include "guestmem/sys/testing/temp_folder.hpp"
#include "guestmem/vmm/own_service.hpp"
#include "guestmem/vmm/share_watch.hpp"

namespace guestmem::vmm {
namespace {

using guestmem::testing::eventually;

class NoLog final : public Log {
public:
    void write(LogLevel /*level*/, std::string_view /*text*/) override {}
};

TEST(CreatedRegion, IsSaidOnceToBeLostByTheThreadThatWatches) {
    const guestmem::testing::TempFolder folder;
    NoLog log;
    const std::string control = folder.path_of("control");
    auto service = OwnService::create(control, log).value();
    auto hold = share::Hold::take({.control = control, .share = "kept", .size_bytes = 65'536});
    ASSERT_TRUE(hold) << hold.error().message();
    std::atomic<int> count{0};
    std::string said;
    const auto region = std::make_shared<CreatedRegion>(*std::move(hold), [&](const std::string& text) {
        said = text;
        ++count;
    });
    EXPECT_FALSE(region->look());
    EXPECT_EQ(count, 0);
    EXPECT_EQ(region->hold().size_bytes(), 65'536U);

    const auto watch = ShareWatch::create().value();
    watch->add([&] { return std::array{region}; });
    watch->start();
    service.reset();
    EXPECT_TRUE(eventually([&] { return count == 1; }));
    watch->stop();
    EXPECT_NE(said.find("create kept"), std::string::npos) << said;
    EXPECT_FALSE(region->look());
    EXPECT_EQ(count, 1);
}

}  // namespace
}  // namespace guestmem::vmm
