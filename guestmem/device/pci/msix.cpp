// SPDX-License-Identifier: Apache-2.0
#include "guestmem/device/pci/msix.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <bit>
#include <optional>
#include <utility>

#include "guestmem/base/endian.hpp"

namespace guestmem::pci {
namespace {

// 6.8.2, figure 6-10.
constexpr std::size_t control_offset = 0x02;
constexpr std::size_t table_offset = 0x04;
constexpr std::size_t pending_offset_offset = 0x08;
constexpr std::size_t image_bytes = 0x0c;

constexpr std::uint16_t control_function_mask = 1 << 14;
constexpr std::uint16_t control_enable = 1 << 15;

// An entry of the table (6.8.2.6 to 6.8.2.9), in words of 4 bytes.
constexpr std::size_t word_address_low = 0;
constexpr std::size_t word_address_high = 1;
constexpr std::size_t word_data = 2;
constexpr std::size_t word_control = 3;
constexpr std::uint32_t control_masked = 1;

// Half of a page, where there is room: drivers expect the table and the pending bits in one page.
constexpr std::uint64_t least_pending_offset = 2048;
constexpr std::uint64_t least_bar_bytes = 4096;
constexpr unsigned count_bars = 6;

template <typename T>
void set_field(std::span<std::byte> bytes, std::size_t offset, T value) {
    store_little<T>(std::span<std::byte, sizeof(T)>{bytes.data() + offset, sizeof(T)}, value);
}

}  // namespace

Msix::Msix(Options options)
    : connector_(std::move(options.connector)),
      bar_index_(options.bar_index),
      report_(std::move(options.report)),
      entries_(options.count_vectors) {}

Result<std::shared_ptr<Msix>> Msix::create(Options options) {
    if (options.count_vectors == 0 || options.count_vectors > max_vectors) {
        return Error{Errc::invalid_argument, fmt::format("MSI-X with {} vectors: it has 1 to {}",
                                                         options.count_vectors, max_vectors)};
    }
    if (options.bar_index >= count_bars) {
        return Error{Errc::invalid_argument,
                     fmt::format("MSI-X in BAR{}: there are BAR0 to BAR5", options.bar_index)};
    }
    if (!options.connector) return Error{Errc::invalid_argument, "MSI-X without a machine to send it to"};
    return std::shared_ptr<Msix>{new Msix{std::move(options)}};
}

std::uint64_t Msix::pending_offset() const {
    return std::max<std::uint64_t>(least_pending_offset, entries_.size() * entry_bytes);
}

std::uint64_t Msix::bar_size_bytes() const {
    const std::uint64_t pending_bytes = (entries_.size() + 63) / 64 * 8;  // 6.8.2.10: whole quadwords
    return std::max(least_bar_bytes, std::bit_ceil(pending_offset() + pending_bytes));
}

Result<void> Msix::check(std::size_t vector) const {
    if (vector < entries_.size()) return {};
    return Error{Errc::out_of_range,
                 fmt::format("MSI-X vector {}: the device has {}", vector, entries_.size())};
}

Result<void> Msix::give(std::size_t vector, FdView eventfd) {
    GM_TRY(check(vector));
    const std::scoped_lock lock{mutex_};
    return entries_[vector].vector.give(*connector_, eventfd);
}

void Msix::take_back(std::size_t vector) {
    const std::scoped_lock lock{mutex_};
    if (vector < entries_.size()) entries_[vector].vector.take_back();
}

CapabilityImage Msix::image() const {
    CapabilityImage image{.id = capability_id,
                          .bytes = std::vector<std::byte>(image_bytes),
                          .writable = std::vector<std::byte>(image_bytes)};
    set_field(image.bytes, control_offset, static_cast<std::uint16_t>(entries_.size() - 1));
    set_field(image.bytes, table_offset, static_cast<std::uint32_t>(bar_index_));
    set_field(image.bytes, pending_offset_offset, static_cast<std::uint32_t>(pending_offset() | bar_index_));
    set_field(image.writable, control_offset,
              static_cast<std::uint16_t>(control_function_mask | control_enable));
    return image;
}

void Msix::programmed(std::span<const std::byte> bytes) {
    const auto control = load_little<std::uint16_t>(
        std::span<const std::byte, sizeof(std::uint16_t)>{bytes.data() + control_offset, 2});
    const bool is_enabled = (control & control_enable) != 0;
    const bool is_masked = (control & control_function_mask) != 0;
    const std::scoped_lock lock{mutex_};
    if (is_enabled == is_enabled_ && is_masked == is_function_masked_) return;
    is_enabled_ = is_enabled;
    is_function_masked_ = is_masked;
    for (const Entry& entry : entries_) entry.vector.expect(message_of(entry));
    for (Entry& entry : entries_) apply(entry);
}

std::optional<MsiMessage> Msix::message_of(const Entry& entry) const {
    const auto& words = entry.words;
    if (!is_enabled_ || is_function_masked_ || (words[word_control] & control_masked) != 0)
        return std::nullopt;
    // The two low bits of the address are zero, whatever was written there (6.8.2.6).
    return MsiMessage{
        .address = std::uint64_t{words[word_address_high]} << 32 | (words[word_address_low] & ~3U),
        .data = words[word_data]};
}

void Msix::apply(Entry& entry) {
    if (const auto done = entry.vector.want(message_of(entry)); !done) report_.say(done.error());
}

std::byte Msix::byte_at(std::uint64_t offset) const {
    if (offset < entries_.size() * entry_bytes) {
        const std::uint32_t word = entries_[offset / entry_bytes].words[offset % entry_bytes / 4];
        return static_cast<std::byte>(word >> offset % 4 * 8 & 0xff);
    }
    if (offset < pending_offset()) return std::byte{0};
    const std::uint64_t first = (offset - pending_offset()) * 8;
    std::byte byte{0};
    for (std::uint64_t i = first; i < std::min<std::uint64_t>(first + 8, entries_.size()); ++i)
        if (entries_[i].vector.is_pending()) byte |= std::byte{1} << (i - first);
    return byte;
}

void Msix::read(std::uint64_t offset, std::span<std::byte> data) {
    const std::scoped_lock lock{mutex_};
    for (std::size_t i = 0; i < data.size(); ++i) data[i] = byte_at(offset + i);
}

void Msix::write(std::uint64_t offset, std::span<const std::byte> data) {
    if ((data.size() != 4 && data.size() != 8) || offset % data.size() != 0) return;
    const std::scoped_lock lock{mutex_};
    if (offset >= entries_.size() * entry_bytes) return;
    Entry& entry = entries_[offset / entry_bytes];
    for (std::size_t done = 0; done < data.size(); done += 4) {
        const std::size_t word = (offset + done) % entry_bytes / 4;
        const auto value = load_little<std::uint32_t>(data.subspan(done).first<4>());
        // All bits of vector control but the mask are reserved and stay zero (6.8.2.9).
        entry.words[word] = word == word_control ? value & control_masked : value;
    }
    apply(entry);
}

}  // namespace guestmem::pci
