// Products by the tiles of Intel's AMX: registers of 16 rows of 16 words, two bfloat16 numbers each.
#pragma once
#include "words.h"

#if defined(__AMX_BF16__) && defined(__linux__)
#include <sys/syscall.h>
#include <unistd.h>

// The system gives a process these registers when it asks (arch_prctl(2): ARCH_REQ_XCOMP_PERM of XFEATURE_XTILEDATA).
static const bool HAS_TILES = syscall(SYS_arch_prctl, 0x1023, 18) == 0;

constexpr int64_t OUT_TOGETHER = 1 << 20;  // numbers of a result that caches hold until it is read
#define TILE_SIDE 16
constexpr int64_t SIDE = TILE_SIDE;  // rows, and words of a row, that a tile has at most

// Tiles 0 to 3 are sums, 4 and 5 `upper` and `lower` rows of x, 6 and 7 parts of the weight.
struct alignas(64) Tiles {
    uint8_t palette = 1, start = 0, unused[14] = {};
    uint16_t bytes[16] = {};
    uint8_t rows[16] = {};
    Tiles(int64_t upper, int64_t lower) {
        const int64_t of[8] = {upper, upper, lower, lower, upper, lower, SIDE, SIDE};
        for (int tile = 0; tile < 8; tile++) rows[tile] = static_cast<uint8_t>(of[tile] > 0 ? of[tile] : 1), bytes[tile] = 64;
    }
};

// Releases the registers at its end. The compiler's own instruction does not say that all 64 bytes are read.
struct InTiles {
    explicit InTiles(const Tiles &tiles) { asm volatile("ldtilecfg %0" : : "m"(tiles) : "memory"); }
    InTiles(const InTiles &) = delete;
    ~InTiles() { _tile_release(); }
};

// Four sums, (2 SIDE, 2 SIDE), in tiles 0 to 3; in memory their rows are `width` apart.
static inline void zero_sums() {
    _tile_zero(0);
    _tile_zero(1);
    _tile_zero(2);
    _tile_zero(3);
}
static inline void load_sums(const float *from, int64_t width) {
    const float *lower = from + SIDE * width;
    _tile_loadd(0, from, width * 4);
    _tile_loadd(1, from + SIDE, width * 4);
    _tile_loadd(2, lower, width * 4);
    _tile_loadd(3, lower + SIDE, width * 4);
}
static inline void store_sums(float *to, int64_t width) {
    float *lower = to + SIDE * width;
    _tile_stored(0, to, width * 4);
    _tile_stored(1, to + SIDE, width * 4);
    _tile_stored(2, lower, width * 4);
    _tile_stored(3, lower + SIDE, width * 4);
}

// What is used once more soon stays in the first cache; what passes by goes around it.
#define LOAD_TILE(stays, tile, at, stride)                                                                             \
    do {                                                                                                               \
        if (stays) _tile_loadd(tile, at, stride);                                                                      \
        else _tile_stream_loadd(tile, at, stride);                                                                     \
    } while (0)

// sums (upper + lower, 2 SIDE) of rows of x, in the order of their words, times the strip of ACROSS x SIDE outputs at
// `strip`; ONCE: this is all that the strip is for.
template <int DOWN, int ACROSS, bool ONCE>
static inline void multiply_tiles(const float *x, int64_t upper, int64_t words, const float *strip, float *sums) {
    const int64_t row = words * sizeof(float), across = 2 * SIDE;
    const float *lower = x + upper * words, *right = strip + words * SIDE;
    zero_sums();
    for (int64_t d = 0; d < words; d += SIDE) {
        LOAD_TILE(!ONCE, 6, strip + d * SIDE, 64);
        LOAD_TILE(ONCE, 4, x + d, row);
        _tile_dpbf16ps(0, 4, 6);
        if constexpr (ACROSS > 1) {
            LOAD_TILE(!ONCE, 7, right + d * SIDE, 64);
            _tile_dpbf16ps(1, 4, 7);
        }
        if constexpr (DOWN > 1) {
            LOAD_TILE(ONCE, 5, lower + d, row);
            _tile_dpbf16ps(2, 5, 6);
            if constexpr (ACROSS > 1) _tile_dpbf16ps(3, 5, 7);
        }
    }
    _tile_stored(0, sums, across * 4);
    if constexpr (ACROSS > 1) _tile_stored(1, sums + SIDE, across * 4);
    if constexpr (DOWN > 1) {
        _tile_stored(2, sums + upper * across, across * 4);
        if constexpr (ACROSS > 1) _tile_stored(3, sums + upper * across + SIDE, across * 4);
    }
}
#undef LOAD_TILE

// Rounded sums, (many, 2 SIDE), to rows that are `across` apart: both halves, the first alone, or, GATED, their products.
// `leaves`: no cache will hold all of the result, so lines go to memory without being read first.
template <bool GATED>
static inline void put_sums(const float *sums, int64_t many, bool is_wide, bool leaves, bf16 *to, int64_t across) {
    for (int64_t q = 0; q < many; q++, to += across, sums += 2 * SIDE) {
        const vf left = load(sums), right = load(sums + SIDE);
        if constexpr (GATED) put(to, gated(rounded<bf16>(left), rounded<bf16>(right)));
        else if (leaves) {
            const __m512bh line = _mm512_cvtne2ps_pbh(reinterpret_cast<__m512>(right), reinterpret_cast<__m512>(left));
            _mm512_stream_si512(reinterpret_cast<__m512i *>(to), reinterpret_cast<__m512i>(line));
        } else {
            put(to, left);
            if (is_wide) put(to + SIDE, right);
        }
    }
}

// multiply_part of product.h, for bfloat16 numbers and whole tiles of words: blocks of as many rows, of which the last may
// begin within the one before it.
template <bool GATED>
static inline void multiply_in_tiles(const bf16 *inputs, const bf16 *weights, int64_t rows, int64_t words, int64_t outputs,
                                     bf16 *out, int part, int parts) {
    if (rows == 0) return;
    const float *x = reinterpret_cast<const float *>(inputs), *weight = reinterpret_cast<const float *>(weights);
    const int64_t strips = (outputs + 2 * SIDE - 1) / (2 * SIDE), across = GATED ? outputs / 2 : outputs;
    const int64_t blocks = (rows + 2 * SIDE - 1) / (2 * SIDE), block = (rows + blocks - 1) / blocks;
    const int64_t upper = block > SIDE ? (block + 1) / 2 : block, lower = block - upper, some = 1 + WORDS_TOGETHER / (block * words);
    const bool is_even = outputs % (2 * SIDE) == 0 && reinterpret_cast<uintptr_t>(out) % 64 == 0;
    const bool leaves = !GATED && is_even && rows * outputs > OUT_TOGETHER;
    alignas(64) float sums[4 * SIDE * SIDE];
    const InTiles in(Tiles(upper, lower));
    for (int64_t first = 0; first < blocks; first += some)
        for (int64_t strip = strips * part / parts; strip < strips * (part + 1) / parts; strip++) {
            const int64_t column = strip * 2 * SIDE;
            const bool is_wide = outputs - column >= 2 * SIDE;
            for (int64_t i = first; i < blocks && i < first + some; i++) {
                const int64_t begin = (i + 1) * block < rows ? i * block : rows - block;
                const float *from = x + begin * words, *by = weight + column * words;
                if (is_wide && lower == 0) multiply_tiles<1, 2, true>(from, upper, words, by, sums);
                else if (is_wide && blocks == 1) multiply_tiles<2, 2, true>(from, upper, words, by, sums);
                else if (is_wide) multiply_tiles<2, 2, false>(from, upper, words, by, sums);
                else if (lower == 0) multiply_tiles<1, 1, true>(from, upper, words, by, sums);
                else multiply_tiles<2, 1, false>(from, upper, words, by, sums);
                put_sums<GATED>(sums, block, is_wide, leaves, out + begin * across + (GATED ? column / 2 : column), across);
            }
        }
    if (leaves) _mm_sfence();
}
#else
constexpr bool HAS_TILES = false;
#endif

// whether such numbers are multiplied in tiles
template <typename Number>
static inline bool in_tiles() {
    return HAS_TILES && OF_A_WORD<Number> == 2;
}
