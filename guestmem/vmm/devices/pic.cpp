// SPDX-License-Identifier: Apache-2.0
#include "guestmem/vmm/devices/pic.hpp"

#include <bit>

#include "guestmem/base/check.hpp"

namespace guestmem::vmm {
namespace {

// PIIX4, section 4.2.5: the timer, the keyboard, the cascade, the clock and the coprocessor are always edges.
constexpr std::uint8_t master_elcr_bits = 0xf8;
constexpr std::uint8_t slave_elcr_bits = 0xde;

std::uint8_t bit(unsigned input) { return static_cast<std::uint8_t>(1U << input); }
std::uint8_t without(unsigned bits, unsigned cleared) { return static_cast<std::uint8_t>(bits & ~cleared); }

}  // namespace

PicChip::PicChip(Role role) : role_(role) {}

std::uint8_t PicChip::requests() const {
    unsigned levels = elcr_;
    // The second chip's output goes down between two interrupts, faster than anybody could tell: a level.
    if (role_ == Role::master) levels |= bit(Pic::cascade_input);
    return static_cast<std::uint8_t>((lines_ & levels) | (latches_ & ~levels));
}

void PicChip::set_input(unsigned input, bool is_up) {
    const bool was_up = (lines_ & bit(input)) != 0;
    if (is_up == was_up) return;
    lines_ ^= bit(input);
    if (is_up && (elcr_ & bit(input)) == 0) latches_ |= bit(input);
}

unsigned PicChip::rank_of_first(std::uint8_t inputs) const {
    return static_cast<unsigned>(std::countr_zero(std::rotr(inputs, first_)));
}

std::optional<unsigned> PicChip::find_request() const {
    if (expects_ != Expects::nothing) return std::nullopt;
    const unsigned request = rank_of_first(without(requests(), mask_));
    if (request == 8) return std::nullopt;
    // "Special mask mode": what is masked holds nothing back though it is in service.
    const std::uint8_t blocking = is_special_mask_ ? without(in_service_, mask_) : in_service_;
    const unsigned limit = rank_of_first(blocking);
    // "The special fully nested mode": the second chip is not locked out by an interrupt of its own.
    const unsigned input = (request + first_) & 7U;
    const bool may_nest = is_special_nested_ && role_ == Role::master && input == Pic::cascade_input;
    if (may_nest ? request > limit : request >= limit) return std::nullopt;
    return input;
}

unsigned PicChip::acknowledge() {
    const std::optional<unsigned> input = find_request();
    // "Edge and level triggered modes": the default IR7, and no bit is set.
    if (!input) return 7;
    latches_ = without(latches_, bit(*input));
    if (!is_auto_eoi_) {
        in_service_ |= bit(*input);
    } else if (is_rotating_auto_eoi_) {
        make_lowest(*input);
    }
    return *input;
}

std::uint8_t PicChip::vector_of(unsigned input) const { return static_cast<std::uint8_t>(base_ | input); }

void PicChip::make_lowest(unsigned input) { first_ = static_cast<std::uint8_t>((input + 1) & 7U); }

std::uint8_t PicChip::read(bool is_odd) {
    if (is_polled_) {
        // "Poll command": the next read, at either port, is the acknowledge.
        is_polled_ = false;
        if (!find_request()) return 0;
        return static_cast<std::uint8_t>(0x80U | acknowledge());
    }
    if (is_odd) return mask_;
    return is_reading_isr_ ? in_service_ : requests();
}

void PicChip::write(bool is_odd, std::uint8_t value) {
    if (!is_odd) {
        if ((value & 0x10U) != 0) return begin_initialization(value);
        return (value & 0x08U) != 0 ? write_ocw3(value) : write_ocw2(value);
    }
    switch (expects_) {
        case Expects::icw2: base_ = value & 0xf8U; return expect_after_icw2();
        case Expects::icw3: expects_ = has_icw4_ ? Expects::icw4 : Expects::nothing; return;
        case Expects::icw4:
            is_auto_eoi_ = (value & 0x02U) != 0;
            is_special_nested_ = (value & 0x10U) != 0;
            expects_ = Expects::nothing;
            return;
        case Expects::icw1:
        case Expects::nothing: mask_ = value; return;
    }
}

void PicChip::begin_initialization(std::uint8_t icw1) {
    // "Initialization command word 1": (a) to (f).
    latches_ = 0;
    in_service_ = 0;
    mask_ = 0;
    first_ = 0;
    is_special_mask_ = false;
    is_reading_isr_ = false;
    is_polled_ = false;
    is_auto_eoi_ = false;
    is_rotating_auto_eoi_ = false;
    is_special_nested_ = false;
    has_icw3_ = (icw1 & 0x02U) == 0;
    has_icw4_ = (icw1 & 0x01U) != 0;
    expects_ = Expects::icw2;
}

void PicChip::expect_after_icw2() {
    if (has_icw3_) {
        expects_ = Expects::icw3;
    } else {
        expects_ = has_icw4_ ? Expects::icw4 : Expects::nothing;
    }
}

void PicChip::end_first_in_service(bool is_rotating) {
    // In special mask mode a masked one is not ended by a command that does not name it.
    const std::uint8_t candidates = is_special_mask_ ? without(in_service_, mask_) : in_service_;
    if (candidates == 0) return;
    const unsigned input = (rank_of_first(candidates) + first_) & 7U;
    in_service_ = without(in_service_, bit(input));
    if (is_rotating) make_lowest(input);
}

void PicChip::write_ocw2(std::uint8_t value) {
    const unsigned input = value & 7U;
    switch (value >> 5U) {  // R, SL, EOI
        case 0: is_rotating_auto_eoi_ = false; break;
        case 1: end_first_in_service(false); break;
        case 3: in_service_ = without(in_service_, bit(input)); break;
        case 4: is_rotating_auto_eoi_ = true; break;
        case 5: end_first_in_service(true); break;
        case 6: make_lowest(input); break;
        case 7:
            in_service_ = without(in_service_, bit(input));
            make_lowest(input);
            break;
        default: break;  // 2: no operation
    }
}

void PicChip::write_ocw3(std::uint8_t value) {
    if ((value & 0x40U) != 0) is_special_mask_ = (value & 0x20U) != 0;
    if ((value & 0x02U) != 0) is_reading_isr_ = (value & 0x01U) != 0;
    is_polled_ = (value & 0x04U) != 0;
}

void PicChip::write_elcr(std::uint8_t value) {
    elcr_ = value & (role_ == Role::master ? master_elcr_bits : slave_elcr_bits);
    latches_ = without(latches_, elcr_);
}

void Pic::Input::belong_to(Pic& pair, unsigned number) {
    pair_ = &pair;
    number_ = number;
}

void Pic::Input::set(bool is_up) { pair_->set_input(number_, is_up); }

Pic::Pic(InterruptLine& intr)
    : intr_(intr),
      master_ports_(
          2, [this](std::uint64_t offset) { return read_port(master_, offset); },
          [this](std::uint64_t offset, std::uint8_t value) { write_port(master_, offset, value); }),
      slave_ports_(
          2, [this](std::uint64_t offset) { return read_port(slave_, offset); },
          [this](std::uint64_t offset, std::uint8_t value) { write_port(slave_, offset, value); }),
      elcr_ports_(
          2,
          [this](std::uint64_t offset) {
              const std::scoped_lock lock{mutex_};
              return offset == 0 ? master_.elcr() : slave_.elcr();
          },
          [this](std::uint64_t offset, std::uint8_t value) {
              const std::scoped_lock lock{mutex_};
              (offset == 0 ? master_ : slave_).write_elcr(value);
              update();
          }) {
    for (unsigned number = 0; number < input_count; ++number) inputs_.at(number).belong_to(*this, number);
}

InterruptLine& Pic::line(unsigned input) {
    GM_CHECK(input < input_count);
    return inputs_.at(input);
}

void Pic::set_input(unsigned number, bool is_up) {
    if (number == cascade_input) return;
    const std::scoped_lock lock{mutex_};
    (number < 8 ? master_ : slave_).set_input(number & 7U, is_up);
    update();
}

std::uint8_t Pic::read_port(PicChip& chip, std::uint64_t offset) {
    const std::scoped_lock lock{mutex_};
    const std::uint8_t value = chip.read(offset != 0);
    update();  // a polled read is an acknowledge
    return value;
}

void Pic::write_port(PicChip& chip, std::uint64_t offset, std::uint8_t value) {
    const std::scoped_lock lock{mutex_};
    chip.write(offset != 0, value);
    update();
}

void Pic::update() {
    master_.set_input(cascade_input, slave_.find_request().has_value());
    intr_.set(master_.find_request().has_value());
}

bool Pic::is_requesting() const {
    const std::scoped_lock lock{mutex_};
    return master_.find_request().has_value();
}

std::uint8_t Pic::acknowledge() {
    const std::scoped_lock lock{mutex_};
    const bool is_real = master_.find_request().has_value();
    const unsigned input = master_.acknowledge();
    std::uint8_t vector = master_.vector_of(input);
    if (is_real && input == cascade_input) vector = slave_.vector_of(slave_.acknowledge());
    update();
    return vector;
}

}  // namespace guestmem::vmm
