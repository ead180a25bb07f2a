// SPDX-License-Identifier: Apache-2.0
#include "guestmem/share/ivshmem/wire.hpp"

#include <gtest/gtest.h>

#include <sstream>
#include <string>
#include <vector>

#include "guestmem/sys/fd.hpp"

namespace guestmem::share {
namespace {

struct Vector {
    std::string name;
    std::int64_t value = 0;
    IvshmemMessage bytes{};
};

/// The block of test vectors in the protocol page.
std::vector<Vector> read_vectors() {
    const std::string page = read_text_file(GUESTMEM_SOURCE "/docs/protocols/ivshmem.md", 1 << 20).value();
    std::istringstream lines{page.substr(page.find("```vectors\n") + 11)};
    std::vector<Vector> vectors;
    for (std::string line; std::getline(lines, line) && line != "```";) {
        std::istringstream columns{line};
        std::string name;
        std::string value;
        std::string bytes;
        std::getline(columns, name, '|');
        std::getline(columns, value, '|');
        std::getline(columns, bytes, '|');
        Vector vector{.name = name, .value = std::stoll(value), .bytes = {}};
        std::istringstream digits{bytes};
        for (std::byte& byte : vector.bytes) {
            unsigned number = 0;
            digits >> std::hex >> number;
            byte = static_cast<std::byte>(number);
        }
        vectors.push_back(vector);
    }
    return vectors;
}

TEST(IvshmemWire, TheVectorsOfTheProtocolPageEncodeAndDecode) {
    const auto vectors = read_vectors();
    ASSERT_GE(vectors.size(), 13U);
    for (const Vector& vector : vectors) {
        EXPECT_EQ(encode_ivshmem(vector.value), vector.bytes) << vector.name;
        EXPECT_EQ(decode_ivshmem(vector.bytes), vector.value) << vector.name;
    }
}

TEST(IvshmemWire, EveryKindOfNumberComesBack) {
    for (const std::int64_t value :
         {std::int64_t{0}, std::int64_t{-1}, std::int64_t{65'535}, INT64_MIN, INT64_MAX})
        EXPECT_EQ(decode_ivshmem(encode_ivshmem(value)), value);
}

}  // namespace
}  // namespace guestmem::share
