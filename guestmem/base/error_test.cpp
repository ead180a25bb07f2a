// SPDX-License-Identifier: Apache-2.0
#include "guestmem/base/error.hpp"

#include <gtest/gtest.h>

#include <array>
#include <cerrno>
#include <set>
#include <string>

namespace guestmem {
namespace {

constexpr std::array all_codes{
    Errc::invalid_argument,  Errc::not_found,    Errc::already_exists, Errc::busy,
    Errc::permission_denied, Errc::out_of_range, Errc::exhausted,      Errc::unavailable,
    Errc::timed_out,         Errc::corrupt,      Errc::unsupported,    Errc::io};

TEST(Errc, EveryCodeHasANameOfItsOwnThatLeadsBack) {
    std::set<std::string_view> names;
    for (const Errc code : all_codes) {
        EXPECT_EQ(to_errc(to_string(code)), code);
        EXPECT_TRUE(names.insert(to_string(code)).second) << to_string(code);
    }
}

TEST(Errc, AnUnknownNameIsNoCode) {
    EXPECT_EQ(to_errc(""), std::nullopt);
    EXPECT_EQ(to_errc("Not_Found"), std::nullopt);
    EXPECT_EQ(to_errc("not_found "), std::nullopt);
}

TEST(Error, FromErrnoKeepsTheNumberAndEndsWithItsText) {
    const Error error = Error::from_errno(ENOENT, "open /x");

    EXPECT_EQ(error.code(), Errc::not_found);
    EXPECT_EQ(error.os_error(), ENOENT);
    EXPECT_EQ(error.message(), "open /x: No such file or directory");
}

TEST(Error, FromErrnoSaysWhatTheCallerCanDo) {
    struct Row {
        int os_error;
        Errc code;
    };
    constexpr std::array<Row, 14> rows{{{EINVAL, Errc::invalid_argument},
                                        {ENOENT, Errc::not_found},
                                        {EADDRINUSE, Errc::already_exists},
                                        {EBUSY, Errc::busy},
                                        {EAGAIN, Errc::busy},
                                        {EACCES, Errc::permission_denied},
                                        {EFBIG, Errc::out_of_range},
                                        {EMFILE, Errc::exhausted},
                                        {ETOOMANYREFS, Errc::exhausted},
                                        {ECONNREFUSED, Errc::unavailable},
                                        {ETIMEDOUT, Errc::timed_out},
                                        {EPROTO, Errc::corrupt},
                                        {ENOSYS, Errc::unsupported},
                                        {EIO, Errc::io}}};
    for (const Row& row : rows)
        EXPECT_EQ(Error::from_errno(row.os_error, "x").code(), row.code) << row.os_error;
}

TEST(Error, AnErrnoThatNobodyKnowsIsAnIoError) {
    EXPECT_EQ(Error::from_errno(987654, "x").code(), Errc::io);
    EXPECT_EQ(Error::from_errno(987654, "x").os_error(), 987654);
}

TEST(Error, ContextStandsInFrontAndTheRestStays) {
    Error error{Errc::busy, EBUSY, "slot 3: taken"};

    const Error wider = std::move(error).with_context("share 'mail'").with_context("service");

    EXPECT_EQ(wider.message(), "service: share 'mail': slot 3: taken");
    EXPECT_EQ(wider.code(), Errc::busy);
    EXPECT_EQ(wider.os_error(), EBUSY);
}

TEST(Error, AnErrorThatTheKernelWasNotAskedForHasErrnoZero) {
    EXPECT_EQ((Error{Errc::corrupt, "broken"}.os_error()), 0);
}

}  // namespace
}  // namespace guestmem
