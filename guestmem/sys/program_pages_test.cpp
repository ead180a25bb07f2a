// SPDX-License-Identifier: Apache-2.0
#include "guestmem/sys/program_pages.hpp"

#include <gtest/gtest.h>

#include <array>
#include <cstdint>
#include <cstring>
#include <fstream>
#include <string>
#include <utility>

#include "guestmem/sys/faults.hpp"

namespace guestmem {
namespace {

/// A constant that fills pages of its own, read a page at a time.
constexpr std::size_t pages = 256;
constexpr std::size_t page = 4096;
alignas(page) constexpr std::array<char, pages * page> constants{'c'};

// What is written into the program's image, in pages of its own: variables with and without a first value, and
// constants that the start of the program fills in. Volatile: what is compared is read from memory, not remembered.
constexpr std::size_t written_pages = 4;
alignas(page) std::array<volatile char, written_pages * page> variables{'v'};
alignas(page) std::array<volatile char, written_pages * page> zeros;
constexpr std::size_t relocations = written_pages * page / sizeof(const char*);
template <std::size_t... index>
constexpr std::array<const char*, sizeof...(index)> places(std::index_sequence<index...>) {
    return {&constants[index]...};
}
alignas(page) const std::array<const char*, relocations> relocated =
    places(std::make_index_sequence<relocations>{});

void write_all() {
    for (std::size_t i = 0; i < written_pages * page; ++i) {
        variables[i] = static_cast<char>(i % 127);
        zeros[i] = static_cast<char>(i % 113);
    }
}
/// Of all bytes and places that are written, how many are not what they were.
std::size_t count_lost() {
    std::size_t lost = 0;
    for (std::size_t i = 0; i < written_pages * page; ++i) {
        lost += variables[i] != static_cast<char>(i % 127) ? 1U : 0U;
        lost += zeros[i] != static_cast<char>(i % 113) ? 1U : 0U;
    }
    for (std::size_t i = 0; i < relocations; ++i) {
        const char* const volatile& place = relocated[i];
        lost += place != constants.data() + i ? 1U : 0U;
    }
    return lost;
}

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

    give_back_program_pages();

    // Neighbors of what runs here come back at once.
    EXPECT_LT(resident_kib(constants.data()), pages * page / 1024);
    EXPECT_EQ(sum_constants(), before);
}

TEST(ProgramPages, ThatWereWrittenStay) {
    write_all();
    ASSERT_EQ(count_lost(), 0U);

    give_back_program_pages();

    EXPECT_EQ(count_lost(), 0U);
}

TEST(ProgramPages, ThatTheKernelKeepsAreNoFailure) {
    const FaultInjector injector{0, {.only = SysCall::madvise}};
    give_back_program_pages();
    EXPECT_TRUE(injector.has_fired());
    EXPECT_EQ(sum_constants(), sum_constants());
}

}  // namespace
}  // namespace guestmem
