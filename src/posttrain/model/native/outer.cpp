// Sums of outer products, the gradients of weights: to (outputs, inputs) += a' x for bfloat16 a (rows, outputs) and
// x (rows, inputs), in float32, where a processor multiplies such numbers.
#include <omp.h>

#include "attention.h"
#include "tiles.h"

#ifdef __AVX512BF16__
constexpr int64_t SIDES = 2 * LANES;  // outputs, and inputs, that go together
constexpr int64_t X_BYTES = 1 << 19;  // of x, that stay in a core's second cache while a passes by

// LANES numbers of row `row` and of the next as words; there are `rows`, and zeros after them
static inline vu words_at(const bf16 *from, int64_t row, int64_t rows, int64_t width) {
    const vf none{}, low = row < rows ? load(from + row * width) : none, high = row + 1 < rows ? load(from + (row + 1) * width) : none;
    return reinterpret_cast<const vu &>(low) >> 16 | reinterpret_cast<const vu &>(high);
}

// How sums (SIDES, SIDES), rows `width` apart, are added to: a is two stacks of (words / LANES, LANES outputs, LANES words),
// x two of (words, LANES inputs).
struct InVectors {
    static constexpr int MANY = 8;  // outputs at once

    static void add(const float *a, const float *x, int64_t words, float *to, int64_t width) {
        for (int64_t o = 0; o < SIDES; o += MANY) {
            const float *by = a + o / LANES * words * LANES + o % LANES * LANES, *right = x + words * LANES;
            float *rows = to + o * width;
            vf sums[2][MANY];
            for (int q = 0; q < MANY; q++) {
                sums[0][q] = load(rows + q * width), sums[1][q] = load(rows + q * width + LANES);
                // what comes next there: memory brings it meanwhile
                __builtin_prefetch(rows + q * width + SIDES, 1, 3);
                __builtin_prefetch(rows + q * width + SIDES + LANES, 1, 3);
            }
            for (int64_t d = 0; d < words; d += LANES)
                for (int64_t w = 0; w < LANES; w++) {
                    const vf first = load(x + (d + w) * LANES), second = load(right + (d + w) * LANES);
                    for (int q = 0; q < MANY; q++) {
                        const float one = by[d * LANES + q * LANES + w];
                        sums[0][q] = add_words(sums[0][q], first, one, AS<bf16>);
                        sums[1][q] = add_words(sums[1][q], second, one, AS<bf16>);
                    }
                }
            for (int q = 0; q < MANY; q++) store(rows + q * width, sums[0][q]), store(rows + q * width + LANES, sums[1][q]);
        }
    }
};

#ifdef TILE_SIDE
struct ByTiles {
    const InTiles in{Tiles(SIDE, SIDE)};

    static void add(const float *a, const float *x, int64_t words, float *to, int64_t width) {
        asm volatile("" ::: "memory");  // the tile instructions do not tell the compiler what they read
        load_sums(to, width);
        for (int64_t d = 0; d < words; d += SIDE) {
            _tile_loadd(6, x + d * SIDE, 64);
            _tile_loadd(4, a + d * SIDE, 64);
            _tile_dpbf16ps(0, 4, 6);
            _tile_loadd(7, x + (words + d) * SIDE, 64);
            _tile_dpbf16ps(1, 4, 7);
            _tile_loadd(5, a + (words + d) * SIDE, 64);
            _tile_dpbf16ps(2, 5, 6);
            _tile_dpbf16ps(3, 5, 7);
        }
        store_sums(to, width);
    }
};
#endif

// outputs and inputs are multiples of SIDES; threads share the outputs
template <typename Way>
static void add_outer(const bf16 *a, const bf16 *x, int64_t rows, int64_t outputs, int64_t inputs, float *to, int threads) {
    const int64_t most = X_BYTES / (inputs * sizeof(bf16)) / SIDES * SIDES + SIDES, turns = (rows + most - 1) / most;
    if (turns == 0) return;
    const int64_t together = ((rows + turns - 1) / turns + SIDES - 1) / SIDES * SIDES, words = together / 2;
#pragma omp parallel num_threads(threads)
    {
        const int64_t me = omp_get_thread_num(), all = omp_get_num_threads(), strips = outputs / SIDES;
        Scratch kept(inputs * words), passing(SIDES * words);
        const Way way{};
        for (int64_t first = 0; first < rows; first += together) {
            for (int64_t i = 0; i < inputs; i += LANES)
                for (int64_t w = 0; w < words; w++)
                    *reinterpret_cast<vu *>(kept.at + (i / LANES * words + w) * LANES) = words_at(x + i, first + 2 * w, rows, inputs);
            for (int64_t o = strips * me / all * SIDES; o < strips * (me + 1) / all * SIDES; o += SIDES) {
                for (int64_t w = 0; w < words; w += LANES)
                    for (int64_t half = 0; half < 2; half++) {
                        vu read[LANES];
                        for (int64_t i = 0; i < LANES; i++) read[i] = words_at(a + o + half * LANES, first + 2 * (w + i), rows, outputs);
                        turn_words(read, reinterpret_cast<vu *>(passing.at + (half * words + w) * LANES));
                    }
                for (int64_t i = 0; i < inputs; i += SIDES)
                    way.add(passing.at, kept.at + i * words, words, to + o * inputs + i, inputs);
            }
        }
    }
}
#endif

extern "C" {
void *add_outer_float32 = nullptr;
#ifdef TILE_SIDE
auto *add_outer_bfloat16 = HAS_TILES ? add_outer<ByTiles> : add_outer<InVectors>;
#elif defined(__AVX512BF16__)
auto *add_outer_bfloat16 = add_outer<InVectors>;
#else
void *add_outer_bfloat16 = nullptr;
#endif
}
