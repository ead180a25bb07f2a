// SPDX-License-Identifier: Apache-2.0
#include "guestmem/share/config.hpp"

#include <fmt/format.h>

#include <algorithm>

#include "guestmem/base/sizes.hpp"
#include "guestmem/sys/host.hpp"

namespace guestmem::share {

std::optional<Problem> find_name_problem(std::string_view name) {
    if (name.empty() || name.size() > max_name_bytes)
        return Problem{fmt::format("a name has 1 to {} bytes, this one has {}", max_name_bytes, name.size()),
                       "write a shorter name, as in \"mailbox\""};
    for (const char c : name)
        if (c < ' ' || c > '~' || c == '/')
            return Problem{"a name is printable ASCII without '/'",
                           "use letters, digits, '-', '_' and '.', as in \"mailbox\""};
    return std::nullopt;
}

std::optional<Problem> find_size_problem(std::uint64_t size_bytes) {
    if (size_bytes > max_size_bytes)
        return Problem{
            fmt::format("size {} is beyond the limit of {}", size_bytes, format_size(max_size_bytes)),
            fmt::format("write at most \"{}\"", format_size(max_size_bytes))};
    const std::uint64_t next = *round_up(std::max<std::uint64_t>(size_bytes, 1), page_size_bytes);
    if (size_bytes == 0)
        return Problem{"size 0: a share needs memory", fmt::format("write at least {}", next)};
    if (size_bytes != next)
        return Problem{fmt::format("size {} is not whole pages of {} bytes", size_bytes, page_size_bytes),
                       fmt::format("the next size is {}", next)};
    return std::nullopt;
}

std::optional<Problem> find_vectors_problem(std::uint64_t vectors) {
    if (vectors >= 1 && vectors <= max_vectors) return std::nullopt;
    return Problem{fmt::format("{} vectors: a share has 1 to {}", vectors, max_vectors),
                   fmt::format("write a number from 1 to {}", max_vectors)};
}

std::optional<Problem> find_slots_problem(std::uint64_t slots, std::uint64_t vectors) {
    if (slots < 1 || slots > max_slots)
        return Problem{fmt::format("{} slots: a share has 1 to {}", slots, max_slots),
                       fmt::format("write a number from 1 to {}", max_slots)};
    if (slots * vectors > max_slots_times_vectors)
        return Problem{
            fmt::format("{} slots x {} vectors are {} doorbells; the limit is {}, because every client "
                        "holds a descriptor for each",
                        slots, vectors, slots * vectors, max_slots_times_vectors),
            fmt::format("with {} vectors write at most {} slots", vectors,
                        max_slots_times_vectors / vectors)};
    return std::nullopt;
}

std::uint64_t extent_of(std::uint64_t size_bytes) {
    // Sizes are at most 2^40: there is always a next power of two.
    return *round_up_to_power_of_two(std::max(size_bytes, page_size_bytes));
}

std::vector<std::uint32_t> owned_slots(const ServiceConfig& config, std::string_view share) {
    std::vector<std::uint32_t> owned;
    for (const DoorConfig& door : config.doors)
        if (door.share == share && !door.vm.empty())
            owned.insert(owned.end(), door.slots.begin(), door.slots.end());
    return owned;
}

Result<ServiceConfig> quick_config(const QuickOptions& options) {
    const ShareConfig& share = options.share;
    for (const auto& problem :
         {find_name_problem(share.name), find_size_problem(share.size_bytes),
          find_vectors_problem(share.vectors), find_slots_problem(share.slots, share.vectors)})
        if (problem)
            return Error{Errc::invalid_argument,
                         fmt::format("share '{}': {}; {}", share.name, problem->what, problem->advice)};

    if (const std::string folder = parent_folder(options.socket); !is_folder(folder))
        return Error{Errc::invalid_argument,
                     fmt::format("socket {}: folder {} does not exist; make it first: mkdir -p {}",
                                 options.socket, folder, folder)};

    ServiceConfig config;
    config.shares = {share};
    config.control.socket.path = options.control.empty() ? options.socket + ".control" : options.control;
    const auto add_door = [&](const std::string& path, std::vector<std::uint32_t> slots) {
        config.doors.push_back(
            {.share = share.name,
             .vm = {},
             .slots = std::move(slots),
             .socket = {.path = path, .owner = {}, .group = {}, .mode = options.socket_mode}});
    };
    add_door(options.socket, {});
    // Classic ids follow the order of arrival: a socket cannot promise one.
    if (share.ids == IdPolicy::stable)
        for (std::uint32_t slot = 0; slot < share.slots; ++slot)
            add_door(fmt::format("{}.{}", options.socket, slot), {slot});
    return config;
}

std::string default_control_path() {
    if (auto path = environment("GUESTMEM_SHARE_CONTROL")) return *path;
    return runtime_folder() + "/share.control";
}

}  // namespace guestmem::share
