// SPDX-License-Identifier: Apache-2.0
#include <fmt/format.h>

#include <algorithm>
#include <string>

#include "guestmem/cli/report.hpp"
#include "guestmem/cli/share_options.hpp"
#include "guestmem/share/config_file.hpp"
#include "guestmem/share/rights_lint.hpp"
#include "guestmem/sys/host.hpp"

namespace guestmem::cli {
namespace {

using share::ServiceConfig;
using share::ShareConfig;

/// One device: a door of the VM, and the share behind it.
struct Device {
    std::string id;
    std::string name;
    std::string socket;
    std::uint32_t vectors = 1;
};

/// Neither a shell, QEMU nor libvirt makes anything else of these.
bool is_harmless(char letter) {
    return (letter >= 'a' && letter <= 'z') || (letter >= 'A' && letter <= 'Z') ||
           (letter >= '0' && letter <= '9') || letter == '-' || letter == '_' || letter == '.';
}

/// QEMU's ids have fewer characters than names of shares.
std::string to_id(const std::string& name) {
    std::string id = "share-" + name;
    std::ranges::replace_if(id, [](char letter) { return !is_harmless(letter); }, '-');
    return id;
}

/// A value inside of a QEMU option, where a comma separates.
std::string to_qemu_value(const std::string& text) {
    std::string value;
    for (const char letter : text) value += letter == ',' ? std::string{",,"} : std::string{letter};
    return value;
}

/// One word of a shell's command line.
std::string to_shell_word(const std::string& text) {
    const auto is_plain = [](char letter) {
        return is_harmless(letter) || letter == '/' || letter == ',' || letter == '=';
    };
    if (std::ranges::all_of(text, is_plain)) return text;
    std::string word = "'";
    for (const char letter : text) word += letter == '\'' ? std::string{"'\\''"} : std::string{letter};
    return word + "'";
}

std::string to_attribute(const std::string& text) {
    std::string value;
    for (const char letter : text) switch (letter) {
            case '&': value += "&amp;"; break;
            case '<': value += "&lt;"; break;
            case '>': value += "&gt;"; break;
            case '\'': value += "&apos;"; break;
            case '"': value += "&quot;"; break;
            default: value += letter;
        }
    return value;
}

std::string qemu_line(const Device& device) {
    const std::string chardev = fmt::format("socket,path={},id={}", to_qemu_value(device.socket), device.id);
    return fmt::format("-chardev {} -device ivshmem-doorbell,chardev={},vectors={}\n", to_shell_word(chardev),
                       device.id, device.vectors);
}

std::string libvirt_element(const Device& device) {
    return fmt::format(
        "<shmem name='{}'>\n"
        "  <model type='ivshmem-doorbell'/>\n"
        "  <server path='{}'/>\n"
        "  <msi vectors='{}' ioeventfd='on'/>\n"
        "</shmem>\n",
        to_attribute(device.name), to_attribute(device.socket), device.vectors);
}

/// Whom the service runs as: whom the file names, else who asks.
Result<std::uint32_t> service_user(const ServiceConfig& config) {
    if (config.user.empty()) return own_user();
    return user_id(config.user);
}

/// Why a QEMU of this VM cannot have the share, or its doors.
Result<std::vector<share::DoorConfig>> usable_doors(const ServiceConfig& config,
                                                    const AttachLineOptions& options) {
    const std::string what = fmt::format("vm '{}', share '{}'", options.vm, options.share);
    const std::uint32_t user = GM_TRY(service_user(config));
    share::AccessAnswer answer = GM_TRY(share::explain_access(
        config, {.vm = options.vm, .share = options.share, .is_create = false, .service_user = user}));
    if (!answer.decision.is_allowed || !answer.decision.permissions.may_attach)
        return Error{Errc::permission_denied, fmt::format("{}: it may not attach: {}", what, answer.rule)};
    if (answer.decision.permissions.is_read_only)
        return Error{
            Errc::permission_denied,
            fmt::format("{}: it has the memory read-only ({}), and QEMU's ivshmem-doorbell cannot use that: "
                        "it maps the memory writable or not at all; a host program can, through the "
                        "client library",
                        what, answer.rule)};
    if (!answer.is_in_file)
        return Error{Errc::not_found,
                     fmt::format("{}: the file has no such share, so no socket leads to it", what)};
    if (answer.doors.empty())
        return Error{
            Errc::not_found,
            fmt::format("{}: it has no socket for this share: add a [[vm.attach]] with share and socket to "
                        "the VM",
                        what)};
    return std::move(answer.doors);
}

Result<std::string> describe(const ServiceConfig& config, const AttachLineOptions& options) {
    const auto doors = GM_TRY(usable_doors(config, options));
    const auto found = std::ranges::find(config.shares, options.share, &ShareConfig::name);
    const std::uint32_t vectors = found != config.shares.end() ? found->vectors : 1;
    std::string text;
    std::size_t number = 0;
    for (const share::DoorConfig& door : doors) {
        // Each slot is a device of its own, and two of them cannot have one id.
        const std::string suffix = ++number == 1 ? "" : fmt::format("-{}", number);
        const Device device{.id = to_id(options.share) + suffix,
                            .name = options.share + suffix,
                            .socket = door.socket.path,
                            .vectors = vectors};
        text += options.is_libvirt ? libvirt_element(device) : qemu_line(device);
    }
    return text;
}

}  // namespace

int share_attach_line(const AttachLineOptions& options) {
    if (options.is_qemu == options.is_libvirt) {
        fmt::print(stderr, "guestmem: for whom? Give --qemu or --libvirt\n");
        return exit_usage;
    }
    const auto config = share::read_config_file(options.config);
    if (!config) {
        // What is wrong in a file begins with its name; everything else with the program's.
        const bool has_place = config.error().code() == Errc::invalid_argument;
        fmt::print(stderr, "{}{}\n", has_place ? "" : "guestmem: ", config.error().message());
        return exit_usage;
    }
    const auto text = describe(*config, options);
    if (!text) return report(text.error());
    print(*text);
    return exit_ok;
}

}  // namespace guestmem::cli
