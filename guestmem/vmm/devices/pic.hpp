// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <array>
#include <cstdint>
#include <mutex>
#include <optional>

#include "guestmem/device/interrupt.hpp"
#include "guestmem/vmm/devices/byte_window.hpp"

/// The pair of interrupt controllers of a PC: two 8259A, the second one on input 2 of the first.
///
/// Concepts: Intel's data sheet 8259A (order number 231468), with what the PC's chip sets made of it (82371AB PIIX4
/// data sheet, section 4.2.5): the bit LTIM of ICW1 has no effect, edge or level is chosen per input by the ELCR
/// registers at 0x4d0 and 0x4d1. Inputs 0 to 15 are those of the PC. INTR is a line that is up while the first chip
/// wants an interrupt; a processor that takes it calls acknowledge(), the INTA cycles, and gets the vector.
/// Contract: initialization (ICW1 to ICW4), masks, EOI of all kinds, automatic EOI, rotation, special mask mode,
/// special fully nested mode, poll, and reading IRR, ISR and IMR are as in the data sheet. A request that went away
/// before it was acknowledged gives the spurious vector 7 of its chip without a bit in its ISR. A chip asks for nothing
/// until it was initialized, and while it is being so: what it has at power-on is undefined in the data sheet. An edge
/// is latched until it is acknowledged, though the line may be down by then: a device's pulse (interrupt.hpp) counts.
/// Input 2 follows the second chip's output, whatever is set from outside.
/// Threads: any. INTR is set with the mutex held: it must not call back.
/// Known holes: MCS-80 mode, buffered mode and the cascade bytes of ICW3 have no effect: the wiring is a PC's.

namespace guestmem::vmm {

/// One 8259A without its bus: what the pair is made of.
class PicChip {
public:
    enum class Role : std::uint8_t { master, slave };
    explicit PicChip(Role role);

    void set_input(unsigned input, bool is_up);
    /// The input that it would interrupt for.
    [[nodiscard]] std::optional<unsigned> find_request() const;
    /// The INTA cycles: gives the input, 7 when there is no request any more.
    unsigned acknowledge();
    [[nodiscard]] std::uint8_t vector_of(unsigned input) const;

    std::uint8_t read(bool is_odd);
    void write(bool is_odd, std::uint8_t value);
    [[nodiscard]] std::uint8_t elcr() const { return elcr_; }
    void write_elcr(std::uint8_t value);

private:
    enum class Expects : std::uint8_t { icw1, icw2, icw3, icw4, nothing };

    [[nodiscard]] std::uint8_t requests() const;
    /// 0 is the first in the present order, 8 is none.
    [[nodiscard]] unsigned rank_of_first(std::uint8_t inputs) const;
    void begin_initialization(std::uint8_t icw1);
    void expect_after_icw2();
    void write_ocw2(std::uint8_t value);
    void write_ocw3(std::uint8_t value);
    void end_first_in_service(bool is_rotating);
    void make_lowest(unsigned input);

    Role role_;
    std::uint8_t lines_ = 0;
    std::uint8_t latches_ = 0;  ///< edges that were seen and not acknowledged
    std::uint8_t in_service_ = 0;
    std::uint8_t mask_ = 0;
    std::uint8_t elcr_ = 0;
    std::uint8_t base_ = 0;
    std::uint8_t first_ = 0;  ///< the input of the highest priority
    Expects expects_ = Expects::icw1;
    bool has_icw3_ = false;
    bool has_icw4_ = false;
    bool is_auto_eoi_ = false;
    bool is_rotating_auto_eoi_ = false;
    bool is_special_mask_ = false;
    bool is_special_nested_ = false;
    bool is_polled_ = false;
    bool is_reading_isr_ = false;
};

class Pic {
public:
    static constexpr unsigned input_count = 16;
    /// Input 2 of the first chip is the second chip.
    static constexpr unsigned cascade_input = 2;

    /// The line outlives the pair.
    explicit Pic(InterruptLine& intr);
    Pic(const Pic&) = delete;
    Pic& operator=(const Pic&) = delete;

    /// An input of ours, below input_count.
    [[nodiscard]] InterruptLine& line(unsigned input);
    [[nodiscard]] bool is_requesting() const;
    /// Takes the interrupt of the highest priority and gives its vector, or a spurious one.
    std::uint8_t acknowledge();

    [[nodiscard]] IoDevice& master_ports() { return master_ports_; }  ///< 2 ports: 0x20
    [[nodiscard]] IoDevice& slave_ports() { return slave_ports_; }    ///< 2 ports: 0xa0
    [[nodiscard]] IoDevice& elcr_ports() { return elcr_ports_; }      ///< 2 ports: 0x4d0

private:
    class Input final : public InterruptLine {
    public:
        void belong_to(Pic& pair, unsigned number);
        void set(bool is_up) override;

    private:
        Pic* pair_ = nullptr;
        unsigned number_ = 0;
    };

    void set_input(unsigned number, bool is_up);
    std::uint8_t read_port(PicChip& chip, std::uint64_t offset);
    void write_port(PicChip& chip, std::uint64_t offset, std::uint8_t value);
    void update();

    InterruptLine& intr_;
    mutable std::mutex mutex_;
    PicChip master_{PicChip::Role::master};
    PicChip slave_{PicChip::Role::slave};
    std::array<Input, input_count> inputs_;
    ByteWindow master_ports_;
    ByteWindow slave_ports_;
    ByteWindow elcr_ports_;
};

}  // namespace guestmem::vmm
