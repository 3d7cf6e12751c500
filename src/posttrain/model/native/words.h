// A word is 32 bits: one number, or two of 16 bits whose products by another word's join a sum together.
#pragma once
#include "vector.h"

template <typename Number>
constexpr int64_t OF_A_WORD = 4 / static_cast<int64_t>(sizeof(Number));

// what such numbers are multiplied as, but by weights: as they are where the processor does, else float32
#ifdef __AVX512BF16__
template <typename Number>
using Multiplied = Number;
#else
template <typename Number>
using Multiplied = float;
#endif
// numbers that join a sum at once
template <typename Number>
constexpr int64_t AT_ONCE = OF_A_WORD<Multiplied<Number>>;
// tells add_words so
template <typename Number>
constexpr Multiplied<Number> *AS = nullptr;

constexpr int64_t WORDS_TOGETHER = 1 << 16;  // of inputs, that stay in a core's second cache while weights pass by

// sum + words * x, whose numbers are of the type that the last argument points to
static inline vf add_words(vf sum, vf words, float x, const float *) { return add_product(sum, words, x); }
#ifdef __AVX512BF16__
static inline vf add_words(vf sum, vf words, float x, const bf16 *) {
    const __m512 both = _mm512_set1_ps(x);
    return reinterpret_cast<vf>(_mm512_dpbf16_ps(sum, reinterpret_cast<__m512bh>(words), reinterpret_cast<__m512bh>(both)));
}
#endif

// rounded as processors do it that multiply such numbers
static inline void put(float *p, vf x) { store(p, x); }
static inline void put(bf16 *p, vf x) {
#ifdef __AVX512BF16__
    _mm256_storeu_si256(reinterpret_cast<__m256i *>(p), reinterpret_cast<__m256i>(_mm512_cvtneps_pbh(x)));
#else
    store(p, x);
#endif
}

// the nearest of such numbers
template <typename Number>
static inline vf rounded(vf x) {
    Number at[LANES];
    put(at, x);
    return load(at);
}

// LANES words, of one number from each vector of `x`
static inline void put_words(float *p, const vf *x, const float *) { store(p, *x); }
static inline void put_words(float *p, const vf *x, const bf16 *) {
    bf16 numbers[2][LANES];
    put(numbers[0], x[0]);
    put(numbers[1], x[1]);
    const vf low = load(numbers[0]), high = load(numbers[1]);  // each in the upper half of its lanes
    *reinterpret_cast<vu *>(p) = reinterpret_cast<const vu &>(low) >> 16 | reinterpret_cast<const vu &>(high);
}

// LANES words, or numbers where those are multiplied
template <typename Number>
static inline vf load_words(const Number *from) {
    if constexpr (AT_ONCE<Number> == 2) return load(reinterpret_cast<const float *>(from));
    else return load(from);
}

// `count` numbers as words, or as float32 where numbers are multiplied
template <typename Number>
static inline void to_words(const Number *from, float *to, int64_t count) {
    if constexpr (AT_ONCE<Number> == 2) std::memcpy(to, from, count * sizeof(Number));
    else
        for (int64_t i = 0; i < count; i += LANES) store(to + i, load(from + i));
}

// the numbers at `from` as those in place `which` of `count` words, where there were zeros
static inline void put_among(float *words, const float *from, int64_t, int64_t count) {
    std::memcpy(words, from, count * sizeof(float));
}
static inline void put_among(float *words, const bf16 *from, int64_t which, int64_t count) {
    vu *to = reinterpret_cast<vu *>(words);
    for (int64_t i = 0; i < count / LANES; i++) {
        const vf high = load(from + i * LANES);
        to[i] |= which == 0 ? reinterpret_cast<const vu &>(high) >> 16 : reinterpret_cast<const vu &>(high);
    }
}

#ifdef __AVX512F__
// word w of rows[i] becomes word i of to[w]
static inline void turn_words(const vu *rows, vu *to) {
    __m512i a[LANES], b[LANES];
    for (int i = 0; i < LANES; i += 2) {
        const __m512i first = reinterpret_cast<const __m512i &>(rows[i]), second = reinterpret_cast<const __m512i &>(rows[i + 1]);
        a[i] = _mm512_unpacklo_epi32(first, second), a[i + 1] = _mm512_unpackhi_epi32(first, second);
    }
    for (int i = 0; i < LANES; i += 4)
        for (int k = 0; k < 2; k++) {
            b[i + 2 * k] = _mm512_unpacklo_epi64(a[i + k], a[i + 2 + k]);
            b[i + 2 * k + 1] = _mm512_unpackhi_epi64(a[i + k], a[i + 2 + k]);
        }
    // b[4 g + c] has words c, c + 4, c + 8, c + 12 of rows 4 g to 4 g + 3
    for (int c = 0; c < 4; c++) {
        const __m512i even = _mm512_shuffle_i32x4(b[c], b[4 + c], 0x88), odd = _mm512_shuffle_i32x4(b[c], b[4 + c], 0xdd);
        const __m512i even2 = _mm512_shuffle_i32x4(b[8 + c], b[12 + c], 0x88), odd2 = _mm512_shuffle_i32x4(b[8 + c], b[12 + c], 0xdd);
        reinterpret_cast<__m512i &>(to[c]) = _mm512_shuffle_i32x4(even, even2, 0x88);
        reinterpret_cast<__m512i &>(to[4 + c]) = _mm512_shuffle_i32x4(odd, odd2, 0x88);
        reinterpret_cast<__m512i &>(to[8 + c]) = _mm512_shuffle_i32x4(even, even2, 0xdd);
        reinterpret_cast<__m512i &>(to[12 + c]) = _mm512_shuffle_i32x4(odd, odd2, 0xdd);
    }
}
#endif
