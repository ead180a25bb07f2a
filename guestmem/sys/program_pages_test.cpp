// SPDX-License-Identifier: Apache-2.0
#include "guestmem/sys/program_pages.hpp"

#include <gtest/gtest.h>

#include <array>
#include <cstdint>
#include <cstring>
#include <fstream>
#include <string>

#include "guestmem/sys/faults.hpp"

namespace guestmem {
namespace {

/// A constant that fills pages of its own, read a page at a time.
constexpr std::size_t pages = 256;
constexpr std::size_t page = 4096;
alignas(page) constexpr std::array<char, pages * page> constants{'c'};
int variable = 7;

std::uint64_t sum_constants() {
    std::uint64_t sum = 0;
    for (std::size_t at = 0; at < constants.size(); at += page) {
        const volatile char* const place = &constants[at];
        sum += static_cast<unsigned char>(*place);
    }
    return sum;
}

/// What /proc/self/smaps says of the mapping that an address is in.
std::uint64_t resident_kib(const void* place) {
    std::ifstream maps{"/proc/self/smaps"};
    const auto address = reinterpret_cast<std::uintptr_t>(place);
    bool is_there = false;
    for (std::string line; std::getline(maps, line);) {
        std::uintptr_t first = 0;
        std::uintptr_t end = 0;
        if (std::sscanf(line.c_str(), "%lx-%lx ", &first, &end) == 2)
            is_there = address >= first && address < end;
        std::uint64_t kib = 0;
        if (is_there && std::sscanf(line.c_str(), "Rss: %lu kB", &kib) == 1) return kib;
    }
    return 0;
}

TEST(ProgramPages, AreGivenBackAndComeBackAsTheyWere) {
    const std::uint64_t before = sum_constants();
    ASSERT_GE(resident_kib(constants.data()), pages * page / 1024);
    variable = 8;

    give_back_program_pages();

    // Neighbors of what runs here come back at once.
    EXPECT_LT(resident_kib(constants.data()), pages * page / 1024);
    EXPECT_EQ(sum_constants(), before);
    EXPECT_EQ(variable, 8);
}

TEST(ProgramPages, ThatTheKernelKeepsAreNoFailure) {
    const FaultInjector injector{0, {.only = SysCall::madvise}};
    give_back_program_pages();
    EXPECT_TRUE(injector.has_fired());
    EXPECT_EQ(sum_constants(), sum_constants());
}

}  // namespace
}  // namespace guestmem
