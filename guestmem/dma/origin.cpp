// SPDX-License-Identifier: Apache-2.0
#include "guestmem/dma/origin.hpp"

namespace guestmem::dma {

std::string_view to_string(Source source) {
    switch (source) {
        case Source::dmar: return "DMAR";
        case Source::ivrs: return "IVRS";
        case Source::iort: return "IORT";
        case Source::viot: return "VIOT";
        case Source::device_tree: return "device tree";
        case Source::kernel: return "kernel";
        case Source::user: return "user";
    }
    return "unknown";
}

std::string to_string(const Origin& origin) {
    std::string text;
    if (origin.source != Source::user || origin.place.empty()) {
        text = to_string(origin.source);
    }
    if (!origin.place.empty()) {
        text += (text.empty() ? "" : " ") + origin.place;
    }
    if (!origin.overrides.empty()) {
        text += ", overrides " + origin.overrides;
    }
    return text;
}

}  // namespace guestmem::dma
