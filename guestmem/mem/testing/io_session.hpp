// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <algorithm>
#include <array>
#include <bit>
#include <compare>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <string>
#include <string_view>
#include <vector>

#include "guestmem/mem/pointer_guard.hpp"
#include "guestmem/mem/scatter_list.hpp"
#include "guestmem/mem/testing/choices.hpp"
#include "guestmem/mem/testing/io_model.hpp"
#include "guestmem/mem/translated_memory.hpp"

/// Random operations on an IoModel, each done by a TranslatedMemory and by the model, and compared.
///
/// Contract: step() does one operation and says in words what was wrong; nothing when all was right.
/// Threads: one at a time.
/// Example:
///     IoSession session{choices};
///     for (int i = 0; i < 1000; ++i) EXPECT_EQ(session.step(), "");

namespace guestmem::testing {

class IoSession {
    using Refused = IoModel::Refused;

public:
    explicit IoSession(Choices& choices) : choices_(choices), model_(choices) {}

    [[nodiscard]] std::string step() {
        if (choices_.one_in(8)) model_.change_pages();
        if (choices_.one_in(8)) model_.publish_map();
        what_.clear();
        std::string wrong = operate(model_.handle());
        if (wrong.empty()) wrong = model_.guest().differences();
        if (wrong.empty() && choices_.one_in(8)) wrong = model_.harvest();
        return wrong.empty() ? "" : what_ + ": " + wrong + "\nin the layout\n" + model_.guest().description();
    }

private:
    std::uint64_t address_for(std::string_view what) {
        std::uint64_t offset = choices_.below(io_bytes);
        // Often near the last one: what a handle remembers is tried again, with another kind of access.
        if (choices_.one_in(2)) offset = last_offset_ + choices_.below(33) - 16;
        if (choices_.one_in(4)) offset = offset / io_page_bytes * io_page_bytes - choices_.below(8);
        if (choices_.one_in(16)) offset = io_bytes - choices_.below(24);
        last_offset_ = offset;
        what_ = std::string{what} + " at " + std::to_string(model_.origin() + offset);
        return model_.origin() + offset;
    }
    std::size_t size() {
        // At most what copy() takes at once: mappings may show the same bytes twice.
        const std::size_t size = choices_.below(choices_.one_in(4) ? 1500 : 40);
        what_ += " of " + std::to_string(size);
        return size;
    }

    std::string operate(TranslatedMemory& memory) {
        switch (choices_.below(12)) {
            case 0: return read_bytes(memory);
            case 1: return write_bytes(memory);
            case 2: return some_bytes(memory);
            case 3: return fill(memory);
            case 4: return copy(memory);
            case 5: return compare(memory);
            case 6: return object<std::uint16_t>(memory);
            case 7: return object<std::uint64_t>(memory);
            case 8: return scatter_list(memory);
            case 9: return pointer(memory);
            case 10: return atomic<std::uint32_t>(memory);
            default: return atomic<std::uint64_t>(memory);
        }
    }
    std::string read_bytes(TranslatedMemory& memory) {
        const std::uint64_t address = address_for("read_bytes");
        std::vector<std::byte> found(size());
        Refused refused = model_.check(address, found.size(), Access::read);
        if (refused && refused->reason() != AccessReason::overflow)
            refused = refused->after(refused->address() - address);
        const auto result = memory.read_bytes(IoAddress{address}, found);
        if (auto wrong = difference(refused, result); !wrong.empty()) return wrong;
        if (refused) found.resize(refused->count_done());
        return found == model_.bytes_at(address, found.size()) ? "" : "other bytes were read";
    }
    std::string write_bytes(TranslatedMemory& memory) {
        const std::uint64_t address = address_for("write_bytes");
        std::vector<std::byte> from(size());
        choices_.fill(from);
        const Refused refused = model_.check(address, from.size(), Access::write);
        if (!refused) model_.put_all(address, from);
        return difference(refused, memory.write_bytes(IoAddress{address}, from));
    }
    std::string some_bytes(TranslatedMemory& memory) {
        const bool is_read = choices_.one_in(2);
        const std::uint64_t address = address_for(is_read ? "read_some" : "write_some");
        std::vector<std::byte> bytes(size());
        choices_.fill(bytes);
        const Access access = is_read ? Access::read : Access::write;
        std::size_t count = 0;
        while (count < bytes.size() && !model_.check(address, count + 1, access)) ++count;
        const Refused refused = count == 0 && !bytes.empty() ? model_.check(address, 1, access) : Refused{};
        if (!is_read) model_.put_all(address, std::span{bytes}.first(count));
        const auto result = is_read ? memory.read_some(IoAddress{address}, bytes)
                                    : memory.write_some(IoAddress{address}, bytes);
        if (auto wrong = difference(refused, result); !wrong.empty()) return wrong;
        if (refused) return {};
        if (*result != count) return std::to_string(*result) + " bytes, not " + std::to_string(count);
        bytes.resize(count);
        return !is_read || bytes == model_.bytes_at(address, count) ? "" : "other bytes were read";
    }
    std::string fill(TranslatedMemory& memory) {
        const std::uint64_t address = address_for("fill");
        const std::size_t count = size();
        const auto value = static_cast<std::byte>(choices_.below(256));
        const Refused refused = model_.check(address, count, Access::write);
        if (!refused) model_.put_all(address, std::vector(count, value));
        return difference(refused, memory.fill(IoAddress{address}, value, count));
    }
    std::string copy(TranslatedMemory& memory) {
        const std::uint64_t from = address_for("copy from");
        const std::uint64_t to = choices_.one_in(2) ? from + choices_.below(81) - 40 : address_for("copy to");
        const std::size_t count = size();
        Refused refused = model_.check(from, count, Access::read);
        if (!refused) refused = model_.check(to, count, Access::write);
        if (!refused) model_.put_all(to, model_.bytes_at(from, count));
        return difference(refused, memory.copy(IoAddress{to}, IoAddress{from}, count));
    }
    std::string compare(TranslatedMemory& memory) {
        const std::uint64_t address = address_for("compare");
        const std::size_t count = size() % 500;
        const Refused refused = model_.check(address, count, Access::read);
        std::vector<std::byte> other(count);
        if (!refused) other = model_.bytes_at(address, count);
        const auto result = memory.compare(IoAddress{address}, other);
        if (auto wrong = difference(refused, result); !wrong.empty()) return wrong;
        return refused || *result == std::strong_ordering::equal ? "" : "not equal";
    }
    template <typename T>
    std::string object(TranslatedMemory& memory) {
        const bool is_read = choices_.one_in(2);
        const std::uint64_t address = address_for(is_read ? "read<T>" : "write<T>");
        const Access access = is_read ? Access::read : Access::write;
        Refused refused = model_.check(address, sizeof(T), access);
        std::array<std::byte, sizeof(T)> bytes{};
        if (is_read) {
            if (refused && refused->reason() != AccessReason::overflow)
                refused = refused->after(refused->address() - address);
            const auto result = memory.read<T>(IoAddress{address});
            if (auto wrong = difference(refused, result); !wrong.empty() || refused) return wrong;
            std::ranges::copy(model_.bytes_at(address, sizeof(T)), bytes.begin());
            return *result == std::bit_cast<T>(bytes) ? "" : "another object was read";
        }
        choices_.fill(bytes);
        if (!refused) model_.put_all(address, bytes);
        return difference(refused, memory.write<T>(IoAddress{address}, std::bit_cast<T>(bytes)));
    }
    std::string scatter_list(TranslatedMemory& memory) {
        const bool is_read = choices_.one_in(2);
        const std::uint64_t address = address_for(is_read ? "a list to read" : "a list to write");
        std::vector<std::byte> bytes(size());
        choices_.fill(bytes);
        const Access access = is_read ? Access::read : Access::write;
        const Refused refused = model_.check(address, bytes.size(), access);
        ScatterList list{access, "model"};
        const auto added = list.add(memory, IoAddress{address}, bytes.size());
        if (auto wrong = difference(refused, added); !wrong.empty()) return wrong;
        if (refused) return list.slices().empty() ? "" : "a list that was refused has pieces";
        if (choices_.one_in(2)) model_.publish_map();
        std::size_t done = 0;
        for (const IoSlice& slice : list.slices()) {
            if (slice.size_bytes > bytes.size() - done) return "the list is too long";
            std::byte* const buffer = bytes.data() + done;
            std::memcpy(is_read ? buffer : slice.data, is_read ? slice.data : buffer, slice.size_bytes);
            done += slice.size_bytes;
        }
        if (done != bytes.size()) return "the list is too short";
        if (is_read) return bytes == model_.bytes_at(address, done) ? "" : "other bytes were read";
        model_.put_all(address, bytes);
        return {};
    }
    /// How much a pointer can reach depends on what the handle remembers; what it reaches has to be right.
    std::string pointer(TranslatedMemory& memory) {
        const std::uint64_t address = address_for("a pointer");
        const std::size_t count = 1 + choices_.below(20);
        const Refused refused = model_.check(address, count, Access::write);
        auto made = WritePointer::create(memory, IoAddress{address}, count, "model");
        const bool is_apart = !made && made.error().reason() == AccessReason::crosses_border;
        if (is_apart && !refused) return {};
        if (!made) return difference(refused, made);
        if (refused) return "there is a pointer to what is refused";
        if (choices_.one_in(2)) model_.publish_map();
        std::vector<std::byte> bytes(count);
        choices_.fill(bytes);
        std::ranges::copy(bytes, made->bytes().begin());
        model_.put_all(address, bytes);
        return {};
    }
    template <typename T>
    std::string atomic(TranslatedMemory& memory) {
        const bool is_read = choices_.one_in(3);
        std::uint64_t address = address_for(is_read ? "load" : "fetch_add");
        if (!choices_.one_in(4)) address -= address % sizeof(T);
        const Refused refused = model_.check_atomic<T>(address, is_read ? Access::read : Access::write);
        std::array<std::byte, sizeof(T)> bytes{};
        if (!refused) std::ranges::copy(model_.bytes_at(address, sizeof(T)), bytes.begin());
        const T old = std::bit_cast<T>(bytes);
        const T operand = static_cast<T>(choices_.any());
        const auto sum = std::bit_cast<std::array<std::byte, sizeof(T)>>(static_cast<T>(old + operand));
        if (!refused && !is_read) model_.put_all(address, sum);
        const auto result =
            is_read ? memory.load<T>(IoAddress{address}) : memory.fetch_add<T>(IoAddress{address}, operand);
        if (auto wrong = difference(refused, result); !wrong.empty()) return wrong;
        return refused || *result == old ? "" : "another value was there";
    }

    Choices& choices_;
    IoModel model_;
    std::uint64_t last_offset_ = 0;
    std::string what_;
};

}  // namespace guestmem::testing
