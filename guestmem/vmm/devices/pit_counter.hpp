// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>
#include <optional>

/// One counter of an 8254, told how many clocks went by.
///
/// Concepts: Intel's data sheet 82C54 (order number 231244): a counting element that goes down with each clock, a count
/// register that it is loaded from, an output latch for reading, a GATE input and an OUT output; modes 0 to 5 of the
/// section "Mode definitions". What is written takes effect at the next clock, as there.
/// Contract: run() does any number of clocks in a bounded number of steps, and the result is that of single clocks.
/// Before a count was written the counter stands still and reads as 0. A count of 1 is illegal in modes 2 and 3: OUT
/// stays up. BCD digits above 9, which the data sheet leaves open, count as their weight, modulo 10,000.
/// Threads: one at a time.

namespace guestmem::vmm {

class PitCounter {
public:
    /// What the bits of a control word say about one counter: its lower six.
    void write_control(std::uint8_t control);
    /// The bytes of a count, in the order that the control word asks for.
    void write_count(std::uint8_t value);
    /// The bytes of a latched status, of a latched count, or of the counting element.
    std::uint8_t read();

    void latch_count();
    void latch_status();
    void set_gate(bool is_up);

    /// That many clocks. True when OUT rose at least once in them.
    bool run(std::uint64_t clocks);
    [[nodiscard]] bool is_out() const { return is_out_; }
    [[nodiscard]] bool is_gate() const { return is_gate_; }
    /// In how many clocks OUT rises next if nothing is written; nothing: never.
    [[nodiscard]] std::optional<std::uint64_t> clocks_to_rise() const;

private:
    enum class Access : std::uint8_t { low = 1, high = 2, both = 3 };

    [[nodiscard]] std::uint32_t modulus() const { return is_bcd_ ? 10'000 : 65'536; }
    [[nodiscard]] std::uint16_t visible_count() const;
    [[nodiscard]] std::uint8_t status() const;
    void take_count(std::uint16_t value);
    [[nodiscard]] bool is_counting() const;
    void load();
    void run_down(std::uint64_t clocks);
    void run_rate(std::uint64_t clocks);
    void run_square(std::uint64_t clocks);
    [[nodiscard]] std::uint32_t clocks_of_half() const;
    void set_out(bool is_up);

    std::uint8_t mode_ = 0;
    Access access_ = Access::both;
    bool is_bcd_ = false;
    bool is_gate_ = true;
    bool is_out_ = true;
    bool has_risen_ = false;
    bool is_null_ = true;           ///< status bit 6: the count register is not in the counting element yet
    bool is_loaded_ = false;        ///< the counting element was loaded since the control word
    bool is_load_pending_ = false;  ///< the next clock loads
    bool is_armed_ = false;         ///< modes 0, 1, 4, 5: the end of the count is still to come
    bool is_second_write_ = false;
    bool is_second_read_ = false;
    bool is_held_ = false;  ///< mode 0: between the two bytes of a count
    std::uint8_t first_byte_ = 0;
    std::uint32_t count_ = 0;         ///< 1 to modulus; 0: none was written
    std::uint32_t element_ = 0;       ///< 0 to modulus
    std::uint32_t loaded_count_ = 0;  ///< what the counting element was loaded from
    std::optional<std::uint16_t> latched_count_;
    std::optional<std::uint8_t> latched_status_;
};

}  // namespace guestmem::vmm
