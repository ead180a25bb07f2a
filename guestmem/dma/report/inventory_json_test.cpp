// SPDX-License-Identifier: Apache-2.0
#include "guestmem/dma/report/inventory_json.hpp"

#include <gtest/gtest.h>

#include <algorithm>
#include <nlohmann/json.hpp>

#include "guestmem/dma/report/testing/small_inventory.hpp"

namespace guestmem::dma {
namespace {

TEST(InventoryJsonTest, EverythingIsThereByName) {
    const auto json = nlohmann::json::parse(to_json(testing::small_inventory()));
    EXPECT_EQ(json["units"].size(), 2U);
    EXPECT_EQ(json["units"][0]["registers"], "0xfed90000");
    EXPECT_EQ(json["units"][0]["page_sizes"], "0x40201000");
    EXPECT_EQ(json["units"][0]["can_forbid_reads"], false);
    EXPECT_EQ(json["units"][0]["from"][0], "DMAR offset 0x30");
    const auto& device = json["devices"][0];
    EXPECT_EQ(device["name"], "0000:00:03.0");
    EXPECT_EQ(device["unit"], "vtd@fed90000");
    EXPECT_EQ(device["ids"][0], 0x18);
    EXPECT_EQ(device["protection"], "behind-unit");
    EXPECT_EQ(device["reserved"][0]["kind"], "msi");
    EXPECT_EQ(json["containments"][2]["joins"][0]["reason"], "missing-acs-function");
    EXPECT_EQ(json["containments"][2]["devices"][1], "0000:00:08.1");
    EXPECT_EQ(json["kernel_groups"][0]["type"], "DMA-FQ");
    EXPECT_EQ(json["complaints"][0]["from"], "DMAR offset 0x80");
}

TEST(InventoryJsonTest, WhatIsNotKnownIsLeftOut) {
    const auto json = nlohmann::json::parse(to_json(testing::small_inventory()));
    EXPECT_FALSE(json["units"][1].contains("kernel_name"));
    EXPECT_FALSE(json["devices"][5].contains("unit"));
    EXPECT_FALSE(json["devices"][5].contains("kernel_group"));
    EXPECT_FALSE(json["platform"].contains("address_bits"));
}

TEST(InventoryJsonTest, BytesThatAreNoTextDoNotEndIt) {
    Inventory inventory = testing::small_inventory();
    inventory.devices[0].driver = "\xff\xfe";
    EXPECT_TRUE(nlohmann::json::accept(to_json(inventory)));
}

TEST(InventoryJsonTest, AnEmptyMachineHasEmptyLists) {
    const auto json = nlohmann::json::parse(to_json(Inventory{}));
    for (const char* list : {"units", "devices", "containments", "kernel_groups", "complaints"})
        EXPECT_TRUE(json[list].is_array() && json[list].empty()) << list;
}

TEST(InventoryJsonTest, AllOfItIsAscii) {
    Inventory inventory = testing::small_inventory();
    inventory.settings.release = "6.1\xc2\x9b\xff\x7f\u00fc";
    const std::string text = to_json(inventory);
    EXPECT_TRUE(std::ranges::all_of(text, [](char c) { return c == '\n' || (c >= ' ' && c <= '~'); }))
        << text;
    EXPECT_TRUE(nlohmann::json::accept(text));
}

}  // namespace
}  // namespace guestmem::dma
