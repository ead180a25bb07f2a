// SPDX-License-Identifier: Apache-2.0
#include <algorithm>
#include <array>
#include <cstring>

#include "guestmem/sys/guarded.hpp"

// memcpy and memset have no lines in the fault table: no byte of guest memory is touched by them here.

namespace guestmem {
namespace {

// ---------------------------------------------------------------------------------- piece by piece, exactly
// Pieces are aligned on the guest's side and never cross a page, so a missing page stops a copy at its first byte.

/// What to do with one piece of guest memory. `at` is the guest's side, `index` the distance from where it began.
template <typename Piece>
concept PieceFunction = requires(Piece piece, std::size_t index) {
    { piece.template operator()<std::uint64_t>(index) } -> std::same_as<bool>;
};

/// Calls `piece` for each piece of [guest, guest + count): as large as its address, 8 bytes and the rest allow.
/// The number of bytes done.
template <PieceFunction Piece>
[[gnu::always_inline]] inline std::size_t for_each_piece(const std::byte* guest, std::size_t count,
                                                         Piece piece) {
    std::size_t done = 0;
    const auto step = [&]<typename T>() __attribute__((always_inline)) {
        if (!piece.template operator()<T>(done)) return false;
        done += sizeof(T);
        return true;
    };
    const auto address = reinterpret_cast<std::uintptr_t>(guest);
    if (address % 8 != 0) {
        if ((address & 1) != 0 && count >= 1 && !step.template operator()<std::uint8_t>()) return done;
        if (((address + done) & 2) != 0 && count - done >= 2 && !step.template operator()<std::uint16_t>())
            return done;
        if (((address + done) & 4) != 0 && count - done >= 4 && !step.template operator()<std::uint32_t>())
            return done;
    }
    const auto words = [&](int number) __attribute__((always_inline)) {
        for (int turn = 0; turn < number; ++turn)
            if (!step.template operator()<std::uint64_t>()) return false;
        return true;
    };
    while (count - done >= 64)
        if (!words(8)) return done;
    const std::size_t left = count - done;
    if ((left & 32) != 0 && !words(4)) return done;
    if ((left & 16) != 0 && !words(2)) return done;
    if ((left & 8) != 0 && !step.template operator()<std::uint64_t>()) return done;
    if ((left & 4) != 0 && !step.template operator()<std::uint32_t>()) return done;
    if ((left & 2) != 0 && !step.template operator()<std::uint16_t>()) return done;
    if ((left & 1) != 0) step.template operator()<std::uint8_t>();
    return done;
}

[[gnu::always_inline]] inline std::size_t copy_pieces_from(std::byte* to, const std::byte* from_guest,
                                                           std::size_t count) {
    return for_each_piece(from_guest, count, [=]<typename T>(std::size_t index) {
        T value{};
        if (!try_load(from_guest + index, value)) return false;
        std::memcpy(to + index, &value, sizeof value);
        return true;
    });
}

[[gnu::always_inline]] inline std::size_t copy_pieces_to(std::byte* to_guest, const std::byte* from,
                                                         std::size_t count) {
    return for_each_piece(to_guest, count, [=]<typename T>(std::size_t index) {
        T value{};
        std::memcpy(&value, from + index, sizeof value);
        return try_store(to_guest + index, value);
    });
}

[[gnu::always_inline]] inline std::size_t fill_pieces(std::byte* to, std::byte value, std::size_t count) {
    const std::uint64_t pattern = 0x0101010101010101U * std::to_integer<std::uint64_t>(value);
    return for_each_piece(to, count, [=]<typename T>(std::size_t index) {
        return try_store(to + index, static_cast<T>(pattern));
    });
}

// ------------------------------------------------------------------------------------- block by block, fast
// A block is loaded whole and then stored whole. Only the guest's side has lines in the fault table: a fault on our
// own side is a bug of ours and takes its usual way. A block that failed is done once more by pieces, which finds
// the byte.

enum class GuestSide : std::uint8_t { from, to };

#if defined(__x86_64__)

constexpr std::size_t block_bytes = 64;
constexpr std::size_t wide_block_bytes = 128;
constexpr std::size_t most_block_bytes = wide_block_bytes;
// Measured on a Zen 5 against memcpy: SSE2 blocks are as fast below 256 bytes and up to 1.7 times slower above; AVX
// blocks are as fast from there to any size; rep movsb is as fast from 4 KiB on, where source and destination lie
// alike in their pages, and up to twice slower where not.
constexpr std::size_t wide_from_bytes = 256;
constexpr std::size_t aligned_from_bytes = 1024;
constexpr std::size_t string_from_bytes = 2048;

// Four vector loads and four stores; the lines in the fault table are for labels a to d.
#define GM_COPY_BLOCK_(move, width, vector, a, b, c, d)                                                 \
    asm volatile goto("1: " move " (%[from]), %%" vector                                                \
                      "0\n"                                                                             \
                      "2: " move " 1*" width "(%[from]), %%" vector                                     \
                      "1\n"                                                                             \
                      "3: " move " 2*" width "(%[from]), %%" vector                                     \
                      "2\n"                                                                             \
                      "4: " move " 3*" width "(%[from]), %%" vector                                     \
                      "3\n"                                                                             \
                      "5: " move " %%" vector                                                           \
                      "0, (%[to])\n"                                                                    \
                      "6: " move " %%" vector "1, 1*" width                                             \
                      "(%[to])\n"                                                                       \
                      "7: " move " %%" vector "2, 2*" width                                             \
                      "(%[to])\n"                                                                       \
                      "8: " move " %%" vector "3, 3*" width "(%[to])\n" /*                            \
                      */ \
                      GM_FAULT_ENTRY_(a) GM_FAULT_ENTRY_(b) GM_FAULT_ENTRY_(c) GM_FAULT_ENTRY_(d)       \
                      :                                                                                 \
                      : [to] "r"(to), [from] "r"(from)                                                  \
                      : "memory", "xmm0", "xmm1", "xmm2", "xmm3"                                        \
                      : bad)

template <GuestSide side>
[[gnu::always_inline]] inline bool copy_block(std::byte* to, const std::byte* from) {
    if constexpr (side == GuestSide::from) {
        GM_COPY_BLOCK_("movups", "16", "xmm", "1", "2", "3", "4");
    } else {
        GM_COPY_BLOCK_("movups", "16", "xmm", "5", "6", "7", "8");
    }
    return true;
bad:
    return false;
}

template <GuestSide side>
[[gnu::always_inline]] inline bool copy_wide_block(std::byte* to, const std::byte* from) {
    if constexpr (side == GuestSide::from) {
        GM_COPY_BLOCK_("vmovdqu", "32", "ymm", "1", "2", "3", "4");
    } else {
        GM_COPY_BLOCK_("vmovdqu", "32", "ymm", "5", "6", "7", "8");
    }
    return true;
bad:
    return false;
}
#undef GM_COPY_BLOCK_

/// Whole blocks as long as there are some and none fails; the number of bytes done.
template <GuestSide side>
[[gnu::always_inline]] inline std::size_t copy_wide_blocks(std::byte* to, const std::byte* from,
                                                           std::size_t count) {
    std::size_t done = 0;
    while (count - done >= wide_block_bytes && copy_wide_block<side>(to + done, from + done))
        done += wide_block_bytes;
    // Mixing SSE with upper halves that are in use is slow on some processors.
    asm volatile("vzeroupper" ::
                     : "xmm0", "xmm1", "xmm2", "xmm3", "xmm4", "xmm5", "xmm6", "xmm7", "xmm8", "xmm9",
                       "xmm10", "xmm11", "xmm12", "xmm13", "xmm14", "xmm15");
    return done;
}

/// rep movsb, whose counter says how far it came; a fault on either side ends it.
std::size_t copy_string(std::byte* to, const std::byte* from, std::size_t count) {
    std::size_t left = count;
    asm volatile(
        "1: rep movsb\n"
        "2:\n" GM_FAULT_ENTRY_TO_("1", "2b")
        : "+D"(to), "+S"(from), "+c"(left)
        :
        : "memory");
    return count - left;
}

std::size_t fill_string(std::byte* to, std::byte value, std::size_t count) {
    std::size_t left = count;
    asm volatile(
        "1: rep stosb\n"
        "2:\n" GM_FAULT_ENTRY_TO_("1", "2b")
        : "+D"(to), "+c"(left)
        : "a"(value)
        : "memory");
    return count - left;
}

/// Many blocks: wide ones, or a string instruction. The number of bytes done; the last block is left to do.
template <GuestSide side>
[[gnu::noinline]] std::size_t copy_large(std::byte* to, const std::byte* from, std::size_t count) {
    std::size_t done = 0;
    if (count >= aligned_from_bytes) {
        // One block as it comes; then the stores are aligned, which matters more than that the loads are.
        if (!copy_block<side>(to, from)) return 0;
        done = block_bytes - reinterpret_cast<std::uintptr_t>(to) % block_bytes;
    }
    if (__builtin_cpu_supports("avx"))
        return done + copy_wide_blocks<side>(to + done, from + done, count - done);
    if (count >= string_from_bytes) done += copy_string(to + done, from + done, count - done - block_bytes);
    return done;
}

/// As far as the fast ways bring it; the number of bytes done, which may be anything from 0 on.
template <GuestSide side>
[[gnu::always_inline]] inline std::size_t copy_fast(std::byte* to, const std::byte* from, std::size_t count) {
    std::size_t done = count >= wide_from_bytes ? copy_large<side>(to, from, count) : 0;
    for (; count - done > block_bytes; done += block_bytes)
        if (!copy_block<side>(to + done, from + done)) return done;
    // The rest together with what is done already: a block that overlaps the last one.
    const std::size_t last = count - block_bytes;
    return copy_block<side>(to + last, from + last) ? count : done;
}

#elif defined(__aarch64__)

constexpr std::size_t block_bytes = 64;
constexpr std::size_t most_block_bytes = block_bytes;

#define GM_COPY_BLOCK_(a, b)                                                  \
    asm volatile goto(                                                        \
        "1: ldp q0, q1, [%[from]]\n"                                          \
        "2: ldp q2, q3, [%[from], #32]\n"                                     \
        "3: stp q0, q1, [%[to]]\n"                                            \
        "4: stp q2, q3, [%[to], #32]\n" GM_FAULT_ENTRY_(a) GM_FAULT_ENTRY_(b) \
        :                                                                     \
        : [to] "r"(to), [from] "r"(from)                                      \
        : "memory", "v0", "v1", "v2", "v3"                                    \
        : bad)

template <GuestSide side>
[[gnu::always_inline]] inline bool copy_block(std::byte* to, const std::byte* from) {
    if constexpr (side == GuestSide::from) {
        GM_COPY_BLOCK_("1", "2");
    } else {
        GM_COPY_BLOCK_("3", "4");
    }
    return true;
bad:
    return false;
}
#undef GM_COPY_BLOCK_

template <GuestSide side>
std::size_t copy_fast(std::byte* to, const std::byte* from, std::size_t count) {
    std::size_t done = 0;
    for (; count - done >= block_bytes; done += block_bytes)
        if (!copy_block<side>(to + done, from + done)) return done;
    const std::size_t last = count - block_bytes;
    return copy_block<side>(to + last, from + last) ? count : done;
}

std::size_t copy_string(std::byte*, const std::byte*, std::size_t) { return 0; }
std::size_t fill_string(std::byte*, std::byte, std::size_t) { return 0; }

#else

constexpr std::size_t most_block_bytes = 64;

template <GuestSide side>
std::size_t copy_fast(std::byte*, const std::byte*, std::size_t) {
    return 0;
}

std::size_t copy_string(std::byte*, const std::byte*, std::size_t) { return 0; }
std::size_t fill_string(std::byte*, std::byte, std::size_t) { return 0; }

#endif

/// By pieces over the place where the fast way stopped, then fast again, and so on. Once the pieces stop, the page is
/// gone.
template <GuestSide side>
[[gnu::noinline, gnu::cold]] std::size_t copy_rest(std::byte* to, const std::byte* from, std::size_t count,
                                                   std::size_t done) {
    for (;;) {
        const std::size_t few = std::min(count - done, most_block_bytes);
        std::size_t exact = 0;
        if constexpr (side == GuestSide::from) {
            exact = copy_pieces_from(to + done, from + done, few);
        } else {
            exact = copy_pieces_to(to + done, from + done, few);
        }
        done += exact;
        if (exact < few || done == count) return done;
        if (count - done > max_untorn_copy_bytes)
            done += copy_fast<side>(to + done, from + done, count - done);
        if (done == count) return done;
    }
}

template <GuestSide side>
std::size_t copy_many(std::byte* to, const std::byte* from, std::size_t count) {
    const std::size_t done = copy_fast<side>(to, from, count);
    return done == count ? done : copy_rest<side>(to, from, count, done);
}

// ----------------------------------------------------------------------------------------- inside the guest

/// Pages are this large or a multiple: what does not cross a multiple of it is there whole or not at all.
constexpr std::size_t least_page_bytes = 4096;
/// From here on a copy inside the guest goes straight from place to place, below through a buffer of ours.
constexpr std::size_t string_inside_from_bytes = 512;

std::size_t bytes_below(const std::byte* last, std::size_t limit) {
    return std::min(limit, reinterpret_cast<std::uintptr_t>(last) % least_page_bytes + 1);
}

/// Copies the lowest `count` bytes of a range, from the low address up.
std::size_t copy_up(std::byte* to, const std::byte* from, std::size_t count) {
    std::array<std::byte, least_page_bytes> buffer;
    std::size_t done = 0;
    while (done < count) {
        const std::size_t wanted = std::min(count - done, buffer.size());
        const std::size_t there = copy_from_guest(buffer.data(), from + done, wanted);
        const std::size_t taken = copy_to_guest(to + done, buffer.data(), there);
        done += taken;
        if (taken < wanted) break;
    }
    return done;
}

/// Copies from the high address down. A step lies in one page on either side: it is done whole or not at all.
std::size_t copy_down(std::byte* to, const std::byte* from, std::size_t count) {
    std::array<std::byte, least_page_bytes> buffer;
    std::size_t left = count;
    while (left > 0) {
        const std::size_t step = bytes_below(to + left - 1, bytes_below(from + left - 1, left));
        left -= step;
        if (copy_from_guest(buffer.data(), from + left, step) < step ||
            copy_to_guest(to + left, buffer.data(), step) < step)
            return count - left - step;
    }
    return count;
}

}  // namespace

std::size_t copy_from_guest(std::byte* to, const std::byte* from_guest, std::size_t count) {
    if (count <= max_untorn_copy_bytes) return copy_pieces_from(to, from_guest, count);
    return copy_many<GuestSide::from>(to, from_guest, count);
}

std::size_t copy_to_guest(std::byte* to_guest, const std::byte* from, std::size_t count) {
    if (count <= max_untorn_copy_bytes) return copy_pieces_to(to_guest, from, count);
    return copy_many<GuestSide::to>(to_guest, from, count);
}

std::size_t copy_within_guest(std::byte* to, const std::byte* from, std::size_t count) {
    // Modulo 2^64: also when they lie the other way around.
    const std::uintptr_t up = reinterpret_cast<std::uintptr_t>(to) - reinterpret_cast<std::uintptr_t>(from);
    if (up != 0 && up < count) return copy_down(to, from, count);
    std::size_t done = 0;
    // Where ranges overlap, string instructions go byte by byte.
    const bool is_apart = up >= count && 0 - up >= count;
    if (is_apart && count >= string_inside_from_bytes) done = copy_string(to, from, count);
    return done + copy_up(to + done, from + done, count - done);
}

std::size_t fill_guest(std::byte* to, std::byte value, std::size_t count) {
    std::size_t done = 0;
    if (count >= string_inside_from_bytes) done = fill_string(to, value, count);
    return done + fill_pieces(to + done, value, count - done);
}

}  // namespace guestmem
