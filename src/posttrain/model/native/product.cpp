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

extern "C" {
auto *multiply_float32 = multiply<float>, *multiply_gated_float32 = multiply<float, true>;
#ifdef __AVX512BF16__
auto *multiply_bfloat16 = multiply<bf16>, *multiply_gated_bfloat16 = multiply<bf16, true>;
#else
void *multiply_bfloat16 = nullptr, *multiply_gated_bfloat16 = nullptr;
#endif
}
