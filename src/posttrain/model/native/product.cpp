// Products of few rows by a weight: it is laid out once, so that no step spends its time on that.
#include "product.h"

#include <omp.h>

// see multiply_part
template <typename Number, bool GATED = false>
static void multiply(const Number *x, const Number *weight, int64_t rows, int64_t words, int64_t stretch, int64_t outputs,
                     Number *out, int threads) {
#pragma omp parallel num_threads(threads)
    multiply_part<GATED>(x, weight, rows, words, stretch, outputs, out, omp_get_thread_num(), omp_get_num_threads());
}

#ifdef TILE_SIDE
// weight (outputs, inputs), rounded, as multiply_part wants it; whole tiles
template <typename From>
static void lay(const From *weight, int64_t outputs, int64_t inputs, bf16 *to, int threads) {
#pragma omp parallel for num_threads(threads) schedule(static)
    for (int64_t o = 0; o < outputs; o += SIDE)
        for (int64_t i = 0; i < inputs; i += 2 * SIDE) {
            vu rows[SIDE];
            for (int64_t q = 0; q < SIDE; q++)
                for (int64_t half = 0; half < 2; half++)
                    put(reinterpret_cast<bf16 *>(rows + q) + half * SIDE, load(weight + (o + q) * inputs + i + half * SIDE));
            turn_words(rows, reinterpret_cast<vu *>(to + o * inputs + i * SIDE));
        }
}
#endif

extern "C" {
#ifdef TILE_SIDE
auto *lay_float32_bfloat16 = HAS_TILES ? lay<float> : nullptr;
auto *lay_bfloat16_bfloat16 = HAS_TILES ? lay<bf16> : nullptr;
#else
void *lay_float32_bfloat16 = nullptr, *lay_bfloat16_bfloat16 = nullptr;
#endif
auto *multiply_float32 = multiply<float>, *multiply_gated_float32 = multiply<float, true>;
#ifdef __AVX512BF16__
auto *multiply_bfloat16 = multiply<bf16>, *multiply_gated_bfloat16 = multiply<bf16, true>;
#else
void *multiply_bfloat16 = nullptr, *multiply_gated_bfloat16 = nullptr;
#endif
}
