// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <fcntl.h>
#include <sys/stat.h>

#include <algorithm>
#include <array>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <functional>
#include <map>
#include <memory>
#include <random>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "guestmem/base/check.hpp"
#include "guestmem/base/sizes.hpp"
#include "guestmem/mem/layout.hpp"
#include "guestmem/mem/template/maker.hpp"
#include "guestmem/mem/template/template.hpp"
#include "guestmem/mem/template/template_files.hpp"
#include "guestmem/mem/testing/test_map.hpp"
#include "guestmem/sys/testing/temp_folder.hpp"

/// Templates for tests: a small one, differences to it, and damage that its owner could do.
///
/// Concepts: template "d0" is two regions of RAM with a ROM between them, 144 pages in all; "dN" is a difference to the
/// one before, of some random pages, a third of which become zeros. What each has to show is kept as bytes in the order
/// of the image.
/// Contract: what cannot be made aborts the test program. Damage keeps mode and time of a file, so that only its bytes
/// tell of it.
/// Threads: one at a time.
/// Example:
///     Chain chain;
///     chain.add(1);
///     EXPECT_EQ(bytes_of(chain.open(1)->fork().value()), chain.expected(1));

namespace guestmem::testing {

inline constexpr std::uint64_t rom_address = 0xfffc0000;
inline constexpr std::uint64_t high_address = std::uint64_t{1} << 32;

inline std::span<std::byte> bytes_of(const Region& region) {
    return {region.host_base(), region.range().size_bytes()};
}

/// Of all regions, in the order of the image.
inline std::string bytes_of(const Fork& fork) {
    std::string all;
    for (const auto& region : fork.regions) {
        const auto bytes = bytes_of(*region);
        all.append(reinterpret_cast<const char*>(bytes.data()), bytes.size());
    }
    return all;
}

inline std::shared_ptr<const MemoryMap> map_of(const Fork& fork) {
    Layout layout;
    for (const auto& region : fork.regions) layout.add(region);
    return std::move(layout).freeze().value();
}

/// Lets somebody write a file that is read-only; its mode and times stay.
inline void change_file(const std::string& path, const std::function<void()>& how) {
    struct stat before{};
    GM_CHECK(::stat(path.c_str(), &before) == 0 && ::chmod(path.c_str(), 0600) == 0);
    how();
    const std::array times{before.st_atim, before.st_mtim};
    GM_CHECK(::chmod(path.c_str(), before.st_mode & 07777) == 0);
    GM_CHECK(::utimensat(AT_FDCWD, path.c_str(), times.data(), 0) == 0);
}

inline std::string text_of(const std::string& path) {
    std::ifstream file{path, std::ios::binary};
    return {std::istreambuf_iterator<char>{file}, {}};
}
inline void replace_bytes(const std::string& path, std::uint64_t at, std::string_view bytes) {
    change_file(path, [&] {
        std::fstream file{path, std::ios::in | std::ios::out | std::ios::binary};
        file.seekp(static_cast<std::streamoff>(at));
        file.write(bytes.data(), static_cast<std::streamsize>(bytes.size()));
        GM_CHECK(file.flush().good());
    });
}
inline void replace_file(const std::string& path, std::string_view bytes) {
    change_file(path, [&] { std::ofstream{path, std::ios::binary | std::ios::trunc} << bytes; });
}
inline void flip_bit(const std::string& path, std::uint64_t at) {
    replace_bytes(path, at, std::string(1, static_cast<char>(text_of(path).at(at) ^ 1)));
}

/// A manifest that says something else, with the sum that fits.
inline void edit_manifest(const std::string& folder, const std::function<void(Manifest&)>& how) {
    const std::string path = folder + "/" + template_manifest_file;
    Manifest manifest = parse_manifest(text_of(path)).value();
    how(manifest);
    replace_file(path, to_text(manifest));
}
/// A difference that says it has these pages.
inline void edit_pages(const std::string& folder, const PageRuns& pages) {
    const std::vector<std::byte> bytes = pages.to_bytes();
    replace_file(folder + "/" + template_pages_file,
                 {reinterpret_cast<const char*>(bytes.data()), bytes.size()});
    edit_manifest(folder, [&](Manifest& manifest) {
        manifest.parent->count_pages = pages.count_pages();
        manifest.parent->pages_sum = bytes_sum(bytes);
        manifest.data_pages = std::min(manifest.data_pages, pages.count_pages());
    });
}

class Chain {
public:
    static constexpr std::uint64_t ram_bytes = 64 * page_size_bytes;
    static constexpr std::uint64_t rom_bytes = 16 * page_size_bytes;
    static constexpr std::uint64_t image_bytes = 2 * ram_bytes + rom_bytes;

    explicit Chain(const MakerOptions& options = {}) {
        guest_.ram(0, ram_bytes, "low").rom(rom_address, rom_bytes).ram(high_address, ram_bytes, "high");
        guest_.count_up();
        // Two rows of zeros, one of them over a border of chunks.
        std::memset(guest_.bytes(0).data() + 8 * page_size_bytes, 0, 20 * page_size_bytes);
        std::memset(guest_.bytes(2).data() + 60 * page_size_bytes, 0, 4 * page_size_bytes);
        TemplateMaker maker = TemplateMaker::begin(path_of(0), options).value();
        GM_CHECK(maker.add_map(*guest_.map()).has_value());
        GM_CHECK(maker.set_state(std::as_bytes(std::span{state})).has_value());
        maker.set_provenance("source", "a test");
        GM_CHECK(std::move(maker).commit().has_value());
        for (const auto& region : guest_.map()->regions()) {
            const auto bytes = bytes_of(*region);
            expected_[0].append(reinterpret_cast<const char*>(bytes.data()), bytes.size());
        }
    }

    [[nodiscard]] std::string path_of(int number) const {
        return store_.path_of("d" + std::to_string(number));
    }
    [[nodiscard]] std::shared_ptr<const Template> open(int number) const {
        return Template::open(path_of(number)).value();
    }
    [[nodiscard]] const TempFolder& store() const { return store_; }
    [[nodiscard]] TestMap& guest() { return guest_; }
    [[nodiscard]] const std::string& expected(int number) const { return expected_.at(number); }

    /// Random pages of RAM with other bytes.
    void scribble(const Fork& fork, int count = 20) {
        for (int i = 0; i < count; ++i) {
            const auto bytes = bytes_of(*fork.regions.at(random_() % 2 * 2));
            const std::uint64_t at = random_() % (bytes.size() / page_size_bytes) * page_size_bytes;
            std::memset(bytes.data() + at, random_() % 3 == 0 ? 0 : static_cast<int>(random_() % 255 + 1),
                        page_size_bytes);
        }
    }
    /// Makes difference `number` to the one before, by writing to a fork.
    Manifest add(int number, const MakerOptions& options = {}) {
        const auto parent = open(number - 1);
        const Fork fork = parent->fork({.mode = RestoreMode::copy}).value();
        scribble(fork);
        TemplateMaker maker = TemplateMaker::begin_difference(path_of(number), parent, options).value();
        GM_CHECK(maker.add_written(written_since_fork(fork).value()).has_value());
        Manifest made = std::move(maker).commit().value();
        expected_[number] = bytes_of(fork);
        return made;
    }

    static constexpr std::string_view state = "registers and devices";

private:
    TempFolder store_;
    TestMap guest_;
    std::map<int, std::string> expected_;
    std::mt19937 random_{7};  // NOLINT: the same each time
};

}  // namespace guestmem::testing
