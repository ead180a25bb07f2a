// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <algorithm>
#include <array>
#include <chrono>
#include <cstddef>
#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <set>
#include <span>
#include <string>
#include <vector>

#include "guestmem/mem/layout.hpp"
#include "guestmem/mem/live_map.hpp"
#include "guestmem/mem/testing/choices.hpp"
#include "guestmem/mem/testing/memory_model.hpp"
#include "guestmem/mem/testing/model_memory.hpp"
#include "guestmem/mem/testing/table_translator.hpp"
#include "guestmem/mem/translated_memory.hpp"

/// A random guest's memory behind an IOMMU twice: as an IoSpace with handles, and as a naive model.
///
/// Concepts: the device's addresses are io_bytes from a random origin on, or up to 2^64 - 1, in pages of io_page_bytes
/// bytes. A page leads to any guest address with any permissions, or nowhere. The model looks each byte's page up, and
/// then goes through all regions. The middle of the addresses is the window of the second dirty log.
/// The map behind it is published again and again, also while a handle asks: another object with the same regions.
/// Contract: what is taken away is invalidated at once; what comes new, or gets more permissions, is not.
/// Threads: one at a time.

namespace guestmem::testing {

inline constexpr std::uint64_t io_page_bytes = 64;
inline constexpr std::uint64_t io_bytes = 3 * page_size_bytes;

/// Where the pages of the device's addresses lead.
struct IoPage {
    std::uint64_t to = 0;
    Permissions permissions = Permissions::none;
};

/// Answers with a page, or with it and all that continue it.
class PageTable final : public Translator {
public:
    std::uint64_t origin = 0;
    std::array<std::optional<IoPage>, io_bytes / io_page_bytes> pages;
    bool gives_long_answers = false;
    std::function<void()> on_question;

    [[nodiscard]] AccessResult<Translation> translate(IoAddress address, Access access) override {
        on_question();
        const std::uint64_t first = (address.value() - origin) / io_page_bytes;
        if (address.value() - origin >= io_bytes || !pages[first])
            return AccessError{AccessReason::untranslated, access, address.value(), 0};
        const IoPage& page = *pages[first];
        std::uint64_t count = 1;
        while (gives_long_answers && continues(page, first, count)) ++count;
        return translation(origin + first * io_page_bytes, count * io_page_bytes, page.to, page.permissions);
    }

private:
    [[nodiscard]] bool continues(const IoPage& page, std::uint64_t first, std::uint64_t count) const {
        if (first + count >= pages.size() || !pages[first + count]) return false;
        const IoPage& next = *pages[first + count];
        return next.to == page.to + count * io_page_bytes && next.to > page.to &&
               next.to + (io_page_bytes - 1) > next.to && next.permissions == page.permissions;
    }
};

class IoModel {
public:
    using Refused = MemoryModel::Refused;

    explicit IoModel(Choices& choices) : choices_(choices), guest_(choices) {
        constexpr std::array<std::uint64_t, 3> origins{0, std::uint64_t{1} << 40,
                                                       std::uint64_t{0} - io_bytes};
        table_->origin = origins[choices.below(origins.size())];
        table_->gives_long_answers = choices.one_in(2);
        constexpr std::array<std::size_t, 3> capacities{1, 5, default_iotlb_capacity};
        window_ = io_range(table_->origin + page_size_bytes, page_size_bytes);
        space_ = std::make_unique<IoSpace>(IoSpace::create({.name = "model",
                                                            .translator = table_,
                                                            .iotlb_capacity = capacities[choices.below(3)],
                                                            .dirty_window = window_})
                                               .value());
        GM_CHECK(space_->dirty()->start(dirty_page_bytes).has_value());
        for (std::size_t i = 0; i < handles_.size(); ++i)
            handles_[i] =
                space_->make_memory("queue " + std::to_string(i), live_.make_reader("queue").value()).value();
        table_->on_question = [this] {
            if (choices_.one_in(4)) publish_map();
        };
        for (std::uint64_t i = 0; i < table_->pages.size(); ++i)
            if (!choices.one_in(4)) set_page(i);
    }

    /// Any of the handles.
    [[nodiscard]] TranslatedMemory& handle() { return *handles_[choices_.below(handles_.size())]; }
    [[nodiscard]] std::uint64_t origin() const { return table_->origin; }
    [[nodiscard]] ModelMemory& guest() { return guest_; }

    /// Another map of the same regions; the old one goes when nobody holds it.
    void publish_map() {
        Layout layout{{.granule_bytes = 1}};
        for (const auto& region : guest_.map()->regions()) layout.add(region);
        static_cast<void>(live_.publish(std::move(layout).freeze().value()));
    }

    /// Mappings come and go.
    void change_pages() {
        const std::uint64_t first = choices_.below(table_->pages.size());
        const std::uint64_t count = std::min(1 + choices_.below(4), table_->pages.size() - first);
        if (choices_.one_in(4) && table_->pages[first]) {
            // More permissions, and nobody is told.
            table_->pages[first]->permissions = Permissions::read_write;
            return;
        }
        bool was_there = false;
        for (std::uint64_t i = first; i < first + count; ++i) {
            was_there = was_there || table_->pages[i];
            table_->pages[i].reset();
            if (!choices_.one_in(4)) set_page(i);
        }
        if (!was_there) return;
        const auto range = io_range(table_->origin + first * io_page_bytes, count * io_page_bytes);
        using std::chrono_literals::operator""s;
        GM_CHECK(choices_.one_in(4) ? space_->invalidate_all(1s).has_value()
                                    : space_->invalidate(range, 1s).has_value());
    }

    /// The first byte that refuses; overflow comes first of all.
    [[nodiscard]] Refused check(std::uint64_t address, std::uint64_t count, Access access) {
        if (count != 0 && count - 1 > ~address)
            return AccessError{AccessReason::overflow, access, address, 0};
        for (std::uint64_t i = 0; i < count; ++i)
            if (const auto reason = reason_at(address + i, access); reason != AccessReason::none)
                return AccessError{reason, access, address + i, 0};
        return {};
    }
    [[nodiscard]] std::vector<std::byte> bytes_at(std::uint64_t address, std::size_t count) {
        std::vector<std::byte> bytes(count);
        for (std::size_t i = 0; i < count; ++i) bytes[i] = byte_at(address + i);
        return bytes;
    }
    void put_all(std::uint64_t address, std::span<const std::byte> bytes) {
        for (std::size_t i = 0; i < bytes.size(); ++i) put(address + i, bytes[i]);
    }
    [[nodiscard]] std::string harvest() {
        const DirtyPages pages = space_->dirty()->harvest().value();
        std::set<std::uint64_t> found;
        for (std::uint64_t i = 0; i < pages.count_pages(); ++i)
            if (pages.is_dirty(i * dirty_page_bytes)) found.insert(i);
        const bool is_same = found == dirty_pages_;
        dirty_pages_.clear();
        return is_same ? "" : "other pages of the window are dirty";
    }

    template <typename T>
    [[nodiscard]] Refused check_atomic(std::uint64_t address, Access access) {
        if (address % sizeof(T) != 0) return AccessError{AccessReason::misaligned, access, address, 0};
        if (const Refused refused = check(address, sizeof(T), access)) return refused;
        const std::uint64_t guest = guest_address(address);
        const ModelRegion* const region = guest_.model().find(guest);
        if (!region->contains(guest + (sizeof(T) - 1)))
            return AccessError{AccessReason::crosses_border, access, address, 0};
        if ((guest + region->distance) % sizeof(T) != 0)
            return AccessError{AccessReason::misaligned, access, address, 0};
        return {};
    }

private:
    void set_page(std::uint64_t number) {
        const auto permissions = static_cast<Permissions>(choices_.one_in(3) ? choices_.below(4) : 3);
        std::uint64_t to = guest_.any_address(choices_);
        const bool is_next = number != 0 && table_->pages[number - 1] && !choices_.one_in(3);
        if (is_next) to = table_->pages[number - 1]->to + io_page_bytes;
        if (to + (io_page_bytes - 1) < to) to = 0;
        table_->pages[number] = IoPage{to, permissions};
    }
    [[nodiscard]] const IoPage* page_of(std::uint64_t address) const {
        if (address - table_->origin >= io_bytes) return nullptr;
        const auto& page = table_->pages[(address - table_->origin) / io_page_bytes];
        return page ? &*page : nullptr;
    }
    [[nodiscard]] std::uint64_t guest_address(std::uint64_t address) const {
        return page_of(address)->to + (address - table_->origin) % io_page_bytes;
    }
    [[nodiscard]] AccessReason reason_at(std::uint64_t address, Access access) {
        const IoPage* const page = page_of(address);
        if (page == nullptr) return AccessReason::untranslated;
        if (!allows(page->permissions, access)) return AccessReason::denied;
        return guest_.model().reason_at(guest_address(address), access);
    }
    [[nodiscard]] std::byte byte_at(std::uint64_t address) {
        return guest_.model().byte_at(guest_address(address));
    }
    void put(std::uint64_t address, std::byte value) {
        guest_.model().put(guest_address(address), value);
        if (window_->contains(IoAddress{address}))
            dirty_pages_.insert((address - window_->base().value()) / dirty_page_bytes);
    }

    Choices& choices_;
    ModelMemory guest_;
    LiveMap live_{guest_.map()};
    std::shared_ptr<PageTable> table_ = std::make_shared<PageTable>();
    std::optional<IoRange> window_;
    std::unique_ptr<IoSpace> space_;
    std::array<std::unique_ptr<TranslatedMemory>, 2> handles_;
    std::set<std::uint64_t> dirty_pages_;
};

}  // namespace guestmem::testing
