// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <array>
#include <atomic>
#include <bit>
#include <compare>
#include <concepts>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <optional>
#include <string>
#include <string_view>
#include <type_traits>
#include <utility>
#include <vector>

#include "guestmem/mem/testing/choices.hpp"
#include "guestmem/mem/testing/memory_model.hpp"
#include "guestmem/mem/testing/model_atomic.hpp"
#include "guestmem/mem/testing/model_bulk.hpp"
#include "guestmem/mem/testing/model_memory.hpp"
#include "guestmem/mem/testing/test_map.hpp"

/// Random operations on a random guest's memory, each done by a view and by the model, and compared.
///
/// Concepts: the views are a MapView, a GuestMemory and a MapReader's memory over one map, taken at random, so that
/// last hits are tried against each other's writes. The seeded model test and the fuzzer are both this.
/// Contract: step() does one operation and says in words what was wrong; nothing when all was right.
/// Threads: one at a time.
/// Example:
///     ModelSession session{choices};
///     while (!choices.is_over()) EXPECT_EQ(session.step(), "");

namespace guestmem::testing {

template <std::size_t count>
struct Blob {
    std::array<std::uint8_t, count> bytes;
};

class ModelSession {
    using Refused = MemoryModel::Refused;

public:
    explicit ModelSession(Choices& choices)
        : choices_(choices),
          memory_(choices),
          view_(*memory_.map()),
          handle_(memory_.map()),
          reader_(memory_.map()) {}

    [[nodiscard]] std::string step() {
        std::string wrong;
        switch (choices_.below(3)) {
            case 0: wrong = operate(view_); break;
            case 1: wrong = operate(handle_); break;
            default: wrong = operate(*reader_); break;
        }
        if (wrong.empty()) wrong = memory_.differences();
        if (wrong.empty() && choices_.one_in(16)) wrong = memory_.harvest();
        if (wrong.empty()) return {};
        return what_ + ": " + wrong + "\nin the layout\n" + memory_.description();
    }

private:
    template <typename View>
    std::string operate(View& view) {
        switch (choices_.below(16)) {
            case 0: return read_bytes(view);
            case 1: return write_bytes(view);
            case 2: return some_bytes(view);
            case 3: return fill(view);
            case 4: return copy(view);
            case 5: return compare(view);
            case 6: return read_string(view);
            case 7: return check_range(view);
            case 8: return object_of_any_size(view);
            case 9: return byte_order(view);
            case 10: return bulk(view);
            default: return atomic_of_any_size(view);
        }
    }

    /// Chooses an address, and says what is done for whoever reads a failure.
    std::uint64_t address_for(std::string_view what) {
        const std::uint64_t address = memory_.any_address(choices_);
        what_ = std::string{what} + " at " + std::to_string(address);
        return address;
    }
    std::size_t size() {
        const std::size_t size = ModelMemory::any_size(choices_);
        what_ += " of " + std::to_string(size);
        return size;
    }
    std::vector<std::byte> bytes(std::size_t count) {
        std::vector<std::byte> made(count, static_cast<std::byte>(choices_.below(256)));
        choices_.fill(std::span{made}.first(std::min<std::size_t>(count, 24)));
        return made;
    }
    MemoryModel& model() { return memory_.model(); }

    template <typename View>
    std::string read_bytes(View& view) {
        const std::uint64_t address = address_for("read_bytes");
        std::vector<std::byte> found(size(), std::byte{0xcc});
        std::vector<std::byte> expected = found;
        const Refused refused = model().read(address, expected);
        const auto result = choices_.one_in(2)
                                ? view.read_bytes(GuestAddress{address}, found)
                                : view.template read_array<std::byte>(GuestAddress{address}, found);
        if (auto wrong = difference(refused, result); !wrong.empty()) return wrong;
        // What is behind the bytes done is nobody's business, so long as it is in the buffer.
        if (refused) found.resize(refused->count_done());
        if (refused) expected.resize(refused->count_done());
        return found == expected ? "" : "other bytes were read";
    }
    template <typename View>
    std::string write_bytes(View& view) {
        const std::uint64_t address = address_for("write_bytes");
        const std::vector<std::byte> from = bytes(size());
        const Refused refused = model().write(address, from);
        if (choices_.one_in(2)) return difference(refused, view.write_bytes(GuestAddress{address}, from));
        return difference(refused, view.template write_array<std::byte>(GuestAddress{address}, from));
    }
    template <typename View>
    std::string some_bytes(View& view) {
        const bool is_read = choices_.one_in(2);
        const std::uint64_t address = address_for(is_read ? "read_some" : "write_some");
        std::vector<std::byte> mine = bytes(size());
        std::vector<std::byte> expected = mine;
        std::size_t count = 0;
        const Refused refused =
            is_read ? model().read_some(address, expected, count) : model().write_some(address, mine, count);
        const auto result = is_read ? view.read_some(GuestAddress{address}, mine)
                                    : view.write_some(GuestAddress{address}, mine);
        if (auto wrong = difference(refused, result); !wrong.empty()) return wrong;
        if (result && *result != count)
            return std::to_string(*result) + " bytes, not " + std::to_string(count);
        mine.resize(count);
        expected.resize(count);
        return mine == expected ? "" : "other bytes were read";
    }
    template <typename View>
    std::string fill(View& view) {
        const std::uint64_t address = address_for("fill");
        // Never all of it in memory, so never long.
        const std::uint64_t count = choices_.one_in(8) ? choices_.any() | 1ULL << 40 : size();
        const auto value = static_cast<std::byte>(choices_.below(256));
        const Refused refused = model().fill(address, value, count);
        return difference(refused, view.fill(GuestAddress{address}, value, count));
    }
    template <typename View>
    std::string copy(View& view) {
        const std::uint64_t from = address_for("copy");
        const std::uint64_t to =
            choices_.one_in(2) ? from + choices_.below(81) - 40 : memory_.any_address(choices_);
        what_ += " to " + std::to_string(to);
        const std::size_t count = size();
        const Refused refused = model().copy(to, from, count);
        return difference(refused, view.copy(GuestAddress{to}, GuestAddress{from}, count));
    }
    template <typename View>
    std::string compare(View& view) {
        const std::uint64_t address = address_for("compare");
        std::vector<std::byte> other = bytes(size());
        // Mostly the same bytes but for one.
        if (choices_.below(4) != 0) static_cast<void>(model().read(address, other));
        if (!other.empty() && choices_.one_in(2)) other[choices_.below(other.size())] ^= std::byte{1};
        auto order = std::strong_ordering::equal;
        const Refused refused = model().compare(address, other, order);
        const auto result = view.compare(GuestAddress{address}, other);
        if (auto wrong = difference(refused, result); !wrong.empty()) return wrong;
        return !result || *result == order ? "" : "another order";
    }
    template <typename View>
    std::string read_string(View& view) {
        const std::uint64_t address = address_for("read_string");
        const std::size_t limit = size();
        std::string expected;
        const Refused refused = model().read_string(address, limit, expected);
        const auto result = view.read_string(GuestAddress{address}, limit);
        if (auto wrong = difference(refused, result); !wrong.empty()) return wrong;
        return !result || *result == expected ? "" : "another string";
    }
    template <typename View>
    std::string check_range(View& view) {
        const std::uint64_t address = address_for("check_range");
        const std::uint64_t count = choices_.one_in(4) ? choices_.any() : size();
        const Access access = choices_.one_in(2) ? Access::read : Access::write;
        return difference(model().check(address, count, access),
                          view.check_range(GuestAddress{address}, count, access));
    }

    template <typename View>
    std::string object_of_any_size(View& view) {
        switch (choices_.below(9)) {
            case 0: return object<std::uint8_t>(view);
            case 1: return object<std::int16_t>(view);
            case 2: return object<std::uint32_t>(view);
            case 3: return object<std::int64_t>(view);
            case 4: return object<double>(view);
            case 5: return object<Blob<12>>(view);
            case 6: return object<Blob<16>>(view);
            case 7: return object<Blob<64>>(view);
            default: return object<Blob<100>>(view);
        }
    }
    template <typename T, typename View>
    std::string object(View& view) {
        const bool is_read = choices_.one_in(2);
        const std::uint64_t address = address_for(is_read ? "read<T>" : "write<T>");
        what_ += " of " + std::to_string(sizeof(T));
        std::array<std::byte, sizeof(T)> mine{};
        if (is_read) {
            const Refused refused = model().read(address, mine);
            const auto result = view.template read<T>(GuestAddress{address});
            if (auto wrong = difference(refused, result); !wrong.empty()) return wrong;
            // NOLINTNEXTLINE(bugprone-suspicious-memory-comparison): these bytes are the promise
            const bool is_same = !result || std::memcmp(&*result, mine.data(), sizeof(T)) == 0;
            return is_same ? "" : "another object";
        }
        choices_.fill(mine);
        const Refused refused = model().write(address, mine);
        return difference(refused, view.template write<T>(GuestAddress{address}, std::bit_cast<T>(mine)));
    }
    template <typename View>
    std::string byte_order(View& view) {
        const std::uint64_t address = address_for("byte order");
        std::array<std::byte, 4> mine{};
        if (choices_.one_in(2)) {
            const Refused refused = model().read(address, mine);
            const auto little = view.template read_le<std::uint32_t>(GuestAddress{address});
            const auto big = view.template read_be<std::uint32_t>(GuestAddress{address});
            if (auto wrong = difference(refused, little); !wrong.empty()) return wrong;
            if (auto wrong = difference(refused, big); !wrong.empty()) return wrong;
            std::uint32_t value = 0;
            for (std::size_t i = 4; i-- > 0;) value = value << 8 | std::to_integer<std::uint32_t>(mine[i]);
            return refused || (*little == value && *big == std::byteswap(value)) ? "" : "another number";
        }
        choices_.fill(mine);
        const bool is_big = choices_.one_in(2);
        std::uint32_t value = 0;
        for (std::size_t i = 0; i < 4; ++i)
            value |= std::to_integer<std::uint32_t>(mine[i]) << 8 * (is_big ? 3 - i : i);
        const Refused refused = model().write(address, mine);
        return difference(refused, is_big ? view.write_be(GuestAddress{address}, value)
                                          : view.write_le(GuestAddress{address}, value));
    }

    template <typename View>
    std::string bulk(View& view) {
        const std::uint64_t address = address_for("bulk");
        return ModelBulk{choices_, memory_, what_}.operate(view, address);
    }
    template <typename View>
    std::string atomic_of_any_size(View& view) {
        const std::uint64_t address = address_for("atomic");
        return ModelAtomic{choices_, memory_, what_}.operate(view, address);
    }

    Choices& choices_;
    ModelMemory memory_;
    MapView view_;
    GuestMemory handle_;
    MapReaderOfMap reader_;
    std::string what_;
};

}  // namespace guestmem::testing
