// SPDX-License-Identifier: Apache-2.0
#include "guestmem/device/pci/msi.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <bit>
#include <utility>

#include "guestmem/base/endian.hpp"

namespace guestmem::pci {
namespace {

// Figure 6-9: a 64-bit address and mask bits.
constexpr std::size_t control_offset = 0x02;
constexpr std::size_t address_offset = 0x04;
constexpr std::size_t data_offset = 0x0c;
constexpr std::size_t mask_offset = 0x10;
constexpr std::size_t pending_offset = 0x14;
constexpr std::size_t image_bytes = 0x18;

// Message control (6.8.1.3).
constexpr std::uint16_t control_enable = 1 << 0;
constexpr unsigned control_capable_shift = 1;
constexpr unsigned control_messages_shift = 4;
constexpr std::uint16_t control_messages = 7 << control_messages_shift;
constexpr std::uint16_t control_64bit = 1 << 7;
constexpr std::uint16_t control_maskable = 1 << 8;

template <typename T>
T field(std::span<const std::byte> bytes, std::size_t offset) {
    return load_little<T>(std::span<const std::byte, sizeof(T)>{bytes.data() + offset, sizeof(T)});
}

template <typename T>
void set_field(std::span<std::byte> bytes, std::size_t offset, T value) {
    store_little<T>(std::span<std::byte, sizeof(T)>{bytes.data() + offset, sizeof(T)}, value);
}

std::uint32_t bits_of(std::size_t count) {
    return static_cast<std::uint32_t>((std::uint64_t{1} << count) - 1);
}

}  // namespace

Msi::Msi(Options options)
    : connector_(std::move(options.connector)),
      report_(std::move(options.report)),
      vectors_(options.count_vectors) {}

Result<std::shared_ptr<Msi>> Msi::create(Options options) {
    if (!std::has_single_bit(options.count_vectors) || options.count_vectors > max_vectors) {
        return Error{Errc::invalid_argument,
                     fmt::format("MSI with {} messages: it has 1, 2, 4, 8, 16 or 32", options.count_vectors)};
    }
    if (!options.connector) return Error{Errc::invalid_argument, "MSI without a machine to send it to"};
    return std::shared_ptr<Msi>{new Msi{std::move(options)}};
}

Result<void> Msi::check(std::size_t vector) const {
    if (vector < vectors_.size()) return {};
    return Error{Errc::out_of_range,
                 fmt::format("MSI vector {}: the device has {}", vector, vectors_.size())};
}

Result<void> Msi::give(std::size_t vector, FdView eventfd) {
    GM_TRY(check(vector));
    const std::scoped_lock lock{mutex_};
    return vectors_[vector].give(*connector_, eventfd);
}

void Msi::take_back(std::size_t vector) {
    const std::scoped_lock lock{mutex_};
    if (vector < vectors_.size()) vectors_[vector].take_back();
}

Result<void> Msi::add(std::size_t vector, FdView eventfd) {
    GM_TRY(check(vector));
    const std::scoped_lock lock{mutex_};
    return vectors_[vector].add(eventfd);
}

void Msi::remove(std::size_t vector, FdView eventfd) {
    const std::scoped_lock lock{mutex_};
    if (vector < vectors_.size()) vectors_[vector].remove(eventfd);
}

CapabilityImage Msi::image() const {
    CapabilityImage image{.id = capability_id,
                          .bytes = std::vector<std::byte>(image_bytes),
                          .writable = std::vector<std::byte>(image_bytes)};
    const auto capable = static_cast<unsigned>(std::countr_zero(vectors_.size()));
    set_field(
        image.bytes, control_offset,
        static_cast<std::uint16_t>(control_64bit | control_maskable | capable << control_capable_shift));
    set_field(image.writable, control_offset, static_cast<std::uint16_t>(control_enable | control_messages));
    set_field(image.writable, address_offset, ~std::uint64_t{3});
    set_field(image.writable, data_offset, std::uint16_t{0xffff});
    set_field(image.writable, mask_offset, bits_of(vectors_.size()));
    return image;
}

void Msi::programmed(std::span<const std::byte> bytes) {
    const auto control = field<std::uint16_t>(bytes, control_offset);
    const auto address = field<std::uint64_t>(bytes, address_offset);
    const auto data = field<std::uint16_t>(bytes, data_offset);
    const auto masked = field<std::uint32_t>(bytes, mask_offset);
    const std::size_t asked = std::size_t{1} << ((control & control_messages) >> control_messages_shift);
    const auto last = static_cast<std::uint32_t>(std::min(asked, vectors_.size()) - 1);

    const std::scoped_lock lock{mutex_};
    is_enabled_ = (control & control_enable) != 0;
    const auto message_of = [&](std::size_t i) -> std::optional<MsiMessage> {
        // The low bits of the data are the number of the message (6.8.1.6).
        const std::uint32_t number = static_cast<std::uint32_t>(i) & last;
        if (!is_enabled_ || (masked >> number & 1) != 0) return std::nullopt;
        return MsiMessage{.address = address, .data = (data & ~last) | number};
    };
    for (std::size_t i = 0; i < vectors_.size(); ++i) vectors_[i].expect(message_of(i));
    for (std::size_t i = 0; i < vectors_.size(); ++i)
        if (const auto done = vectors_[i].want(message_of(i)); !done) report_.say(done.error());
}

void Msi::refresh(std::span<std::byte> bytes) {
    const std::scoped_lock lock{mutex_};
    std::uint32_t pending = 0;
    for (std::size_t i = 0; i < vectors_.size(); ++i)
        if (vectors_[i].is_pending()) pending |= std::uint32_t{1} << i;
    set_field(bytes, pending_offset, pending);
}

}  // namespace guestmem::pci
