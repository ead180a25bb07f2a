// SPDX-License-Identifier: Apache-2.0
#include "guestmem/dma/discover/smmu_schema.hpp"

#include <fmt/format.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <set>

#include "guestmem/sys/fd.hpp"

namespace guestmem::dma {
namespace {

using ::testing::HasSubstr;

TEST(SmmuSchema, ATextOccursOncePerTable) {
    std::set<std::string_view> words;
    for (const SmmuWordRow& row : smmu_word_rows()) {
        EXPECT_TRUE(words.insert(row.text).second) << row.text;
        EXPECT_EQ(find_smmu_word(row.text), &row);
    }
    for (const SmmuTypeRow& row : smmu_type_rows()) {
        EXPECT_TRUE(words.insert(row.text).second) << row.text << " would be an option and a type";
        EXPECT_EQ(find_smmu_type(row.text), &row);
        EXPECT_EQ(&row_of(row.type), &row);
    }
    EXPECT_EQ(find_smmu_word("smm"), nullptr);
    EXPECT_EQ(find_smmu_type(""), nullptr);
}

TEST(SmmuSchema, EveryOptionThatQnxDocumentsIsThere) {
    for (const char* word :
         {"allow", "debug", "device", "use", "smmu", "unit", "reserved", "safety", "foreground", "user"}) {
        const SmmuWordRow* const row = find_smmu_word(word);
        ASSERT_NE(row, nullptr) << word;
        EXPECT_EQ(row->language, SmmuLanguage::qnx) << word;
    }
    EXPECT_EQ(find_smmu_word("merge")->language, SmmuLanguage::ours);
    EXPECT_EQ(find_smmu_word("override")->language, SmmuLanguage::ours);
}

TEST(SmmuSchema, ThePageHasTheLanguageReference) {
    const auto page = read_text_file(GUESTMEM_SOURCE "/docs/guide/smmu-words.md", 1 << 20);
    ASSERT_TRUE(page) << page.error().message();
    EXPECT_THAT(*page, HasSubstr(smmu_language_reference()))
        << "the page has what smmu_language_reference() prints";
}

TEST(SmmuSchema, TheReferenceHasEveryWordAndTypeWithTheirArguments) {
    const std::string reference = smmu_language_reference();
    for (const SmmuWordRow& row : smmu_word_rows())
        EXPECT_THAT(reference, HasSubstr(fmt::format("| `{}` |", row.text)));
    for (const SmmuTypeRow& row : smmu_type_rows())
        EXPECT_THAT(reference, HasSubstr(fmt::format("| `{}` |", row.text)));
    EXPECT_THAT(reference, HasSubstr("| `merge` | `[unit:NAME \\| DEVICE]` | ours | keeps"));
    EXPECT_THAT(reference,
                HasSubstr("| `vtd` | `require \\| ignore` | `PADDR` | none allowed | QNX | Intel"));
}

}  // namespace
}  // namespace guestmem::dma
