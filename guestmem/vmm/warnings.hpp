// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>
#include <functional>
#include <string>
#include <string_view>
#include <utility>

#include "guestmem/base/log.hpp"

/// What an operator of a machine should know, from whoever has to say it.
///
/// Concepts: a machine takes warnings as sentences. Parts that have a Log speak to it through a WarningLog.
/// Contract: limited() says max_warnings_per_second of them and counts the others: a guest and its peers may cause
/// warnings as often as they like.
/// Threads: limited() any. A WarningLog is as its function is.

namespace guestmem::vmm {

inline constexpr std::uint32_t max_warnings_per_second = 20;

using Warn = std::function<void(const std::string&)>;

[[nodiscard]] Warn limited(Warn warn);

/// What a part of the machine logs, from warnings on.
class WarningLog final : public Log {
public:
    explicit WarningLog(Warn warn) : warn_(std::move(warn)) {}
    void write(LogLevel level, std::string_view text) override {
        if (level >= LogLevel::warning) warn_(std::string{text});
    }

private:
    Warn warn_;
};

}  // namespace guestmem::vmm
