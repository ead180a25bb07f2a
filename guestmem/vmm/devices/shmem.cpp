// SPDX-License-Identifier: Apache-2.0
#include "guestmem/vmm/devices/shmem.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <optional>
#include <utility>

namespace guestmem::vmm {
namespace {

constexpr std::uint64_t size_at = 0x18;
constexpr std::uint64_t name_at = 0x1c;
constexpr std::uint64_t find_at = 0x3c;
constexpr std::size_t image_bytes = 0x40;
constexpr std::size_t register_bytes = 4;

std::uint32_t code_of(share::GuestShmStatus status) { return static_cast<std::uint32_t>(status); }

/// A region that is larger than any host's memory is refused as one for which memory is short.
std::uint32_t code_of(const Error& error, std::uint32_t size_pages) {
    if (error.os_error() == ERANGE && size_pages != 0) return code_of(share::GuestShmStatus::nomem);
    // Whose pages are not found in time.
    if (error.os_error() == ETIMEDOUT) return code_of(share::GuestShmStatus::nomem);
    return code_of(share::guest_shm_status_of(error));
}

template <typename T>
void put(std::array<std::byte, image_bytes>& image, std::size_t at, T value) {
    std::memcpy(image.data() + at, &value, sizeof value);
}

Error illegal_name(std::string why) {
    return Error{Errc::invalid_argument, EINVAL, "a guest's name for a region: " + std::move(why)};
}

}  // namespace

ShmemDevice::ShmemDevice(Options options, RegionWindow& window)
    : options_(std::move(options)), window_(window) {}

void ShmemDevice::detach_all() {
    std::vector<Connection> gone;
    {
        const std::lock_guard lock{mutex_};
        gone.swap(connections_);
    }
    for (const Connection& connection : gone) hide(connection);
}

void ShmemDevice::warn(const std::string& text) const {
    if (options_.warn) options_.warn(text);
}

void ShmemDevice::hide(const Connection& connection) {
    if (connection.bell.is_open()) options_.disconnect_bell(connection.bell);
    if (const auto hidden = window_.hide(connection.place); !hidden)
        warn(fmt::format("{}: {}", options_.name, hidden.error().message()));
    connection.client->detach();
}

void ShmemDevice::set_vector(std::uint32_t vector) {
    const std::lock_guard lock{mutex_};
    vector_ = vector;
}

std::vector<std::shared_ptr<ShmemClient>> ShmemDevice::clients() const {
    const std::lock_guard lock{mutex_};
    std::vector<std::shared_ptr<ShmemClient>> all;
    for (const Connection& connection : connections_) all.push_back(connection.client);
    return all;
}

Result<std::string> ShmemDevice::name_of(const Factory& factory) const {
    std::string name;
    for (const std::byte byte : factory.name) {
        const auto character = std::to_integer<unsigned char>(byte);
        if (character == 0) {
            if (name.empty()) return illegal_name("it is empty");
            return name;
        }
        if (character < 0x20 || character >= 0x7f || character == '/') {
            return illegal_name(fmt::format("its byte {:#04x} is none that a name has", character));
        }
        name.push_back(static_cast<char>(character));
    }
    return illegal_name("no NUL ends it: 31 characters are the most");
}

Result<ShmemDevice::Connection> ShmemDevice::attach(const std::string& name, std::uint32_t size_pages) {
    const share::Decision decision = options_.rights.decide(name);
    if (!decision.is_allowed) {
        return Error{Errc::permission_denied, EACCES,
                     fmt::format("region '{}': refused by {}", name,
                                 options_.rights.describe(decision, options_.rights_file))};
    }
    {
        const std::lock_guard lock{mutex_};
        if (connections_.size() >= max_connections) {
            return Error{Errc::exhausted, ENOMEM,
                         fmt::format("region '{}': this guest has {} connections, the most there are", name,
                                     max_connections)};
        }
    }
    auto shm = std::make_shared<share::HostShm>(GM_TRY(share::HostShm::create(0)));
    GM_TRY(shm->attach({.name = name,
                        .size_pages = size_pages,
                        .control = options_.control,
                        .may_create = size_pages != 0,
                        .timeout_ms = attach_timeout_ms,
                        .ring = share::RingStyle::looks_first}));
    Connection connection;
    {
        const std::lock_guard lock{mutex_};
        connection.number = next_number_++;
    }
    connection.client = std::make_shared<ShmemClient>(
        shm, ShmemClient::Events{.changed = [this] { update_line(); },
                                 .leave = [this, number = connection.number] { leave(number); },
                                 .ended = [this, number = connection.number] { end(number); },
                                 .moved = [this, number = connection.number] { move_bell(number); },
                                 .warn = [this](const std::string& text) { warn(text); }});
    connection.place = GM_TRY(window_.show(name, connection.client, GM_TRY(connection.client->memory())));
    connect_bell(connection);
    return connection;
}

/// Without one kicks are no less heard, but by a thread of ours first.
void ShmemDevice::connect_bell(Connection& connection) const {
    if (!options_.connect_bell) return;
    auto bell = connection.client->bell();
    if (!bell) return warn(fmt::format("{}: {}", options_.name, bell.error().message()));
    if (const auto done = options_.connect_bell(bell->view()); !done)
        return warn(fmt::format("{}: {}", options_.name, done.error().message()));
    connection.bell = *std::move(bell);
}

void ShmemDevice::move_bell(std::uint64_t number) {
    const std::lock_guard lock{mutex_};
    const auto found = std::ranges::find(connections_, number, &Connection::number);
    if (found == connections_.end()) return;
    if (found->bell.is_open()) options_.disconnect_bell(found->bell);
    found->bell = Fd{};
    if (!found->client->has_ended()) connect_bell(*found);
}

void ShmemDevice::refuse(std::uint32_t status) {
    factory_.status = status;
    factory_.shmem = 0;
    factory_.size = 0;
}

void ShmemDevice::create(std::uint32_t size_pages) {
    const std::unique_lock attaching{attach_mutex_, std::try_to_lock};
    if (!attaching) {
        warn(fmt::format("{}: a request while another processor's is being served: refused", options_.name));
        const std::lock_guard lock{mutex_};
        return refuse(code_of(share::GuestShmStatus::unknown_failure));
    }
    Factory before;
    {
        const std::lock_guard lock{mutex_};
        before = factory_;
    }
    const auto name = name_of(before);
    auto made = name ? attach(*name, size_pages) : Result<Connection>{name.error()};
    if (!made) warn(fmt::format("{}: {}", options_.name, made.error().message()));
    const auto client = made ? made->client : nullptr;
    const std::uint64_t number = made ? made->number : 0;
    {
        const std::lock_guard lock{mutex_};
        if (made) {
            factory_.status = code_of(share::GuestShmStatus::ok);
            factory_.shmem = made->place.value();
            factory_.size = static_cast<std::uint32_t>(made->client->size_pages());
            connections_.push_back(*std::move(made));
        } else {
            refuse(code_of(made.error(), size_pages));
        }
    }
    // Before it was in the list nobody could end it, or change its bell.
    if (client && client->has_ever_moved()) move_bell(number);
    if (client && client->has_ended()) end(number);
    if (options_.watch) options_.watch();
}

void ShmemDevice::find(std::uint32_t number) {
    const std::lock_guard lock{mutex_};
    std::vector<const Connection*> live;
    for (const Connection& connection : connections_)
        if (!connection.client->has_ended()) live.push_back(&connection);
    if (number >= live.size()) {
        factory_.status = code_of(share::GuestShmStatus::does_not_exist);
        return;
    }
    const Connection& found = *live[number];
    factory_.status = code_of(share::GuestShmStatus::ok);
    factory_.shmem = found.place.value();
    factory_.size = static_cast<std::uint32_t>(found.client->size_pages());
    factory_.name = {};
    const std::string& name = found.client->name();
    std::memcpy(factory_.name.data(), name.data(), std::min(name.size(), name_field_bytes - 1));
}

void ShmemDevice::leave(std::uint64_t number) {
    Connection gone;
    {
        const std::lock_guard lock{mutex_};
        const auto found = std::ranges::find(connections_, number, &Connection::number);
        if (found == connections_.end()) return;
        gone = std::move(*found);
        connections_.erase(found);
    }
    hide(gone);
    if (options_.watch) options_.watch();
    update_line();
}

void ShmemDevice::end(std::uint64_t number) {
    std::optional<GuestAddress> place;
    {
        const std::lock_guard lock{mutex_};
        const auto found = std::ranges::find(connections_, number, &Connection::number);
        if (found != connections_.end()) place = found->place;
    }
    if (!place) return;
    if (const auto done = window_.withdraw(*place); !done)
        warn(fmt::format("{}: {}", options_.name, done.error().message()));
    if (options_.watch) options_.watch();
}

void ShmemDevice::update_line() {
    // The line says what is so when it is set: changes that meet here come one after another.
    const std::lock_guard lock{line_mutex_};
    const auto all = clients();
    const bool is_due =
        std::ranges::any_of(all, [](const auto& client) { return client->is_interrupt_due(); });
    if (options_.message) options_.message(is_due);
    if (is_due == is_up_) return;
    is_up_ = is_due;
    if (options_.line) options_.line->set(is_due);
}

void ShmemDevice::read(std::uint64_t offset, std::span<std::byte> data) {
    if (offset >= image_bytes || data.size() > image_bytes - offset) return;
    std::array<std::byte, image_bytes> image{};
    {
        const std::lock_guard lock{mutex_};
        put(image, 0x00, signature);
        put(image, 0x08, factory_.shmem);
        put(image, 0x10, vector_);
        put(image, 0x14, factory_.status);
        put(image, size_at, factory_.size);
        std::memcpy(image.data() + name_at, factory_.name.data(), name_field_bytes);
    }
    std::memcpy(data.data(), image.data() + offset, data.size());
}

void ShmemDevice::write(std::uint64_t offset, std::span<const std::byte> data) {
    // The bytes of the name first: a wide store may have both, and the size says that the name is there.
    {
        const std::lock_guard lock{mutex_};
        for (std::size_t at = 0; at < data.size(); ++at) {
            const std::uint64_t place = offset + at;
            if (place >= name_at && place - name_at < name_field_bytes)
                factory_.name[place - name_at] = data[at];
        }
    }
    if ((offset != size_at && offset != find_at) || data.size() < register_bytes) return;
    std::uint32_t value = 0;
    std::memcpy(&value, data.data(), register_bytes);
    if (offset == size_at) {
        create(value);
    } else {
        find(value);
    }
}

}  // namespace guestmem::vmm
