// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <algorithm>
#include <array>
#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <map>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "guestmem/base/check.hpp"
#include "guestmem/mem/template/compressed_image.hpp"
#include "guestmem/mem/paging/page_runs.hpp"
#include "guestmem/mem/template/page_sum.hpp"
#include "guestmem/mem/template/template.hpp"
#include "guestmem/mem/template/testing/chain.hpp"
#include "guestmem/sys/fault_guard.hpp"
#include "guestmem/sys/guarded.hpp"

/// Folders of templates that somebody has changed as he likes, for a fuzzer and for tests.
///
/// Concepts: an input is one byte that chooses the template, raw or compressed, alone or a difference, and whether sums
/// are set right after the changes; then changes: which file (u8), what is done (u8), where (u24, little endian), how
/// many bytes (u8), and these bytes. Sums that are right let a change reach what stands behind them.
/// Contract: run() opens, verifies, and forks in each mode and looks at the pages. It aborts where an error has no
/// sentence, where two modes show other bytes, and where a template that verifies as good cannot be copied. All files
/// are as they were afterwards.
/// Threads: one at a time.
/// Limits: files stay below 65 MiB, and of each region at most 600 pages are looked at.
/// Example:
///     HostileFolders folders;
///     folders.run(std::as_bytes(std::span{input}));

namespace guestmem::testing {

class HostileFolders {
public:
    HostileFolders() : raw_({.encoding = ImageEncoding::raw}), zstd_({.encoding = ImageEncoding::zstd}) {
        GM_CHECK(install_fault_guard().has_value() && prepare_thread_for_guest_memory().has_value());
        raw_.add(1, {.encoding = ImageEncoding::raw});
        zstd_.add(1, {.encoding = ImageEncoding::zstd});
    }

    /// How many of its forks could be made.
    int run(std::span<const std::byte> input) {
        if (input.empty()) return 0;
        const auto choice = std::to_integer<unsigned>(input[0]);
        const Chain& chain = (choice & 1U) != 0 ? zstd_ : raw_;
        const int number = (choice & 2U) != 0 ? 1 : 0;
        for (std::span rest = input.subspan(1); rest.size() >= head_bytes;)
            rest = change(chain, number, rest);
        if ((choice & 4U) != 0)
            for (int i = 0; i <= number; ++i) set_sums_right(chain.path_of(i), (choice & 8U) != 0);
        const int count = look(chain.path_of(number));
        for (const auto& [path, bytes] : originals_) replace_file(path, bytes);
        originals_.clear();
        return count;
    }

private:
    static constexpr std::size_t head_bytes = 6;
    static constexpr std::array names{template_manifest_file, template_image_file,  template_sums_file,
                                      template_pages_file,    template_chunks_file, template_state_file};
    enum class Change : std::uint8_t { replace, cut, lengthen, number, count };

    void keep(const std::string& path) {
        if (!originals_.contains(path)) originals_[path] = text_of(path);
    }

    std::span<const std::byte> change(const Chain& chain, int number, std::span<const std::byte> rest) {
        const auto byte = [&](std::size_t i) { return std::to_integer<std::uint64_t>(rest[i]); };
        const std::uint64_t which = byte(0);
        const std::string folder = chain.path_of(number == 1 && which >= 128 ? 0 : number);
        const std::string path = folder + "/" + names[which % names.size()];
        const auto what = static_cast<Change>(byte(1) % static_cast<unsigned>(Change::count));
        const std::uint64_t where = byte(2) | byte(3) << 8U | byte(4) << 16U;
        const std::size_t size = std::min<std::size_t>(byte(5) % 33, rest.size() - head_bytes);
        const std::string bytes{reinterpret_cast<const char*>(rest.data()) + head_bytes, size};
        rest = rest.subspan(head_bytes + size);
        if (!std::filesystem::exists(path)) return rest;
        keep(path);
        const std::uint64_t before = std::filesystem::file_size(path);
        switch (what) {
            case Change::replace:
                if (before > 0) replace_bytes(path, where % before, bytes);
                break;
            case Change::cut:
                change_file(path, [&] { std::filesystem::resize_file(path, where % (before + 1)); });
                break;
            case Change::lengthen:
                // Sparse.
                change_file(path, [&] { std::filesystem::resize_file(path, before + (where << 2U)); });
                break;
            case Change::number: change_number(folder, where, bytes); break;
            case Change::count: break;
        }
        return rest;
    }

    /// One number of a manifest that can be read.
    void change_number(const std::string& folder, std::uint64_t which, std::string_view bytes) {
        const std::string path = folder + "/" + template_manifest_file;
        keep(path);
        auto manifest = parse_manifest(text_of(path));
        if (!manifest) return;
        std::uint64_t value = 0;
        for (std::size_t i = 0; i < std::min<std::size_t>(bytes.size(), 8); ++i)
            value |= std::uint64_t{static_cast<unsigned char>(bytes[i])} << (8 * i);
        ImageRegion& region = manifest->regions[which / 16 % manifest->regions.size()];
        const std::array numbers{&region.guest_address,
                                 &region.size_bytes,
                                 &region.image_offset_bytes,
                                 &manifest->image_bytes,
                                 &manifest->stored_bytes,
                                 &manifest->chunks_sum,
                                 &manifest->data_pages,
                                 &manifest->sum_of_sums,
                                 &manifest->state_bytes,
                                 &manifest->state_sum,
                                 manifest->parent ? &manifest->parent->count_pages : &manifest->made_at_s};
        // Small ones are steps.
        std::uint64_t& number = *numbers[which % numbers.size()];
        number = bytes.size() < 4 ? number + value * page_size_bytes : value;
        if (bytes.empty()) region.is_rom = !region.is_rom;
        replace_file(path, to_text(*manifest));
    }

    /// The sums of the manifest, and on demand those of the pages.
    void set_sums_right(const std::string& folder, bool has_page_sums) {
        const std::string path = folder + "/" + template_manifest_file;
        keep(path);
        replace_file(path, with_right_sum(text_of(path)));
        auto manifest = parse_manifest(text_of(path));
        if (!manifest) return;
        const auto bytes_in = [&](const char* name) {
            const std::string file = folder + "/" + name;
            // What is sparse and long is not read.
            const bool is_short =
                std::filesystem::exists(file) && std::filesystem::file_size(file) < (1U << 20U);
            return is_short ? text_of(file) : std::string{};
        };
        if (manifest->parent) {
            const std::string pages = bytes_in(template_pages_file);
            const auto bytes = std::as_bytes(std::span{pages});
            manifest->parent->pages_sum = bytes_sum(bytes);
            if (const auto runs = parse_page_runs(bytes, manifest->image_bytes / page_size_bytes))
                manifest->parent->count_pages = runs->count_pages();
        }
        manifest->stored_bytes = std::filesystem::file_size(folder + "/" + template_image_file);
        if (manifest->encoding == ImageEncoding::zstd)
            manifest->chunks_sum = sum_of_chunks(bytes_in("chunks"));
        if (has_page_sums) {
            SumOfSums all;
            manifest->data_pages = 0;
            const std::string sums = bytes_in(template_sums_file);
            for (std::size_t at = 0; at + 8 <= sums.size(); at += 8) {
                std::uint64_t sum = 0;
                std::memcpy(&sum, sums.data() + at, 8);
                if (sum == 0) continue;
                all.add(at / 8, sum);
                ++manifest->data_pages;
            }
            manifest->sum_of_sums = all.value();
        }
        replace_file(path, to_text(*manifest));
    }
    static std::uint64_t sum_of_chunks(const std::string& chunks) {
        const auto bytes = std::as_bytes(std::span{chunks});
        SumOfSums all;
        for (std::size_t at = 0; at + chunk_entry_bytes <= bytes.size(); at += chunk_entry_bytes) {
            const auto entry = bytes.subspan(at, chunk_entry_bytes);
            if (!is_zero_page(entry)) all.add(at / chunk_entry_bytes, bytes_sum(entry));
        }
        return all.value();
    }
    /// The line with the sum is the text's only one that the sum is not of.
    static std::string with_right_sum(std::string text) {
        constexpr std::string_view key = "\n  \"sum\": \"";
        const std::size_t begin = text.find(key);
        const std::size_t digits = begin + key.size();
        if (begin == std::string::npos || text.size() < digits + 18) return text;
        std::string others = text;
        others.erase(begin, key.size() + 18);
        if (others.ends_with('\n')) others.pop_back();
        std::uint64_t sum = bytes_sum(std::as_bytes(std::span{others}));
        for (std::size_t i = 16; i-- > 0; sum >>= 4U) text[digits + i] = "0123456789abcdef"[sum & 0xfU];
        return text;
    }

    /// Words of all pages, of long regions of the first and the last ones; nothing where one is a fault.
    static std::optional<std::vector<std::uint64_t>> words_of(const Fork& fork) {
        constexpr std::uint64_t max_pages = 300;
        std::vector<std::uint64_t> words;
        for (const auto& region : fork.regions) {
            const std::uint64_t count = region->range().size_bytes() / page_size_bytes;
            for (std::uint64_t i = 0; i < std::min(count, 2 * max_pages); ++i) {
                const std::uint64_t number = i < max_pages ? i : count - 1 - (i - max_pages);
                for (const std::uint64_t at : {std::uint64_t{0}, page_size_bytes / 2}) {
                    if (!try_load(region->host_base() + number * page_size_bytes + at, words.emplace_back()))
                        return std::nullopt;
                }
            }
        }
        return words;
    }

    static int look(const std::string& folder) {
        const auto opened = Template::open(folder);
        if (!opened) {
            GM_CHECK(!opened.error().message().empty());
            return 0;
        }
        bool is_good = true;
        for (const Template* layer : (*opened)->layers()) {
            const auto check = layer->verify();
            if (!check) GM_CHECK(!check.error().message().empty());
            is_good = is_good && check && check->is_good();
        }
        int count = 0;
        std::optional<std::vector<std::uint64_t>> copied;
        for (const RestoreMode mode : {RestoreMode::copy, RestoreMode::lazy, RestoreMode::map}) {
            const auto fork = (*opened)->fork({.mode = mode});
            if (!fork) {
                GM_CHECK(!fork.error().message().empty());
                // Its pages are good: it may be of a moment after its manifest, and nothing else.
                GM_CHECK(mode != RestoreMode::copy || !is_good || fork.error().code() == Errc::corrupt);
                continue;
            }
            ++count;
            const auto words = words_of(*fork);
            if (fork->pager) GM_CHECK(words.has_value() == fork->pager->health().has_value());
            if (mode == RestoreMode::copy) copied = words;
            GM_CHECK(mode != RestoreMode::copy || words.has_value());
            // A mapped one shows what stands there, good or not.
            const bool is_same = mode == RestoreMode::lazy || is_good;
            GM_CHECK(!copied || !words || !is_same || *words == *copied);
        }
        return count;
    }

    Chain raw_;
    Chain zstd_;
    std::map<std::string, std::string> originals_;
};

}  // namespace guestmem::testing
