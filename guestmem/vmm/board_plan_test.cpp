// SPDX-License-Identifier: Apache-2.0
#include "guestmem/vmm/board_plan.hpp"

#include <gtest/gtest.h>

#include <string>

#include "guestmem/sys/testing/temp_folder.hpp"
#include "guestmem/vmm/boot/acpi_tables.hpp"
#include "guestmem/vmm/guest_start.hpp"

namespace guestmem::vmm {
namespace {

class BoardPlanTest : public ::testing::Test {
protected:
    void SetUp() override {
        kernel_ = folder_.path_of("kernel");
        ASSERT_TRUE(write_text_file(kernel_, "payload"));
    }
    Result<BoardPlan> plan(const std::string& text) {
        auto read = read_text(text, "board.qvmconf", &read_text_file);
        if (!read) return read.error();
        return plan_board(*std::move(read));
    }
    [[nodiscard]] std::string file() const { return "load " + kernel_ + "\n"; }
    std::string error_of(const std::string& text) {
        const auto planned = plan(text);
        return planned ? "no error" : planned.error().message();
    }

    guestmem::testing::TempFolder folder_;
    std::string kernel_;
};

TEST_F(BoardPlanTest, RamIsASharedMemfdUnlessTheLineSaysOtherwise) {
    const auto planned = plan("system a\nram 16M\nram 8M backend memory-backend-ram\n" + file());
    ASSERT_TRUE(planned) << planned.error().message();
    ASSERT_EQ(planned->memory.size(), 2U);
    EXPECT_EQ(planned->memory[0].backend.options.kind, BackendKind::memfd);
    EXPECT_TRUE(is_shared(planned->memory[0].backend.options));
    EXPECT_EQ(planned->memory[0].backend.options.size_bytes, 16U << 20);
    EXPECT_EQ(planned->memory[1].backend.options.kind, BackendKind::ram);
    EXPECT_EQ(planned->memory[1].backend.options.size_bytes, 8U << 20);
    EXPECT_EQ(planned->memory[1].ranges[0].base().value(), 16U << 20);
}

TEST_F(BoardPlanTest, RegionsAppearAboveTheHighestRam) {
    const auto low = plan("system a\nram 16M\n" + file());
    ASSERT_TRUE(low);
    EXPECT_EQ(low->share_window.base().value(), std::uint64_t{4} << 30);
    const auto high = plan("system a\nram 0x140000000,16M\nram 0,16M\n" + file());
    ASSERT_TRUE(high) << high.error().message();
    EXPECT_EQ(high->share_window.base().value(), 0x1'4100'0000U);
    EXPECT_GT(high->pci_windows.memory64->first, high->share_window.last().value());
}

TEST_F(BoardPlanTest, EachMistakeNamesItsLine) {
    const std::string error =
        error_of("system a\nram 16M backend memory-backend-nothing\nload /nonexistent/kernel\n");
    EXPECT_NE(error.find("board.qvmconf:2:"), std::string::npos) << error;
    EXPECT_NE(error.find("board.qvmconf:3:"), std::string::npos) << error;
    EXPECT_NE(error.find("/nonexistent/kernel"), std::string::npos) << error;
}

TEST_F(BoardPlanTest, ABackendOfAnotherSizeIsRefused) {
    const std::string error = error_of("system a\nram 16M backend memory-backend-ram,size=8M\n" + file());
    EXPECT_NE(error.find("8M"), std::string::npos) << error;
    EXPECT_NE(error.find("16M"), std::string::npos) << error;
}

TEST_F(BoardPlanTest, AFolderIsNoKernel) {
    const std::string error = error_of("system a\nram 16M\nload /\n");
    EXPECT_NE(error.find("is no file"), std::string::npos) << error;
}

TEST_F(BoardPlanTest, TheExplanationHasMemoryDevicesAndRights) {
    const auto planned = plan("system a\nram 16M\n" + file() +
                              "vdev ioapic loc 0xf8000000 intr apic name pic\n"
                              "vdev ser8250 intr pic:4\nvdev shmem deny secret* create TEST1,0xf0000\n");
    ASSERT_TRUE(planned) << planned.error().message();
    EXPECT_TRUE(planned->has_pci);
    const std::string text = explain_board(*planned);
    for (const char* const part : {"0x000000ffffff", "ioapic", "0xf8000000", "0x3f8", "pic:4",
                                   "creates TEST1", "deny secret*", "on the PCI bus", "system a"}) {
        EXPECT_NE(text.find(part), std::string::npos) << part << "\n" << text;
    }
}

TEST_F(BoardPlanTest, TheTablesDescribeTheBoard) {
    const auto planned =
        plan("system a\nram 16M\ncpu\ncpu\n" + file() +
             "vdev ioapic loc 0xf8000000 intr apic name pic\n"
             "vdev ser8250 intr pic:4\nvdev timer8254 intr pic:0\nvdev mc146818\nvdev pci\n");
    ASSERT_TRUE(planned) << planned.error().message();
    const AcpiPlan acpi = plan_acpi(*planned);
    EXPECT_EQ(acpi.apic_ids, (std::vector<std::uint32_t>{0, 1}));
    ASSERT_TRUE(acpi.io_apic);
    EXPECT_EQ(acpi.io_apic->address.value(), 0xf800'0000U);
    EXPECT_EQ(acpi.timer_gsi, 0U);
    EXPECT_EQ(acpi.clock_gsi, 8U);
    EXPECT_FALSE(acpi.keyboard_gsi);
    ASSERT_EQ(acpi.serial.size(), 1U);
    EXPECT_EQ(acpi.serial[0].port, 0x3f8);
    EXPECT_TRUE(acpi.pci);
    EXPECT_TRUE(check_acpi_plan(acpi));
}

}  // namespace
}  // namespace guestmem::vmm
