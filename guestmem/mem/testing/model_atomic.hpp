// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <array>
#include <atomic>
#include <bit>
#include <cstddef>
#include <cstdint>
#include <string>
#include <type_traits>

#include "guestmem/base/check.hpp"
#include "guestmem/mem/testing/choices.hpp"
#include "guestmem/mem/testing/memory_model.hpp"
#include "guestmem/mem/testing/model_memory.hpp"

/// The part of a ModelSession that does atomic operations, of all sizes and with all memory orders.
///
/// Contract: operate() does one operation on `view` at `address` and on the model, and says in words what was wrong.
/// Threads: one at a time.

namespace guestmem::testing {

class ModelAtomic {
    using Refused = MemoryModel::Refused;

public:
    ModelAtomic(Choices& choices, ModelMemory& memory, std::string& what)
        : choices_(choices), memory_(memory), what_(what) {}

    template <typename View>
    std::string operate(View& view, std::uint64_t address) {
        switch (choices_.below(8)) {
            case 0: return operate_on<std::uint8_t>(view, address);
            case 1: return operate_on<std::int8_t>(view, address);
            case 2: return operate_on<std::uint16_t>(view, address);
            case 3: return operate_on<std::int16_t>(view, address);
            case 4: return operate_on<std::uint32_t>(view, address);
            case 5: return operate_on<std::int32_t>(view, address);
            case 6: return operate_on<std::uint64_t>(view, address);
            default: return operate_on<std::int64_t>(view, address);
        }
    }

private:
    template <typename T, typename View>
    std::string operate_on(View& view, std::uint64_t address) {
        // One in two aligned at least: the rest is refused for that alone.
        if (choices_.one_in(2)) address -= address % sizeof(T);
        const GuestAddress at{address};
        std::array<std::byte, sizeof(T)> bytes{};
        choices_.fill(bytes);
        const T operand = std::bit_cast<T>(bytes);
        const T old = value_at<T>(address);
        // Unsigned arithmetic wraps; so do atomics of signed integers.
        const auto sum = static_cast<T>(static_cast<std::make_unsigned_t<T>>(old) +
                                        static_cast<std::make_unsigned_t<T>>(operand));
        const std::uint64_t kind = choices_.below(7);
        what_ += ", kind " + std::to_string(kind) + ", size " + std::to_string(sizeof(T));
        const auto check = [&](const AccessResult<T>& result, T desired) {
            return modified(address, result, old, desired);
        };
        switch (kind) {
            case 0: {
                const auto result = view.template load<T>(at, load_order());
                const Refused refused = memory_.model().check_atomic(address, sizeof(T), Access::read);
                if (auto wrong = difference(refused, result); !wrong.empty()) return wrong;
                return refused || *result == old ? "" : "another value was loaded";
            }
            case 1: {
                const Refused refused = memory_.model().check_atomic(address, sizeof(T), Access::write);
                if (!refused) put(address, operand);
                return difference(refused, view.template store<T>(at, operand, store_order()));
            }
            case 2: return check(view.template exchange<T>(at, operand, order()), operand);
            case 3: return check(view.template fetch_add<T>(at, operand, order()), sum);
            case 4: {
                const auto result = view.template fetch_or<T>(at, operand, order());
                return check(result, static_cast<T>(old | operand));
            }
            case 5: {
                const auto result = view.template fetch_and<T>(at, operand, order());
                return check(result, static_cast<T>(old & operand));
            }
            default: return compare_exchange<T>(view, address, operand);
        }
    }

    template <typename T>
    std::string modified(std::uint64_t address, const AccessResult<T>& result, T old, T desired) {
        const Refused refused = memory_.model().check_atomic(address, sizeof(T), Access::write);
        if (!refused) put(address, desired);
        if (auto wrong = difference(refused, result); !wrong.empty()) return wrong;
        return refused || *result == old ? "" : "another value was there";
    }
    template <typename T, typename View>
    std::string compare_exchange(View& view, std::uint64_t address, T desired) {
        const T old = value_at<T>(address);
        const T expected = choices_.one_in(2) ? old : desired;
        const Refused refused = memory_.model().check_atomic(address, sizeof(T), Access::write);
        if (!refused && expected == old) put(address, desired);
        const auto result =
            view.template compare_exchange<T>(GuestAddress{address}, expected, desired, order());
        if (auto wrong = difference(refused, result); !wrong.empty()) return wrong;
        if (refused) return {};
        if (result->is_exchanged != (expected == old)) return "exchanged, or not";
        return result->previous == old ? "" : "another value was there";
    }

    /// 0 where nothing can be read.
    template <typename T>
    T value_at(std::uint64_t address) {
        std::array<std::byte, sizeof(T)> bytes{};
        if (memory_.model().read(address, bytes)) return T{};
        return std::bit_cast<T>(bytes);
    }
    template <typename T>
    void put(std::uint64_t address, T value) {
        const auto bytes = std::bit_cast<std::array<std::byte, sizeof(T)>>(value);
        GM_CHECK(!memory_.model().write(address, bytes));
    }
    std::memory_order load_order() {
        constexpr std::array orders{std::memory_order_relaxed, std::memory_order_acquire,
                                    std::memory_order_seq_cst};
        return orders[choices_.below(orders.size())];
    }
    std::memory_order store_order() {
        constexpr std::array orders{std::memory_order_relaxed, std::memory_order_release,
                                    std::memory_order_seq_cst};
        return orders[choices_.below(orders.size())];
    }
    std::memory_order order() {
        constexpr std::array orders{std::memory_order_relaxed, std::memory_order_acquire,
                                    std::memory_order_release, std::memory_order_acq_rel,
                                    std::memory_order_seq_cst};
        return orders[choices_.below(orders.size())];
    }

    Choices& choices_;
    ModelMemory& memory_;
    std::string& what_;
};

}  // namespace guestmem::testing
