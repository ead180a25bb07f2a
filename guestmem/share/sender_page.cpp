// SPDX-License-Identifier: Apache-2.0
#include "guestmem/share/sender_page.hpp"

#include <fmt/format.h>

#include <atomic>

#include "guestmem/base/endian.hpp"
#include "guestmem/sys/memfd.hpp"

namespace guestmem::share {
namespace {

/// Where a page counts what was sent to each receiver, and what was heard from each sender.
constexpr std::size_t sent_at = 0x000;
constexpr std::size_t heard_at = 0x800;
static_assert(sent_at + max_senders * sizeof(std::uint32_t) <= heard_at);
static_assert(heard_at + max_senders * sizeof(std::uint32_t) <= sender_page_bytes);

std::uint32_t& word(const Mapping& mapping, std::size_t table_at, std::uint32_t slot) {
    return *reinterpret_cast<std::uint32_t*>(mapping.bytes().data() + table_at +
                                             std::size_t{slot} * sizeof(std::uint32_t));
}

std::uint32_t load(const Mapping& mapping, std::size_t table_at, std::uint32_t slot) {
    // Pairs with add(): what the sender wrote into the share before is seen once its count is.
    return swap_unless_little(std::atomic_ref{word(mapping, table_at, slot)}.load(std::memory_order_acquire));
}

}  // namespace

Result<Fd> create_sender_page() {
    Fd page = GM_TRY(create_sealed_memory({.name = "sender", .size_bytes = sender_page_bytes}));
    return page;
}

Result<void> check_sender_page(FdView page) {
    const FileFacts facts = GM_TRY_CONTEXT(file_facts(page), "sender page");
    if (!facts.is_regular || facts.size_bytes != sender_page_bytes)
        return Error{Errc::corrupt, fmt::format("sender page: {} bytes are there, not {}", facts.size_bytes,
                                                sender_page_bytes)};
    if (!GM_TRY_CONTEXT(is_size_sealed(page), "sender page"))
        return Error{Errc::corrupt, "sender page: its size is not sealed, it could be cut short"};
    return {};
}

Result<SenderPage> SenderPage::map(FdView page) {
    GM_TRY(check_sender_page(page));
    Mapping mapping =
        GM_TRY_CONTEXT(Mapping::create(page, sender_page_bytes, MapAccess::read_write), "own sender page");
    return SenderPage{std::move(mapping)};
}

void SenderPage::add(std::uint32_t receiver) {
    if (receiver >= max_senders) return;
    const std::atomic_ref counter{word(mapping_, sent_at, receiver)};
    std::uint32_t before = counter.load(std::memory_order_relaxed);
    while (!counter.compare_exchange_weak(before, swap_unless_little(swap_unless_little(before) + 1),
                                          std::memory_order_release, std::memory_order_relaxed)) {
    }
}

Result<SenderPages> SenderPages::map(std::uint32_t receiver, FdView own, std::span<const FdView> others) {
    if (others.size() >= max_senders || receiver > others.size())
        return Error{
            Errc::out_of_range,
            fmt::format("sender pages: slot {} with {} other slots; a share with sender pages has at most {}",
                        receiver, others.size(), max_senders)};
    SenderPage own_page = GM_TRY(SenderPage::map(own));
    SenderPages pages{receiver, std::move(own_page)};
    for (const FdView other : others) {
        GM_TRY(check_sender_page(other));
        pages.others_.push_back(
            GM_TRY_CONTEXT(Mapping::create(other, sender_page_bytes, MapAccess::read_only), "sender page"));
    }
    return pages;
}

std::uint32_t SenderPages::sent_by(std::uint32_t sender) const {
    if (sender == receiver_) return load(own_.mapping_, sent_at, receiver_);
    return load(others_[sender < receiver_ ? sender : sender - 1], sent_at, receiver_);
}

SenderSet SenderPages::look() const {
    SenderSet senders;
    for (std::uint32_t sender = 0; sender <= others_.size(); ++sender)
        senders[sender] = sent_by(sender) != load(own_.mapping_, heard_at, sender);
    return senders;
}

SenderSet SenderPages::take() {
    SenderSet senders;
    for (std::uint32_t sender = 0; sender <= others_.size(); ++sender) {
        const std::uint32_t sent = sent_by(sender);
        if (sent == load(own_.mapping_, heard_at, sender)) continue;
        senders.set(sender);
        std::atomic_ref{word(own_.mapping_, heard_at, sender)}.store(swap_unless_little(sent),
                                                                     std::memory_order_release);
    }
    return senders;
}

}  // namespace guestmem::share
