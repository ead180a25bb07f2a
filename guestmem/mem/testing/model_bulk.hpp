// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include "guestmem/mem/pointer_guard.hpp"
#include "guestmem/mem/scatter_list.hpp"
#include "guestmem/mem/testing/choices.hpp"
#include "guestmem/mem/testing/memory_model.hpp"
#include "guestmem/mem/testing/model_memory.hpp"
#include "guestmem/mem/transfer.hpp"

/// The part of a ModelSession that moves many bytes: raw pointers, scatter lists, streams.
///
/// Contract: operate() does one operation on `view` at `address` and on the model, and says in words what was wrong.
/// Threads: one at a time.

namespace guestmem::testing {

/// A source and a sink of so many bytes, a few at a time.
class ShortStream final : public ByteSource, public ByteSink {
public:
    ShortStream(std::vector<std::byte> bytes, std::size_t at_a_time)
        : bytes_(std::move(bytes)), at_a_time_(at_a_time) {}

    [[nodiscard]] Result<std::size_t> read_some(std::span<std::byte> to) override {
        const std::size_t count = std::min({to.size(), at_a_time_, bytes_.size() - done_});
        std::ranges::copy(std::span{bytes_}.subspan(done_, count), to.begin());
        done_ += count;
        return count;
    }
    /// Takes as many bytes as it was made with, and keeps them in their place.
    [[nodiscard]] Result<std::size_t> write_some(std::span<const std::byte> from) override {
        const std::size_t count = std::min({from.size(), at_a_time_, bytes_.size() - done_});
        std::ranges::copy(from.first(count), bytes_.begin() + static_cast<std::ptrdiff_t>(done_));
        done_ += count;
        return count;
    }
    /// The bytes that were taken from it, or given to it.
    [[nodiscard]] std::span<const std::byte> done() const { return std::span{bytes_}.first(done_); }

private:
    std::vector<std::byte> bytes_;
    std::size_t at_a_time_;
    std::size_t done_ = 0;
};

class ModelBulk {
    using Refused = MemoryModel::Refused;

public:
    ModelBulk(Choices& choices, ModelMemory& memory, std::string& what)
        : choices_(choices), memory_(memory), what_(what) {}

    template <typename View>
    std::string operate(View& view, std::uint64_t address) {
        const std::size_t count = ModelMemory::any_size(choices_);
        what_ += " of " + std::to_string(count);
        switch (choices_.below(4)) {
            case 0: return pointer<Access::read>(view, address, count);
            case 1: return pointer<Access::write>(view, address, count);
            case 2: return scatter(view, address, count);
            default: return stream(view, address, count);
        }
    }

private:
    template <Access access, typename View>
    std::string pointer(View& view, std::uint64_t address, std::size_t count) {
        what_ += ", pointer";
        MemoryModel& model = memory_.model();
        Refused refused = model.check(address, count, access);
        // A pointer has to point somewhere, also to no bytes.
        if (const auto reason = model.reason_at(address, access); !refused && reason != AccessReason::none)
            refused = AccessError{reason, access, address, 0};
        if (!refused) {
            const std::uint64_t room = model.count_in_region(address, access);
            if (room < count) refused = AccessError{AccessReason::crosses_border, access, address + room, 0};
        }
        auto guard = PointerGuard<access>::create(view, GuestAddress{address}, count, "model");
        if (auto wrong = difference(refused, guard); !wrong.empty() || refused) return wrong;
        if (guard->bytes().size() != count) return "other bytes";
        if constexpr (access == Access::write) {
            const bool is_told = choices_.one_in(2);
            const std::uint64_t first = is_told ? choices_.below(count + 1) : 0;
            const std::uint64_t written = is_told ? choices_.below(count - first + 1) : count;
            for (std::uint64_t i = first; i < first + written; ++i) {
                guard->bytes()[i] = std::byte{0x77};
                model.put(address + i, std::byte{0x77});
            }
            if (is_told) guard->mark_written(first, written);
            return {};
        } else {
            std::vector<std::byte> expected(count);
            static_cast<void>(model.read(address, expected));
            return std::ranges::equal(guard->bytes(), expected) ? "" : "other bytes";
        }
    }

    template <typename View>
    std::string scatter(View& view, std::uint64_t address, std::size_t count) {
        what_ += ", scatter list";
        ScatterList list{Access::write, "model"};
        std::vector<std::uint64_t> addresses;  // of each byte of the list
        for (std::uint64_t turn = 1 + choices_.below(3); turn > 0; --turn) {
            const Refused refused = memory_.model().check(address, count, Access::write);
            const auto result = list.add(view, GuestAddress{address}, count);
            if (auto wrong = difference(refused, result); !wrong.empty()) return wrong;
            for (std::size_t i = 0; !refused && i < count; ++i) addresses.push_back(address + i);
            address = memory_.any_address(choices_);
            count = ModelMemory::any_size(choices_);
        }
        if (list.size_bytes() != addresses.size()) return "another size of the list";
        const bool is_told = choices_.one_in(2);
        const std::size_t written = is_told ? choices_.below(addresses.size() + 1) : addresses.size();
        std::size_t i = 0;
        for (const IoSlice& slice : list.slices()) {
            for (std::byte& byte : std::span{slice.data, slice.size_bytes}) {
                if (i == written) break;
                byte = static_cast<std::byte>(i);
                memory_.model().put(addresses[i], byte);
                ++i;
            }
        }
        if (i != written) return "fewer bytes in the list than it says";
        if (is_told) list.mark_written(written);
        return {};
    }

    template <typename View>
    std::string stream(View& view, std::uint64_t address, std::size_t count) {
        what_ += ", stream";
        const bool is_read = choices_.one_in(2);
        const Access access = is_read ? Access::write : Access::read;
        // Now and then the stream ends before the range does.
        std::vector<std::byte> bytes(choices_.one_in(4) ? choices_.below(count + 1) : count);
        choices_.fill(std::span{bytes}.first(std::min<std::size_t>(bytes.size(), 32)));
        MemoryModel& model = memory_.model();
        const Refused refused = model.check(address, count, access);
        const bool is_overflow = refused && refused->reason() == AccessReason::overflow;
        const std::uint64_t room = is_overflow ? 0 : refused ? refused->address() - address : count;
        const std::size_t expected = std::min<std::size_t>(room, bytes.size());
        ShortStream stream{bytes, 1 + choices_.below(7)};
        const Transfer done =
            is_read ? read_from(view, GuestAddress{address}, count, static_cast<ByteSource&>(stream))
                    : write_to(view, GuestAddress{address}, count, static_cast<ByteSink&>(stream));
        if (done.count_done != expected)
            return std::to_string(done.count_done) + " bytes, not " + std::to_string(expected);
        if (done.status.has_value() != (expected == count)) return "success, or not";
        if (stream.done().size() != expected) return "other bytes were taken from the stream";
        if (is_read) {
            for (std::size_t i = 0; i < expected; ++i) model.put(address + i, bytes[i]);
            return {};
        }
        std::vector<std::byte> there(expected);
        static_cast<void>(model.read(address, there));
        return std::ranges::equal(stream.done(), there) ? "" : "other bytes were given to the stream";
    }

    Choices& choices_;
    ModelMemory& memory_;
    std::string& what_;
};

}  // namespace guestmem::testing
