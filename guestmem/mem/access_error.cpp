// SPDX-License-Identifier: Apache-2.0
#include "guestmem/mem/access_error.hpp"

#include <fmt/format.h>

namespace guestmem {

namespace {

struct ReasonText {
    AccessReason reason;
    std::string_view name;
    Errc code;
    std::string_view sentence;
};

constexpr ReasonText reason_texts[] = {
    {AccessReason::none, "none", Errc::io, "no error"},
    {AccessReason::hole, "hole", Errc::out_of_range, "nothing is mapped there"},
    {AccessReason::out_of_range, "out_of_range", Errc::out_of_range, "it is beyond the last mapped address"},
    {AccessReason::misaligned, "misaligned", Errc::invalid_argument,
     "an atomic access needs a multiple of its size"},
    {AccessReason::crosses_border, "crosses_border", Errc::invalid_argument,
     "it would lie in two regions, where an atomic access or a pointer needs one"},
    {AccessReason::overflow, "overflow", Errc::out_of_range, "the range would reach past 2^64"},
    {AccessReason::read_only, "read_only", Errc::permission_denied, "the region must not be written"},
    {AccessReason::device, "device", Errc::unsupported, "the address belongs to a device, not to memory"},
    {AccessReason::fault, "fault", Errc::io,
     "the host has lost this page: its file was cut short, or its mapping changed"},
    {AccessReason::untranslated, "untranslated", Errc::permission_denied,
     "the IOMMU has no mapping for this address"},
    {AccessReason::denied, "denied", Errc::permission_denied,
     "the IOMMU's mapping does not permit this access"},
    {AccessReason::translator_failed, "translator_failed", Errc::unavailable,
     "the translator gave no usable answer"},
    {AccessReason::unterminated, "unterminated", Errc::invalid_argument,
     "there is no NUL byte within the limit"},
    {AccessReason::list_full, "list_full", Errc::exhausted, "a scatter list takes no more pieces"},
};

const ReasonText& text_of(AccessReason reason) {
    for (const ReasonText& text : reason_texts)
        if (text.reason == reason) return text;
    return reason_texts[0];
}

}  // namespace

std::string_view to_string(AccessReason reason) { return text_of(reason).name; }

Error AccessError::to_error(std::string_view context) const {
    const ReasonText& text = text_of(reason());
    return Error{text.code, fmt::format("{}: {} at address {:#x}: {}: {} ({} bytes done before)", context,
                                        access() == Access::read ? "read" : "write", address(), text.name,
                                        text.sentence, count_done())};
}

}  // namespace guestmem
