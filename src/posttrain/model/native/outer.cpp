// Sums of outer products, the gradients of weights, where a processor multiplies in tiles: to (outputs, inputs) += a' x for
// bfloat16 a (rows, outputs) and x (rows, inputs), in float32.
#include <omp.h>

#include "attention.h"
#include "tiles.h"

#ifdef TILE_SIDE
constexpr int64_t SIDES = 2 * SIDE;
constexpr int64_t X_BYTES = 1 << 19;  // of x, that stay in a core's second cache while a passes by

// SIDE numbers of row `row` and of the next as words; there are `rows`, and zeros after them
static inline vu words_at(const bf16 *from, int64_t row, int64_t rows, int64_t width) {
    const vf none{}, low = row < rows ? load(from + row * width) : none, high = row + 1 < rows ? load(from + (row + 1) * width) : none;
    return reinterpret_cast<const vu &>(low) >> 16 | reinterpret_cast<const vu &>(high);
}

// to (SIDES, SIDES), `width` apart, += a x: a is two columns, x two rows of tiles, each of so many `words` deep
static inline void add_tiles(const float *a, const float *x, int64_t words, float *to, int64_t width) {
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

// outputs and inputs are multiples of SIDES; threads share the outputs
static void add_outer(const bf16 *a, const bf16 *x, int64_t rows, int64_t outputs, int64_t inputs, float *to, int threads) {
    const int64_t most = X_BYTES / (inputs * sizeof(bf16)) / SIDES * SIDES + SIDES, turns = (rows + most - 1) / most;
    if (turns == 0) return;
    const int64_t together = ((rows + turns - 1) / turns + SIDES - 1) / SIDES * SIDES, words = together / 2;
#pragma omp parallel num_threads(threads)
    {
        const int64_t me = omp_get_thread_num(), all = omp_get_num_threads(), strips = outputs / SIDES;
        Scratch kept(inputs * words), passing(SIDES * words);
        const InTiles in(Tiles(SIDE, SIDE));
        for (int64_t first = 0; first < rows; first += together) {
            for (int64_t i = 0; i < inputs; i += SIDE)
                for (int64_t w = 0; w < words; w++)
                    *reinterpret_cast<vu *>(kept.at + (i / SIDE * words + w) * SIDE) = words_at(x + i, first + 2 * w, rows, inputs);
            for (int64_t o = strips * me / all * SIDES; o < strips * (me + 1) / all * SIDES; o += SIDES) {
                for (int64_t w = 0; w < words; w += SIDE)
                    for (int64_t half = 0; half < 2; half++) {
                        vu read[SIDE];
                        for (int64_t i = 0; i < SIDE; i++) read[i] = words_at(a + o + half * SIDE, first + 2 * (w + i), rows, outputs);
                        turn_tile(read, reinterpret_cast<vu *>(passing.at + (half * words + w) * SIDE));
                    }
                // the tile instructions do not tell the compiler what they read
                asm volatile("" ::: "memory");
                for (int64_t i = 0; i < inputs; i += SIDES)
                    add_tiles(passing.at, kept.at + i * words, words, to + o * inputs + i, inputs);
            }
        }
    }
}
#endif

extern "C" {
void *add_outer_float32 = nullptr;
#ifdef TILE_SIDE
auto *add_outer_bfloat16 = HAS_TILES ? add_outer : nullptr;
#else
void *add_outer_bfloat16 = nullptr;
#endif
}
