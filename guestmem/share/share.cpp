// SPDX-License-Identifier: Apache-2.0
#include "guestmem/share/share.hpp"

#include <fmt/format.h>

#include "guestmem/sys/memfd.hpp"

namespace guestmem::share {

Result<std::shared_ptr<const Doorbells>> create_doorbells(std::uint32_t id, std::uint32_t vectors) {
    auto bells = std::make_shared<Doorbells>();
    bells->id = id;
    bells->vectors.reserve(vectors);
    for (std::uint32_t vector = 0; vector < vectors; ++vector)
        bells->vectors.push_back(
            GM_TRY_CONTEXT(EventFd::create(), fmt::format("doorbell of id {} vector {}", id, vector)));
    return std::shared_ptr<const Doorbells>{std::move(bells)};
}

Result<Share> Share::create(const ShareConfig& config) {
    const std::string context = fmt::format("share '{}'", config.name);
    Fd memory = GM_TRY_CONTEXT(create_sealed_memory({.name = config.name,
                                                     .size_bytes = extent_of(config.size_bytes),
                                                     .huge_page_bytes = config.huge_page_bytes}),
                               context);
    Share share{config, std::move(memory)};
    if (config.ids == IdPolicy::stable)
        for (std::uint32_t slot = 0; slot < config.slots; ++slot)
            share.slots_.push_back(GM_TRY_CONTEXT(create_doorbells(slot, config.vectors), context));
    return share;
}

}  // namespace guestmem::share
