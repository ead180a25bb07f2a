// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <sys/wait.h>

#include <charconv>
#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <span>
#include <sstream>
#include <string>
#include <string_view>
#include <vector>

#include "guestmem/sys/testing/temp_folder.hpp"

/// ACPICA's iasl as a second opinion: what it reads in a table, and tables that it makes.
///
/// Concepts: `iasl -d` prints a field a line, "[038h 0056   8]   Register Base Address : 00000000FED90000"; each
/// becomes an IaslField. Lines that it prints without a place are not fields.
/// Contract: has_iasl() first: a test without it is skipped. An empty answer is a failure of iasl.
/// Threads: any; each call has a folder of its own.

namespace guestmem::dma::testing {

struct IaslField {
    std::size_t offset = 0;
    std::size_t size_bytes = 0;
    std::string name = {};
    std::string value = {};  ///< as printed, without the remark in brackets: "00000000FED90000", "00,01"

    /// The value as the hexadecimal number that it is; of a list "00,01" the first.
    [[nodiscard]] std::uint64_t number() const {
        std::uint64_t number = 0;
        std::from_chars(value.data(), value.data() + value.size(), number, 16);
        return number;
    }
};

inline bool has_iasl() { return std::system("iasl -v >/dev/null 2>&1") == 0; }

class IaslFolder {
public:
    [[nodiscard]] bool run(const std::string& command) const {
        const int status = std::system(("cd " + folder_.path() + " && " + command + " >log 2>&1").c_str());
        return WIFEXITED(status) && WEXITSTATUS(status) == 0;
    }
    [[nodiscard]] const guestmem::testing::TempFolder& files() const { return folder_; }

private:
    guestmem::testing::TempFolder folder_;
};

/// The text of `iasl -d`; empty when it fails.
inline std::string iasl_text(std::span<const std::byte> table) {
    const IaslFolder folder;
    folder.files().write("table.dat", {reinterpret_cast<const char*>(table.data()), table.size()});
    return folder.run("iasl -d table.dat") ? folder.files().read("table.dsl") : std::string{};
}

/// The fields that `iasl -d` sees in a table, in its order.
inline std::vector<IaslField> iasl_fields(std::span<const std::byte> table) {
    std::vector<IaslField> fields;
    std::istringstream lines{iasl_text(table)};
    for (std::string line; std::getline(lines, line);) {
        const std::size_t close = line.find(']');
        const std::size_t colon = line.find(" : ");
        if (!line.starts_with('[') || close == std::string::npos || colon == std::string::npos) continue;
        IaslField field;
        std::from_chars(line.data() + 1, line.data() + close, field.offset, 16);
        const std::size_t size_at = line.find_last_of(' ', close) + 1;
        std::from_chars(line.data() + size_at, line.data() + close, field.size_bytes);
        const std::size_t name_at = line.find_first_not_of(' ', close + 1);
        field.name = line.substr(name_at, colon - name_at);
        const std::string value = line.substr(colon + 3);
        field.value = value.substr(0, value.find(" ["));
        fields.push_back(std::move(field));
    }
    return fields;
}

/// Compiles a table from the source text of iasl's table language; empty when it fails.
inline std::vector<std::byte> iasl_compile(std::string_view text) {
    const IaslFolder folder;
    folder.files().write("table.asl", text);
    if (!folder.run("iasl -p table table.asl")) return {};
    const std::string bytes = folder.files().read("table.aml");
    const auto* const first = reinterpret_cast<const std::byte*>(bytes.data());
    return {first, first + bytes.size()};
}

/// The text of `iasl -T SIGNATURE`; empty when it fails.
inline std::string iasl_template(const std::string& signature) {
    const IaslFolder folder;
    if (!folder.run("iasl -T " + signature)) return {};
    for (const std::string& name : folder.files().entries())
        if (name.ends_with(".asl")) return folder.files().read(name);
    return {};
}

}  // namespace guestmem::dma::testing
