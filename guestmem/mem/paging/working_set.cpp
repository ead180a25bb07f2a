// SPDX-License-Identifier: Apache-2.0
#include "guestmem/mem/paging/working_set.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <cstring>
#include <string_view>

#include "guestmem/base/endian.hpp"

namespace guestmem {
namespace {

constexpr std::array<char, 8> magic{'G', 'M', 'W', 'S', 'E', 'T', '\0', '\0'};
constexpr std::uint32_t version = 1;
constexpr std::size_t id_digits = 32;
constexpr std::size_t number_bytes = sizeof(std::uint64_t);
// magic, version, zero, image pages, count, id
constexpr std::size_t header_bytes = 8 + 4 + 4 + 8 + 8 + id_digits;
constexpr std::size_t max_pages = (max_working_set_bytes - header_bytes) / number_bytes;

Error bad(Errc code, std::string_view why) { return Error{code, fmt::format("working set: {}", why)}; }

Result<void> check(const WorkingSet& set, Errc code) {
    const auto is_digit = [](char c) { return (c >= '0' && c <= '9') || (c >= 'a' && c <= 'f'); };
    if (set.template_id.size() != id_digits || !std::ranges::all_of(set.template_id, is_digit))
        return bad(code, "the id of its template is not 32 digits 0-9a-f");
    if (set.pages.size() > max_pages)
        return bad(code, fmt::format("{} pages are more than {}", set.pages.size(), max_pages));
    std::vector<std::uint64_t> sorted = set.pages;
    std::ranges::sort(sorted);
    if (!sorted.empty() && sorted.back() >= set.image_pages)
        return bad(code,
                   fmt::format("page {} is outside the image of {} pages", sorted.back(), set.image_pages));
    if (const auto twice = std::ranges::adjacent_find(sorted); twice != sorted.end())
        return bad(code, fmt::format("page {} is in it twice", *twice));
    return {};
}

/// Integers and characters from the front.
class Reader {
public:
    explicit Reader(std::span<const std::byte> bytes) : bytes_(bytes) {}
    template <typename T>
    T number() {
        const T value = load_little<T>(bytes_.first<sizeof(T)>());
        bytes_ = bytes_.subspan(sizeof(T));
        return value;
    }
    std::string text(std::size_t size) {
        std::string taken{reinterpret_cast<const char*>(bytes_.data()), size};
        bytes_ = bytes_.subspan(size);
        return taken;
    }
    [[nodiscard]] std::size_t left_bytes() const { return bytes_.size(); }

private:
    std::span<const std::byte> bytes_;
};

template <typename T>
void add_number(std::vector<std::byte>& to, T value) {
    std::array<std::byte, sizeof(T)> bytes{};
    store_little<T>(bytes, value);
    to.insert(to.end(), bytes.begin(), bytes.end());
}

}  // namespace

Result<WorkingSet> parse_working_set(std::span<const std::byte> bytes) {
    if (bytes.size() > max_working_set_bytes)
        return bad(Errc::corrupt,
                   fmt::format("{} bytes are more than {}", bytes.size(), max_working_set_bytes));
    if (bytes.size() < header_bytes)
        return bad(Errc::corrupt,
                   fmt::format("{} bytes are less than its header of {}", bytes.size(), header_bytes));
    Reader reader{bytes};
    if (reader.text(magic.size()) != std::string_view{magic.data(), magic.size()})
        return bad(Errc::corrupt, "it does not begin with GMWSET");
    if (const auto found = reader.number<std::uint32_t>(); found != version)
        return bad(Errc::corrupt, fmt::format("version {}; version {} is known here", found, version));
    if (reader.number<std::uint32_t>() != 0)
        return bad(Errc::corrupt, "the field behind the version is not 0");
    WorkingSet set;
    set.image_pages = reader.number<std::uint64_t>();
    const auto count = reader.number<std::uint64_t>();
    set.template_id = reader.text(id_digits);
    if (reader.left_bytes() % number_bytes != 0 || count != reader.left_bytes() / number_bytes)
        return bad(Errc::corrupt, fmt::format("{} pages do not fill {} bytes", count, reader.left_bytes()));
    set.pages.reserve(count);
    for (std::uint64_t i = 0; i < count; ++i) set.pages.push_back(reader.number<std::uint64_t>());
    GM_TRY(check(set, Errc::corrupt));
    return set;
}

Result<std::vector<std::byte>> to_bytes(const WorkingSet& set) {
    GM_TRY(check(set, Errc::invalid_argument));
    std::vector<std::byte> bytes;
    bytes.reserve(header_bytes + set.pages.size() * number_bytes);
    for (const char c : magic) bytes.push_back(static_cast<std::byte>(c));
    add_number(bytes, version);
    add_number(bytes, std::uint32_t{0});
    add_number(bytes, set.image_pages);
    add_number(bytes, std::uint64_t{set.pages.size()});
    for (const char c : set.template_id) bytes.push_back(static_cast<std::byte>(c));
    for (const std::uint64_t page : set.pages) add_number(bytes, page);
    return bytes;
}

}  // namespace guestmem
