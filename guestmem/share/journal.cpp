// SPDX-License-Identifier: Apache-2.0
#include "guestmem/share/journal.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <new>

#include "guestmem/base/sizes.hpp"
#include "guestmem/share/config.hpp"
#include "guestmem/share/ivshmem/wire.hpp"
#include "guestmem/sys/memfd.hpp"

namespace guestmem::share {

namespace {

constexpr std::uint32_t journal_magic = 0x4c4a4d47;  // "GMJL"
constexpr std::uint32_t journal_version = 1;

}  // namespace

struct Journal::Layout {
    std::uint32_t magic;
    std::uint32_t version;
    std::uint32_t generation;
    std::uint32_t next_share_number;
    std::uint32_t next_connection_number;
    std::uint32_t count_connections_used;  ///< records below were used once
    std::array<ShareRecord, max_journal_shares> shares;
    std::array<ConnectionRecord, max_journal_connections> connections;
};

namespace {

std::uint64_t journal_bytes(std::uint64_t layout_bytes) { return *round_up(layout_bytes, page_size_bytes); }

}  // namespace

Journal::Layout& Journal::layout() const {
    return *std::launder(reinterpret_cast<Layout*>(mapping_.bytes().data()));
}

Result<Journal> Journal::create() {
    static_assert(std::atomic<std::uint32_t>::is_always_lock_free);
    const std::uint64_t size = journal_bytes(sizeof(Layout));
    Fd memory = GM_TRY(create_sparse_memory({.name = "journal", .size_bytes = size}, Sealing::size));
    Mapping mapping = GM_TRY(Mapping::create(memory, size, MapAccess::read_write));
    Journal journal{std::move(memory), std::move(mapping)};
    // The kernel's zeros are free records.
    Layout& layout = journal.layout();
    layout.version = journal_version;
    layout.generation = 1;
    layout.next_share_number = 1;
    layout.next_connection_number = 1;
    layout.magic = journal_magic;
    return journal;
}

Result<Journal> Journal::adopt(Fd memory) {
    const std::uint64_t size = journal_bytes(sizeof(Layout));
    const FileFacts facts = GM_TRY(file_facts(memory));
    if (!facts.is_regular || facts.size_bytes != size)
        return Error{
            Errc::corrupt,
            fmt::format("the journal of the instance before has {} bytes, and this program's has {}: "
                        "it was written by another version",
                        facts.size_bytes, size)};
    Mapping mapping = GM_TRY(Mapping::create(memory, size, MapAccess::read_write));
    Journal journal{std::move(memory), std::move(mapping)};
    GM_TRY(journal.check());
    ++journal.layout().generation;
    return journal;
}

Result<void> Journal::check() {
    Layout& layout = this->layout();
    if (layout.magic != journal_magic || layout.version != journal_version)
        return Error{Errc::corrupt, fmt::format("the journal of the instance before has version {}, and this "
                                                "program knows {}",
                                                layout.version, journal_version)};
    if (layout.count_connections_used > max_journal_connections)
        return Error{Errc::corrupt, "the journal of the instance before counts more connections than it has"};
    for (const ShareRecord* share : shares()) {
        const bool is_good = share->stage.load() <= ShareStage::retired && share->vectors >= 1 &&
                             share->vectors <= max_vectors && share->slots >= 1 &&
                             share->slots <= max_slots &&
                             std::uint64_t{share->slots} * share->vectors <= max_slots_times_vectors &&
                             share->ids <= 1 && share->backing <= 2 &&
                             !find_size_problem(share->size_bytes) && !find_name_problem(share->name.get());
        if (!is_good)
            return Error{Errc::corrupt,
                         fmt::format("the journal's record of share number {} is damaged", share->number)};
    }
    for (std::uint32_t at = 0; at < layout.count_connections_used; ++at) {
        const ConnectionRecord& record = layout.connections.at(at);
        const ConnectionStage stage = record.stage.load();
        if (stage > ConnectionStage::admitted || record.id > ivshmem_max_peer_id)
            return Error{Errc::corrupt, fmt::format("the journal's record of connection {} is damaged", at)};
        if (stage == ConnectionStage::none) free_connections_.push_back(at);
    }
    return {};
}

std::uint32_t Journal::generation() const { return layout().generation; }

ShareRecord* Journal::add_share() {
    Layout& layout = this->layout();
    const auto free = std::ranges::find_if(
        layout.shares, [](const ShareRecord& record) { return record.stage.load() == ShareStage::none; });
    if (free == layout.shares.end()) return nullptr;
    free->number = layout.next_share_number++;
    free->next_classic = 0;
    return &*free;
}

ConnectionRecord* Journal::add_connection() {
    Layout& layout = this->layout();
    std::uint32_t at = layout.count_connections_used;
    if (!free_connections_.empty()) {
        at = free_connections_.back();
        free_connections_.pop_back();
    } else if (at == max_journal_connections) {
        return nullptr;
    } else {
        ++layout.count_connections_used;
    }
    ConnectionRecord& record = layout.connections.at(at);
    record.number = layout.next_connection_number++;
    record.share = 0;
    record.id = 0;
    record.progress.begun.store(0);
    record.progress.done.store(0);
    record.is_told.store(0);
    record.announced.store(0);
    return &record;
}

void Journal::remove(ConnectionRecord& record) {
    record.stage.store(ConnectionStage::none);
    free_connections_.push_back(static_cast<std::uint32_t>(&record - layout().connections.data()));
}

std::vector<ShareRecord*> Journal::shares() {
    std::vector<ShareRecord*> found;
    for (ShareRecord& record : layout().shares)
        if (record.stage.load() != ShareStage::none) found.push_back(&record);
    return found;
}

std::vector<ConnectionRecord*> Journal::connections() {
    std::vector<ConnectionRecord*> found;
    Layout& layout = this->layout();
    for (std::uint32_t at = 0; at < layout.count_connections_used; ++at)
        if (layout.connections.at(at).stage.load() != ConnectionStage::none)
            found.push_back(&layout.connections.at(at));
    return found;
}

}  // namespace guestmem::share
