// SPDX-License-Identifier: Apache-2.0
#include "guestmem/mem/backends/mode.hpp"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <array>
#include <optional>

namespace guestmem {
namespace {

using ::testing::HasSubstr;

struct Cell {
    bool share;
    bool readonly;
    Rom rom;
    std::optional<BackendMode> mode;  ///< nothing: refused
};

constexpr BackendMode private_ram{OpenMode::read_write, MapAccess::read_write, MapSharing::private_copy,
                                  RegionKind::ram};
constexpr BackendMode private_rom{OpenMode::read, MapAccess::read_only, MapSharing::private_copy,
                                  RegionKind::rom};
constexpr BackendMode clone{OpenMode::read, MapAccess::read_write, MapSharing::private_copy, RegionKind::ram};
constexpr BackendMode shared_ram{OpenMode::read_write, MapAccess::read_write, MapSharing::shared,
                                 RegionKind::ram};
constexpr BackendMode shared_rom{OpenMode::read, MapAccess::read_only, MapSharing::shared, RegionKind::rom};

// All there are: 2 x 2 x 3.
constexpr std::array<Cell, 12> cells{{
    {false, false, Rom::automatic, private_ram},
    {false, false, Rom::off, private_ram},
    {false, false, Rom::on, std::nullopt},
    {false, true, Rom::automatic, private_rom},
    {false, true, Rom::on, private_rom},
    {false, true, Rom::off, clone},
    {true, false, Rom::automatic, shared_ram},
    {true, false, Rom::off, shared_ram},
    {true, false, Rom::on, std::nullopt},
    {true, true, Rom::automatic, shared_rom},
    {true, true, Rom::on, shared_rom},
    {true, true, Rom::off, std::nullopt},
}};

TEST(BackendMode, IsQemusTableCellByCell) {
    for (const Cell& cell : cells) {
        SCOPED_TRACE(::testing::Message() << "share " << cell.share << " readonly " << cell.readonly
                                          << " rom " << static_cast<int>(cell.rom));
        const auto mode = mode_of({.kind = BackendKind::file,
                                   .is_shared = cell.share,
                                   .is_readonly = cell.readonly,
                                   .rom = cell.rom});
        ASSERT_EQ(mode.has_value(), cell.mode.has_value());
        EXPECT_TRUE(!mode || *mode == *cell.mode);
    }
}

TEST(BackendMode, ARefusalSaysWhyAndWhatToDo) {
    for (const bool share : {false, true}) {
        const auto rom = mode_of({.kind = BackendKind::file, .is_shared = share, .rom = Rom::on});
        EXPECT_THAT(rom.error().message(), HasSubstr("add readonly=on"));
    }
    const auto shared =
        mode_of({.kind = BackendKind::file, .is_shared = true, .is_readonly = true, .rom = Rom::off});
    EXPECT_THAT(shared.error().message(), HasSubstr("use share=off"));
}

TEST(BackendMode, WhatIsNotSaidIsAsTheKindHasIt) {
    EXPECT_EQ(mode_of({.kind = BackendKind::ram}).value(), private_ram);
    EXPECT_EQ(mode_of({.kind = BackendKind::file}).value(), private_ram);
    EXPECT_EQ(mode_of({.kind = BackendKind::memfd}).value(), shared_ram);
    EXPECT_EQ(mode_of({.kind = BackendKind::shm}).value(), shared_ram);
    EXPECT_EQ(mode_of({.kind = BackendKind::physical}).value(), shared_ram);
}

}  // namespace
}  // namespace guestmem
