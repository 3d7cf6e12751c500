// A register of float32 lanes by GCC's and Clang's vector extension: one source for every processor, wide or narrow.
#pragma once
#include <cstdint>
#include <cstring>
#ifdef __AVX2__
#include <immintrin.h>
#endif

// as many as a register holds: compilers keep wider vectors in memory
#if defined(__AVX512F__)
constexpr int LANES = 16;
#elif defined(__AVX__)
constexpr int LANES = 8;
#else
constexpr int LANES = 4;
#endif

typedef float vf __attribute__((vector_size(4 * LANES), aligned(4), may_alias));
typedef int32_t vi __attribute__((vector_size(4 * LANES), aligned(4), may_alias));
typedef uint32_t vu __attribute__((vector_size(4 * LANES), aligned(4), may_alias));
typedef uint16_t vh __attribute__((vector_size(2 * LANES), aligned(2), may_alias));
typedef int8_t vb __attribute__((vector_size(LANES), aligned(1), may_alias));
typedef uint16_t bf16;

constexpr float MINUS_INFINITY = -__builtin_inff();

// What Python finds: a kernel's address for each kind of number that it is for.
#define KERNEL(name)                                                                                                   \
    extern "C" {                                                                                                       \
    auto *name##_float32 = name<float>;                                                                                \
    auto *name##_bfloat16 = name<bf16>;                                                                                \
    }

static inline vf splat(float x) { return x - vf{}; }
static inline vf load(const float *p) { return *reinterpret_cast<const vf *>(p); }
static inline void store(float *p, vf x) { *reinterpret_cast<vf *>(p) = x; }

// sum + a * b in one rounding where the processor can: whether a compiler fuses them by itself depends on what is around
#if defined(__AVX512F__)
static inline vf add_product(vf sum, vf a, float b) { return reinterpret_cast<vf>(_mm512_fmadd_ps(a, _mm512_set1_ps(b), sum)); }
#elif defined(__FMA__) && defined(__AVX2__)
static inline vf add_product(vf sum, vf a, float b) { return reinterpret_cast<vf>(_mm256_fmadd_ps(a, _mm256_set1_ps(b), sum)); }
#else
static inline vf add_product(vf sum, vf a, float b) { return sum + a * b; }
#endif

// Widening is one instruction, which GCC up to 12 takes apart into five.
static inline vf load(const bf16 *p) {
#ifdef __AVX512F__
    vu wide = reinterpret_cast<vu>(_mm512_cvtepu16_epi32(_mm256_loadu_si256(reinterpret_cast<const __m256i *>(p)))) << 16;
#elif defined(__AVX2__)
    vu wide = reinterpret_cast<vu>(_mm256_cvtepu16_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i *>(p)))) << 16;
#else
    vu wide = __builtin_convertvector(*reinterpret_cast<const vh *>(p), vu) << 16;
#endif
    return reinterpret_cast<vf &>(wide);
}

static inline vf load(const int8_t *p) {
#ifdef __AVX512F__
    return reinterpret_cast<vf>(_mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i *>(p)))));
#elif defined(__AVX2__)
    return reinterpret_cast<vf>(_mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(_mm_loadl_epi64(reinterpret_cast<const __m128i *>(p)))));
#else
    return __builtin_convertvector(__builtin_convertvector(*reinterpret_cast<const vb *>(p), vi), vf);
#endif
}

static inline void narrow(float *p, float x) { *p = x; }
static inline void narrow(bf16 *p, float x) {
    uint32_t bits;
    std::memcpy(&bits, &x, sizeof bits);
    *p = x == x ? static_cast<bf16>((bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16) : 0x7fc0;
}

// To nearest, ties to even, NaN stays NaN: what torch's cast does.
static inline void store(bf16 *p, vf x) {
    vu bits = reinterpret_cast<vu &>(x);
    vu rounded = (bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16;
    vu nan = reinterpret_cast<const vu &>(static_cast<const vi &>(x != x));
    *reinterpret_cast<vh *>(p) = __builtin_convertvector((rounded & ~nan) | (nan & 0x7fc0u), vh);
}

static inline float widen(float x) { return x; }
static inline float widen(bf16 x) {
    uint32_t bits = static_cast<uint32_t>(x) << 16;
    float wide;
    std::memcpy(&wide, &bits, sizeof wide);
    return wide;
}

static inline vf choose(vi mask, vf yes, vf no) {
    vi a = reinterpret_cast<vi &>(yes), b = reinterpret_cast<vi &>(no), c = (a & mask) | (b & ~mask);
    return reinterpret_cast<vf &>(c);
}
// whether a comparison holds in some lane
static inline bool any(vi mask) {
#if defined(__AVX512F__)
    return _mm512_test_epi32_mask(reinterpret_cast<__m512i &>(mask), reinterpret_cast<__m512i &>(mask)) != 0;
#elif defined(__AVX2__)
    return _mm256_movemask_epi8(reinterpret_cast<__m256i &>(mask)) != 0;
#else
    int32_t found = 0;
    for (int lane = 0; lane < LANES; lane++) found |= mask[lane];
    return found != 0;
#endif
}

static inline vf larger(vf a, vf b) { return choose(a > b, a, b); }

// Halves are folded together until one lane is left.
template <typename Join>
static inline float fold(vf x, Join join) {
    float lanes[LANES];
    store(lanes, x);
    for (int width = LANES / 2; width > 0; width /= 2)
        for (int i = 0; i < width; i++) lanes[i] = join(lanes[i], lanes[i + width]);
    return lanes[0];
}
static inline float sum(vf x) {
    return fold(x, [](float a, float b) { return a + b; });
}
static inline float largest(vf x) {
    return fold(x, [](float a, float b) { return b > a ? b : a; });
}

// e^x to 2 units in the last place; 0 below -87.3 (minus infinity too), and NaN stays NaN.
static inline vf exponential(vf x) {
    const vf top = splat(88.0f);
    vf kept = choose(x > top, top, choose(x < splat(-87.3f), splat(-87.3f), x));
    vf turns = kept * 1.44269504088896341f + 12582912.0f;  // the sum rounds to a whole number in its low bits
    vf n = turns - 12582912.0f;
    vf r = kept - n * 0.693359375f - n * -2.12194440e-4f;
    vf y = r * 1.9875691500e-4f + 1.3981999507e-3f;
    y = y * r + 8.3334519073e-3f;
    y = y * r + 4.1665795894e-2f;
    y = y * r + 1.6666665459e-1f;
    y = y * r + 5.0000001201e-1f;
    y = y * r * r + r + 1.0f;
    vi power = (__builtin_convertvector(n, vi) + 127) << 23;
    return choose(x < splat(-87.3f), vf{}, y * reinterpret_cast<vf &>(power));
}

// silu(gate) * up (arXiv:2002.05202)
static inline vf gated(vf gate, vf up) { return gate / (exponential(-gate) + 1.0f) * up; }
