// SPDX-License-Identifier: Apache-2.0
// The formatting library as an object of the program: distributions that ship it shared only have its source in a
// header, and a program that starts often should not look for it each time. Linked where GUESTMEM_STATIC is on.
// What is named here is that version's own: with another one this is empty, and the library is linked as it is.
#include <fmt/format.h>

#if FMT_VERSION / 10000 == 9

#include <fmt/format-inl.h>

FMT_BEGIN_NAMESPACE
namespace detail {

template dragonbox::decimal_fp<float> dragonbox::to_decimal(float) noexcept;
template dragonbox::decimal_fp<double> dragonbox::to_decimal(double) noexcept;
template std::locale locale_ref::get<std::locale>() const;
template locale_ref::locale_ref(const std::locale&);
template thousands_sep_result<char> thousands_sep_impl(locale_ref);
template char decimal_point_impl(locale_ref);
template void buffer<char>::append(const char*, const char*);
template void vformat_to(buffer<char>&, string_view, basic_format_args<FMT_BUFFER_CONTEXT(char)>, locale_ref);

}  // namespace detail
FMT_END_NAMESPACE

#endif
