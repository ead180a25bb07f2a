// SPDX-License-Identifier: Apache-2.0
#include "guestmem/mem/template/manifest.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <charconv>
#include <nlohmann/json.hpp>
#include <span>
#include <utility>

#include "guestmem/base/sizes.hpp"
#include "guestmem/mem/template/page_sum.hpp"

namespace guestmem {

namespace {

using nlohmann::json;

constexpr std::string_view format_name = "guestmem-template";
constexpr int max_depth = 4;
constexpr std::size_t max_name_bytes = 128;
constexpr std::size_t max_region_name_bytes = 255;
constexpr std::size_t max_provenance_bytes = 4096;

Error wrong(std::string_view what) { return Error{Errc::corrupt, fmt::format("manifest: {}", what)}; }

std::string dump(const json& object) { return object.dump(2, ' ', true, json::error_handler_t::replace); }

std::uint64_t sum_of_text(const std::string& text) { return bytes_sum(std::as_bytes(std::span{text})); }

std::string to_hex(std::uint64_t value) { return fmt::format("{:016x}", value); }

/// Reads fields of one object; what is missing or of another type is remembered, and the first is told.
class Fields {
public:
    explicit Fields(const json& object) : object_(object) {}

    std::string text(const char* name, std::size_t limit_bytes) {
        const json* const found = find(name);
        if (found == nullptr || !found->is_string()) return complain(name, "a text"), std::string{};
        const auto& text = found->get_ref<const std::string&>();
        if (text.size() > limit_bytes) return complain(name, "that short"), std::string{};
        return text;
    }
    std::uint64_t number(const char* name) {
        const json* const found = find(name);
        if (found == nullptr || !found->is_number_unsigned()) return complain(name, "a number"), 0;
        return found->get<std::uint64_t>();
    }
    std::uint32_t number_of_32_bits(const char* name) {
        const std::uint64_t value = number(name);
        if (!std::in_range<std::uint32_t>(value)) return complain(name, "in range"), 0;
        return static_cast<std::uint32_t>(value);
    }
    std::int64_t signed_number(const char* name) {
        const json* const found = find(name);
        if (found == nullptr || !found->is_number_integer()) return complain(name, "a number"), 0;
        if (found->is_number_unsigned() && !std::in_range<std::int64_t>(found->get<std::uint64_t>()))
            return complain(name, "in range"), 0;
        return found->get<std::int64_t>();
    }
    bool flag(const char* name) {
        const json* const found = find(name);
        if (found == nullptr || !found->is_boolean()) return complain(name, "true or false"), false;
        return found->get<bool>();
    }
    std::uint64_t hex(const char* name) {
        const std::string digits = text(name, 16);
        std::uint64_t value = 0;
        const auto [end, status] = std::from_chars(digits.data(), digits.data() + digits.size(), value, 16);
        if (digits.size() != 16 || status != std::errc{} || end != digits.data() + digits.size())
            return complain(name, "16 hexadecimal digits"), 0;
        return value;
    }
    /// Null when it is missing or no list, or no object.
    const json* list(const char* name) { return of_type(name, &json::is_array, "a list"); }
    const json* object(const char* name) { return of_type(name, &json::is_object, "an object"); }

    [[nodiscard]] const std::optional<std::string>& complaint() const { return complaint_; }

private:
    const json* find(const char* name) const {
        const auto found = object_.find(name);
        return found == object_.end() ? nullptr : &*found;
    }
    const json* of_type(const char* name, bool (json::*is)() const noexcept, std::string_view what) {
        const json* const found = find(name);
        if (found != nullptr && (found->*is)()) return found;
        complain(name, what);
        return nullptr;
    }
    void complain(const char* name, std::string_view what) {
        if (!complaint_) complaint_ = fmt::format("field '{}' is not {}", name, what);
    }

    const json& object_;
    std::optional<std::string> complaint_;
};

Result<ImageRegion> to_region(const json& object) {
    if (!object.is_object()) return wrong("a region is no object");
    Fields fields{object};
    ImageRegion region{.name = fields.text("name", max_region_name_bytes),
                       .guest_address = fields.number("guest_address"),
                       .size_bytes = fields.number("size"),
                       .image_offset_bytes = fields.number("image_offset"),
                       .is_rom = fields.flag("rom")};
    if (fields.complaint()) return wrong("region: " + *fields.complaint());
    return region;
}

json to_json(const ImageRegion& region) {
    return {{"name", region.name},
            {"guest_address", region.guest_address},
            {"size", region.size_bytes},
            {"image_offset", region.image_offset_bytes},
            {"rom", region.is_rom}};
}

Result<void> read_provenance(const json& object, std::map<std::string, std::string>& provenance) {
    if (object.size() > max_provenance_entries) return wrong("there are too many entries of provenance");
    for (const auto& [key, value] : object.items()) {
        if (!value.is_string() || key.size() > max_provenance_bytes ||
            value.get_ref<const std::string&>().size() > max_provenance_bytes)
            return wrong("an entry of provenance is no short text");
        provenance.emplace(key, value.get<std::string>());
    }
    return {};
}

/// Ranges of the guest or of the image, in pairs: whole pages, within the end, and none over another.
struct Piece {
    std::uint64_t begin;
    std::uint64_t size;
    const ImageRegion* region;
};
Result<void> check_pieces(std::vector<Piece> pieces, std::uint64_t last_allowed, std::string_view where) {
    std::ranges::sort(pieces, {}, &Piece::begin);
    const Piece* before = nullptr;
    for (const Piece& piece : pieces) {
        const std::string& name = piece.region->name;
        if (piece.begin % page_size_bytes != 0 || piece.size % page_size_bytes != 0 || piece.size == 0)
            return wrong(fmt::format("region '{}' is not whole pages of {}", name, where));
        if (piece.size - 1 > last_allowed || piece.begin > last_allowed - (piece.size - 1))
            return wrong(fmt::format("region '{}' ends beyond {}", name, where));
        if (before != nullptr && piece.begin - before->begin < before->size)
            return wrong(
                fmt::format("regions '{}' and '{}' overlap in {}", before->region->name, name, where));
        before = &piece;
    }
    return {};
}

/// What the files beside the manifest have to be.
Result<void> check_storage(const Manifest& manifest) {
    const bool is_raw = manifest.encoding == ImageEncoding::raw;
    if (is_raw && (manifest.stored_bytes != manifest.image_bytes || manifest.chunks_sum != 0))
        return wrong("a raw image has as many bytes as the memory, and no chunks");
    if (manifest.stored_bytes > max_image_bytes) return wrong("the image is too large");
    if (!manifest.parent) return {};
    if (!is_template_name(manifest.parent->name) || !is_template_id(manifest.parent->id))
        return wrong("the parent has no name or id that could be one");
    const std::uint64_t count_own = manifest.parent->count_pages;
    if (count_own > manifest.image_bytes / page_size_bytes || manifest.data_pages > count_own)
        return wrong("a difference has no more pages than the memory, and no more with data than it has");
    return {};
}

Result<ParentLink> to_parent(const json& object) {
    Fields fields{object};
    ParentLink parent{.name = fields.text("name", max_name_bytes),
                      .id = fields.text("id", 32),
                      .count_pages = fields.number("pages"),
                      .pages_sum = fields.hex("pages_sum")};
    if (fields.complaint()) return wrong("parent: " + *fields.complaint());
    return parent;
}

Result<ImageEncoding> to_encoding(std::string_view text) {
    if (text == to_string(ImageEncoding::raw)) return ImageEncoding::raw;
    if (text == to_string(ImageEncoding::zstd)) return ImageEncoding::zstd;
    return Error{
        Errc::unsupported,
        fmt::format("manifest: an image in the encoding '{}'; this program knows raw and zstd", text)};
}

}  // namespace

bool is_template_name(std::string_view name) {
    const auto is_alphanumeric = [](char c) {
        return (c >= '0' && c <= '9') || (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z');
    };
    const auto is_allowed = [&](char c) { return is_alphanumeric(c) || c == '.' || c == '_' || c == '-'; };
    return !name.empty() && name.size() <= max_name_bytes && is_alphanumeric(name.front()) &&
           std::ranges::all_of(name, is_allowed);
}

bool is_template_id(std::string_view id) {
    return id.size() == 32 &&
           std::ranges::all_of(id, [](char c) { return (c >= '0' && c <= '9') || (c >= 'a' && c <= 'f'); });
}

std::string_view to_string(ImageEncoding encoding) { return encoding == ImageEncoding::raw ? "raw" : "zstd"; }

Result<void> check_manifest(const Manifest& manifest) {
    if (!is_template_id(manifest.id)) return wrong("the id is not 32 hexadecimal digits");
    // The year 9999.
    constexpr std::uint64_t last_second = 253'402'300'799;
    if (manifest.made_at_s > last_second || manifest.image_changed_ns < 0)
        return wrong("a time in it is none");
    if (manifest.regions.empty() || manifest.regions.size() > max_template_regions)
        return wrong(fmt::format("there are {} regions; 1 to {} are allowed", manifest.regions.size(),
                                 max_template_regions));
    if (manifest.image_bytes == 0 || manifest.image_bytes % page_size_bytes != 0 ||
        manifest.image_bytes > max_image_bytes)
        return wrong(fmt::format("an image of {} bytes: whole pages, at most {}, are allowed",
                                 manifest.image_bytes, max_image_bytes));
    const std::uint64_t count_pages = manifest.image_bytes / page_size_bytes;
    if (manifest.data_pages > count_pages) return wrong("there are more pages with data than pages");
    GM_TRY(check_storage(manifest));
    if (manifest.state_bytes > max_state_bytes) return wrong("the state is too large");
    std::vector<Piece> guest;
    std::vector<Piece> image;
    for (const ImageRegion& region : manifest.regions) {
        if (region.name.empty() || region.name.size() > max_region_name_bytes)
            return wrong("a region has no name, or too long a one");
        guest.push_back({region.guest_address, region.size_bytes, &region});
        image.push_back({region.image_offset_bytes, region.size_bytes, &region});
    }
    GM_TRY(check_pieces(std::move(guest), ~std::uint64_t{0}, "the guest"));
    GM_TRY(check_pieces(std::move(image), manifest.image_bytes - 1, "the image"));
    return {};
}

Result<Manifest> parse_manifest(std::string_view text) {
    if (text.size() > max_manifest_bytes)
        return Error{Errc::out_of_range,
                     fmt::format("manifest: it has more than {} bytes", max_manifest_bytes)};
    // What nests deeper than a manifest is left out: to write it down again would take a stack as deep.
    const auto is_shallow = [](int depth, json::parse_event_t, const json&) { return depth <= max_depth; };
    json object = json::parse(text, is_shallow, false);
    if (!object.is_object()) return wrong("it is no JSON object");
    Fields fields{object};
    if (fields.text("format", 64) != format_name)
        return wrong(fmt::format("its format is not {}", format_name));
    if (const std::uint64_t version = fields.number("version");
        !fields.complaint() && version != template_version)
        return Error{Errc::unsupported, fmt::format("manifest: version {}; this program knows version {}",
                                                    version, template_version)};
    const std::uint64_t said = fields.hex("sum");
    if (fields.complaint()) return wrong(*fields.complaint());
    object.erase("sum");
    if (const std::uint64_t sum = sum_of_text(dump(object)); sum != said)
        return wrong(fmt::format("its sum is {}, and it says {}: it was changed", to_hex(sum), to_hex(said)));

    Manifest manifest{.id = fields.text("id", 32),
                      .made_at_s = fields.number("made_at"),
                      .owner = fields.number_of_32_bits("owner"),
                      .image_bytes = fields.number("image_bytes"),
                      .stored_bytes = fields.number("stored_bytes"),
                      .chunks_sum = fields.hex("chunks_sum"),
                      .data_pages = fields.number("data_pages"),
                      .sum_of_sums = fields.hex("sum_of_sums"),
                      .image_changed_ns = fields.signed_number("image_changed_ns"),
                      .state_bytes = fields.number("state_bytes"),
                      .state_sum = fields.hex("state_sum")};
    const std::string encoding = fields.text("encoding", 64);
    const json* const regions = fields.list("regions");
    const json* const provenance = fields.object("provenance");
    if (fields.complaint()) return wrong(*fields.complaint());
    manifest.encoding = GM_TRY(to_encoding(encoding));
    if (regions->size() > max_template_regions) return wrong("there are too many regions");
    for (const json& region : *regions) {
        ImageRegion one = GM_TRY(to_region(region));
        manifest.regions.push_back(std::move(one));
    }
    GM_TRY(read_provenance(*provenance, manifest.provenance));
    if (object.contains("parent")) {
        const json* const parent = fields.object("parent");
        if (parent == nullptr) return wrong(*fields.complaint());
        manifest.parent = GM_TRY(to_parent(*parent));
    }
    GM_TRY(check_manifest(manifest));
    return manifest;
}

std::string to_text(const Manifest& manifest) {
    json regions = json::array();
    for (const ImageRegion& region : manifest.regions) regions.push_back(to_json(region));
    json object{{"format", format_name},
                {"version", template_version},
                {"id", manifest.id},
                {"made_at", manifest.made_at_s},
                {"owner", manifest.owner},
                {"regions", std::move(regions)},
                {"image_bytes", manifest.image_bytes},
                {"encoding", to_string(manifest.encoding)},
                {"stored_bytes", manifest.stored_bytes},
                {"chunks_sum", to_hex(manifest.chunks_sum)},
                {"data_pages", manifest.data_pages},
                {"sum_of_sums", to_hex(manifest.sum_of_sums)},
                {"image_changed_ns", manifest.image_changed_ns},
                {"state_bytes", manifest.state_bytes},
                {"state_sum", to_hex(manifest.state_sum)},
                {"provenance", manifest.provenance}};
    if (manifest.parent)
        object["parent"] = {{"name", manifest.parent->name},
                            {"id", manifest.parent->id},
                            {"pages", manifest.parent->count_pages},
                            {"pages_sum", to_hex(manifest.parent->pages_sum)}};
    object["sum"] = to_hex(sum_of_text(dump(object)));
    return dump(object) + "\n";
}

}  // namespace guestmem
