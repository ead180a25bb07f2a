// SPDX-License-Identifier: Apache-2.0
#include "guestmem/cli/qemu_ram_blocks.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <charconv>
#include <limits>
#include <nlohmann/json.hpp>
#include <utility>

#include "guestmem/cli/qmp.hpp"

namespace guestmem::cli {
namespace {

std::string_view take_line(std::string_view& text) {
    std::string_view line = text.substr(0, text.find('\n'));
    text.remove_prefix(std::min(line.size() + 1, text.size()));
    if (line.ends_with('\r')) line.remove_suffix(1);
    return line;
}

std::vector<std::string_view> words_of(std::string_view line) {
    std::vector<std::string_view> words;
    while (true) {
        line.remove_prefix(std::min(line.find_first_not_of(' '), line.size()));
        if (line.empty()) return words;
        words.push_back(line.substr(0, line.find(' ')));
        line.remove_prefix(words.back().size());
    }
}

std::optional<std::uint64_t> read_hex(std::string_view digits) {
    std::uint64_t number = 0;
    const auto [rest, status] = std::from_chars(digits.data(), digits.data() + digits.size(), number, 16);
    if (status != std::errc{} || rest != digits.data() + digits.size()) return std::nullopt;
    return number;
}

/// "0x12".
std::optional<std::uint64_t> read_prefixed(std::string_view word) {
    return word.starts_with("0x") ? read_hex(word.substr(2)) : std::nullopt;
}

/// "NAME 4 KiB 0xOFFSET 0xUSED 0xTOTAL [0xHVA rw]".
std::optional<RamBlock> read_block(std::string_view line, bool has_address) {
    const auto words = words_of(line);
    const auto first = std::ranges::find_if(words, [](auto word) { return word.starts_with("0x"); });
    const auto at = static_cast<std::size_t>(first - words.begin());
    // Two words say the page size; a name is one word, or none.
    if (at < 2 || at > 3 || words.size() - at < (has_address ? 4U : 3U)) return std::nullopt;
    RamBlock block;
    if (at == 3) block.name = words[0];
    const auto total = read_prefixed(words[at + 2]);
    if (!total || *total == 0) return std::nullopt;
    block.size_bytes = *total;
    if (!has_address) return block;
    block.host_base = read_prefixed(words[at + 3]);
    if (!block.host_base) return std::nullopt;
    return block;
}

/// The name of a memory region is the block's, or its last part: "vga.vram" of "0000:00:02.0/vga.vram".
bool is_region_of(std::string_view region, std::string_view block) {
    if (region.empty() || !block.ends_with(region)) return false;
    return region.size() == block.size() || block[block.size() - region.size() - 1] == '/';
}

/// "  0000-ffff (prio 0, ram): pc.ram @00020000".
std::optional<GuestPlace> read_place(std::string_view line, std::string_view block) {
    const auto words = words_of(line);
    if (words.size() < 5 || words[1] != "(prio") return std::nullopt;
    const bool is_memory = words[3] != "i/o):" && words[3].ends_with("):");
    const auto address = read_hex(words[0].substr(0, words[0].find('-')));
    if (!is_memory || !address || !is_region_of(words[4], block)) return std::nullopt;
    GuestPlace place{.address = *address};
    if (words.size() > 5 && words[5].starts_with('@')) {
        const auto offset = read_hex(words[5].substr(1));
        if (!offset) return std::nullopt;
        place.offset_bytes = *offset;
    }
    return place;
}

struct MemoryBackend {
    std::string id;
    std::uint64_t size_bytes = 0;
    bool is_taken = false;
};

Result<std::vector<MemoryBackend>> ask_backends(QmpConversation& qemu) {
    const auto answer = GM_TRY(qemu.ask("query-memdev", {}));
    if (!answer.is_array()) return qmp_broken("'query-memdev' gave no list");
    std::vector<MemoryBackend> backends;
    for (const auto& one : answer) {
        if (!one.is_object() || !one.contains("size") || !one["size"].is_number_unsigned())
            return qmp_broken("'query-memdev' gave a backend without a size");
        // Memory that was made without an id has none.
        MemoryBackend backend;
        if (one.contains("id") && one["id"].is_string()) backend.id = one["id"].get<std::string>();
        backend.size_bytes = one["size"].get<std::uint64_t>();
        backends.push_back(std::move(backend));
    }
    return backends;
}

/// Says which block is which backend: by its name, and where a block has none, by its size when that is one's alone.
void name_backends(std::vector<RamBlock>& blocks, std::vector<MemoryBackend> backends) {
    constexpr std::string_view folder = "/objects/";
    for (RamBlock& block : blocks) {
        std::string_view name = block.name;
        if (name.starts_with(folder)) name.remove_prefix(folder.size());
        if (name.empty()) continue;
        const auto same = std::ranges::find(backends, name, &MemoryBackend::id);
        if (same == backends.end()) continue;
        block.backend = same->id;
        same->is_taken = true;
    }
    for (RamBlock& block : blocks) {
        if (!block.name.empty()) continue;
        const auto is_it = [&](const MemoryBackend& backend) {
            return !backend.is_taken && backend.size_bytes == block.size_bytes;
        };
        const auto is_like_it = [&](const RamBlock& other) {
            return other.name.empty() && other.size_bytes == block.size_bytes;
        };
        if (std::ranges::count_if(backends, is_it) == 1 && std::ranges::count_if(blocks, is_like_it) == 1)
            block.backend = std::ranges::find_if(backends, is_it)->id;
    }
}

/// The addresses of the blocks that the guest sees, for a QEMU whose list has none.
Result<void> ask_addresses(QmpConversation& qemu, std::vector<RamBlock>& blocks) {
    const std::string tree = GM_TRY(qemu.ask_human("info mtree -f"));
    for (RamBlock& block : blocks) {
        const auto place = find_guest_place(tree, block.name);
        if (!place) continue;
        const std::string said = GM_TRY(qemu.ask_human(fmt::format("gpa2hva {:#x}", place->address)));
        const auto host = parse_host_address(said, block.name);
        if (host && *host >= place->offset_bytes) block.host_base = *host - place->offset_bytes;
    }
    return {};
}

}  // namespace

Result<std::vector<RamBlock>> parse_ram_blocks(std::string_view text) {
    const std::string_view head = take_line(text);
    if (!head.contains("Block Name") || !head.contains("Total"))
        return qmp_broken("'info ramblock' gave no table of RAM blocks");
    const bool has_address = head.contains("HVA");
    std::vector<RamBlock> blocks;
    while (!text.empty()) {
        const std::string_view line = take_line(text);
        if (line.empty()) continue;
        if (blocks.size() == max_ram_blocks)
            return Error{Errc::out_of_range,
                         fmt::format("QEMU: it has more than {} RAM blocks", max_ram_blocks)};
        auto block = read_block(line, has_address);
        if (!block) return qmp_broken("a line of 'info ramblock' is no RAM block");
        blocks.push_back(*std::move(block));
    }
    return blocks;
}

std::optional<GuestPlace> find_guest_place(std::string_view tree, std::string_view block) {
    bool is_memory = false;
    while (!tree.empty()) {
        const std::string_view line = take_line(tree);
        if (line.starts_with("FlatView")) is_memory = false;
        if (line.contains("AS \"memory\"")) is_memory = true;
        if (!is_memory) continue;
        if (const auto place = read_place(line, block)) return place;
    }
    return std::nullopt;
}

std::optional<std::uint64_t> parse_host_address(std::string_view text, std::string_view block) {
    const auto words = words_of(take_line(text));
    if (words.size() != 8 || words[0] != "Host" || words[6] != "is") return std::nullopt;
    std::string_view region = words[5];
    if (!region.starts_with('(') || !region.ends_with(')')) return std::nullopt;
    region = region.substr(1, region.size() - 2);
    if (!is_region_of(region, block)) return std::nullopt;
    return read_prefixed(words[7]);
}

Result<std::optional<std::vector<RamBlock>>> ask_ram_blocks(const UnixStream& stream) {
    using Blocks = std::optional<std::vector<RamBlock>>;
    GM_TRY(stream.set_nonblocking());
    QmpConversation qemu{stream};
    qemu.set_time(greeting_timeout_ms);
    if (!qemu.take_greeting()) return Blocks{};

    qemu.set_time(conversation_timeout_ms);
    GM_TRY(qemu.ask("qmp_capabilities", {}));
    auto blocks = GM_TRY(parse_ram_blocks(GM_TRY(qemu.ask_human("info ramblock"))));
    name_backends(blocks, GM_TRY(ask_backends(qemu)));
    if (std::ranges::any_of(blocks, [](const RamBlock& block) { return !block.host_base; }))
        GM_TRY(ask_addresses(qemu, blocks));
    return Blocks{std::move(blocks)};
}

}  // namespace guestmem::cli
