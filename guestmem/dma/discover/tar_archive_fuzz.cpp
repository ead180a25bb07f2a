// SPDX-License-Identifier: Apache-2.0
/// Fuzzes tar_archive.hpp: any bytes as an archive. The sums of headers are set right in a second attempt, so that
/// what is behind them is reached.
///
/// Asserts: an archive that is read is sorted, each name is there once, none leads outside or lies below a file or
/// link, all contents are inside of the input; written again it is read as the same; an error has no control character.
#include <algorithm>
#include <cctype>
#include <cstddef>
#include <cstdint>
#include <string>
#include <string_view>

#include "guestmem/base/check.hpp"
#include "guestmem/dma/discover/tar_archive.hpp"

namespace guestmem::dma {
namespace {

bool is_inside(std::string_view path) {
    const std::string framed = "/" + std::string{path} + "/";
    return !framed.contains("//") && !framed.contains("/./") && !framed.contains("/../");
}

void check_archive(const TarArchive& archive, std::size_t input_bytes) {
    TarWriter writer;
    std::size_t count_bytes = 0;
    for (std::size_t i = 0; i < archive.entries().size(); ++i) {
        const TarEntry& entry = archive.entries()[i];
        GM_CHECK(i == 0 || archive.entries()[i - 1].path < entry.path);
        GM_CHECK(is_inside(entry.path) && entry.path.size() <= max_tar_name_bytes);
        for (std::size_t slash = entry.path.find('/'); slash != std::string_view::npos;
             slash = entry.path.find('/', slash + 1))
            GM_CHECK(archive.find(entry.path.substr(0, slash)) == nullptr);
        count_bytes += entry.content.size();
        if (entry.kind == TarEntry::Kind::file) {
            GM_CHECK(writer.add_file(entry.path, entry.content));
        } else {
            GM_CHECK(writer.add_link(entry.path, entry.content));
        }
    }
    GM_CHECK(count_bytes <= input_bytes);
    if (archive.entries().empty()) return;
    const auto again = TarArchive::read(std::move(writer).finish());
    GM_CHECK(again && again->entries().size() == archive.entries().size());
    for (std::size_t i = 0; i < archive.entries().size(); ++i) {
        const TarEntry& one = archive.entries()[i];
        const TarEntry& other = again->entries()[i];
        GM_CHECK(one.path == other.path && one.content == other.content && one.kind == other.kind);
    }
}

void attack(const std::string& input) {
    const auto archive = TarArchive::read(input);
    if (archive) {
        check_archive(*archive, input.size());
    } else {
        for (const char c : archive.error().message())
            GM_CHECK(std::iscntrl(static_cast<unsigned char>(c)) == 0);
    }
}

void set_sum(std::string& block) {
    block.replace(148, 8, 8, ' ');
    unsigned sum = 0;
    for (const char c : block) sum += static_cast<unsigned char>(c);
    for (std::size_t i = 0; i < 6; ++i, sum >>= 3) block[153 - i] = static_cast<char>('0' + (sum & 7));
}

}  // namespace
}  // namespace guestmem::dma

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
    std::string input{reinterpret_cast<const char*>(data), size};
    guestmem::dma::attack(input);
    for (std::size_t at = 0; at + 512 <= input.size(); at += 512) {
        std::string block = input.substr(at, 512);
        // A block of zeros stays the end; what has no name and no type is content most likely.
        if (block.front() == '\0') continue;
        guestmem::dma::set_sum(block);
        input.replace(at, 512, block);
    }
    guestmem::dma::attack(input);
    return 0;
}
