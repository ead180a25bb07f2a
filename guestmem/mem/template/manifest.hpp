// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstddef>
#include <cstdint>
#include <map>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "guestmem/base/result.hpp"

/// What a template says of itself: the layout of its memory, its sums, where it comes from.
///
/// Concepts: docs/protocols/template.md has the format. The image is one file in which each region has its place.
/// Contract: what parse_manifest() gives is checked whole: regions are whole pages, overlap neither in the guest nor in
/// the image, and end within both; names are names. A text with another sum than it says of itself is an error
/// (corrupt), and so is a version that is not known (unsupported).
/// Threads: any; plain values.
/// Limits: a text of max_manifest_bytes, max_template_regions regions, an image of max_image_bytes.

namespace guestmem {

inline constexpr std::size_t max_manifest_bytes = std::size_t{1} << 20;
inline constexpr std::size_t max_template_regions = 1024;
inline constexpr std::uint64_t max_image_bytes = std::uint64_t{1} << 46;
inline constexpr std::uint64_t max_state_bytes = std::uint64_t{1} << 32;
inline constexpr std::size_t max_provenance_entries = 64;
inline constexpr std::uint32_t template_version = 1;

/// 32 hexadecimal digits.
using TemplateId = std::string;

struct ImageRegion {
    std::string name;
    std::uint64_t guest_address = 0;
    std::uint64_t size_bytes = 0;
    std::uint64_t image_offset_bytes = 0;
    bool is_rom = false;

    friend bool operator==(const ImageRegion&, const ImageRegion&) = default;
};

/// How the pages stand in the image's file.
enum class ImageEncoding : std::uint8_t {
    raw,   ///< page N at N pages: what can be mapped
    zstd,  ///< compressed_image.hpp
};

/// The template of which only the difference is stored.
struct ParentLink {
    std::string name;  ///< in the same store
    TemplateId id;
    std::uint64_t count_pages = 0;  ///< that are the difference's own
    std::uint64_t pages_sum = 0;    ///< of the file that says which

    friend bool operator==(const ParentLink&, const ParentLink&) = default;
};

struct Manifest {
    TemplateId id = {};
    std::uint64_t made_at_s = 0;  ///< seconds since 1970
    std::uint32_t owner = 0;      ///< uid
    std::vector<ImageRegion> regions = {};
    std::uint64_t image_bytes = 0;  ///< of memory
    ImageEncoding encoding = ImageEncoding::raw;
    std::uint64_t stored_bytes = 0;  ///< the size of the image's file: image_bytes when it is raw
    std::uint64_t chunks_sum = 0;    ///< of the index of a compressed image, else 0
    std::uint64_t data_pages = 0;    ///< that are no zeros
    std::uint64_t sum_of_sums = 0;
    std::int64_t image_changed_ns = 0;  ///< the image's mtime: a write since then shows
    std::uint64_t state_bytes = 0;
    std::uint64_t state_sum = 0;
    std::optional<ParentLink> parent = std::nullopt;
    std::map<std::string, std::string> provenance = {};

    friend bool operator==(const Manifest&, const Manifest&) = default;
};

[[nodiscard]] std::string_view to_string(ImageEncoding encoding);

/// A letter or digit, then letters, digits, '.', '_' or '-': at most 128 in all.
[[nodiscard]] bool is_template_name(std::string_view name);
[[nodiscard]] bool is_template_id(std::string_view id);

/// All that is wrong with it, as an error (corrupt).
[[nodiscard]] Result<void> check_manifest(const Manifest& manifest);

[[nodiscard]] Result<Manifest> parse_manifest(std::string_view text);
[[nodiscard]] std::string to_text(const Manifest& manifest);

}  // namespace guestmem
