// Gradients of attention over the segments of a tree: P = exp(q k - normaliser), dV = P' dO, dS = P (dO V' - rowsum(dO O)),
// dQ = dS K, dK = dS' Q, a tile of queries by a block of keys at a time. Sums are float32, and so are P and dS where the
// processor does not multiply bfloat16; where it does, in vectors or in tiles, they are rounded to be multiplied.
#include "attention.h"
#include "tiles.h"
#include "words.h"

#if defined(__AVX512F__)
constexpr int QUERIES = 16, TOGETHER = 8;  // of a tile, and rows of a product: their sums fill half of 32 registers
#else
constexpr int QUERIES = 8, TOGETHER = 4;  // half of 16
#endif
constexpr int64_t KEYS_TOGETHER = 256;  // which stay with their gradients in a core's second cache while queries pass by

static inline vi numbers_of_lanes() {
    vi numbers{};
    for (int i = 0; i < LANES; i++) numbers[i] = i;
    return numbers;
}

// found (QUERIES, LANES) = a tile of rows, (words, QUERIES), times a block of keys, (words, LANES)
template <typename Part>
static inline void multiply_block(const float *rows, const float *block, int64_t words, float *found) {
    vf sums[QUERIES] = {};
    for (int64_t d = 0; d < words; d++) {
        const vf key = load(block + d * LANES);
        for (int i = 0; i < QUERIES; i++) sums[i] = add_words(sums[i], key, rows[d * QUERIES + i], AS<Part>);
    }
    for (int i = 0; i < QUERIES; i++) store(found + i * LANES, sums[i]);
}

// to (MANY, size) += a x, where x is (WORDS, size) words and row r's word w of a is a[r * ROW + w * STEP]
template <typename Part, int MANY, int WORDS, int ROW, int STEP>
static inline void add_rows(const float *a, const float *x, float *to, int64_t size) {
    for (int r = 0; r < MANY; r += TOGETHER)
        for (int64_t d = 0; d < size; d += 2 * LANES) {
            vf sums[TOGETHER][2];
            for (int k = 0; k < TOGETHER; k++)
                for (int part = 0; part < 2; part++) sums[k][part] = load(to + (r + k) * size + d + part * LANES);
            for (int w = 0; w < WORDS; w++) {
                const vf x0 = load(x + w * size + d), x1 = load(x + w * size + d + LANES);
                for (int k = 0; k < TOGETHER; k++) {
                    const float by = a[(r + k) * ROW + w * STEP];
                    sums[k][0] = add_words(sums[k][0], x0, by, AS<Part>);
                    sums[k][1] = add_words(sums[k][1], x1, by, AS<Part>);
                }
            }
            for (int k = 0; k < TOGETHER; k++)
                for (int part = 0; part < 2; part++) store(to + (r + k) * size + d + part * LANES, sums[k][part]);
        }
}

// Rows of numbers as the products want them, filled up with zeros to whole `TILE`s of rows.
template <typename Part, int TILE, bool PLAIN = false>
struct Rows {
    int64_t size;
    Scratch by_word;  // (tiles, size / numbers of a word, TILE), PLAIN: (tiles, TILE, ...): a word holds neighbours of a row
    Scratch by_row;   // (tiles, TILE / numbers of a word, size): a word holds one number each of neighbouring rows
    Rows(int64_t filled, int64_t size) : size(size), by_word(filled * size / OF_A_WORD<Part>), by_row(filled * size / OF_A_WORD<Part>) {
        std::memset(by_word.at, 0, filled * size * sizeof(Part));
        std::memset(by_row.at, 0, filled * size * sizeof(Part));
    }
    template <typename Number>
    void put(int64_t row, const Number *from) const {
        constexpr int64_t NUMBERS = OF_A_WORD<Part>;
        alignas(64) float words[LONGEST_HEAD];
        for (int64_t d = 0; d < size; d += LANES) ::put(reinterpret_cast<Part *>(words) + d, load(from + d));
        if constexpr (PLAIN) std::memcpy(by_word.at + row * size / NUMBERS, words, size * sizeof(Part));
        else
            for (int64_t w = 0; w < size / NUMBERS; w++) tile_by_word(row)[w * TILE + row % TILE] = words[w];
        put_among(tile_by_row(row) + row % TILE / NUMBERS * size, reinterpret_cast<const Part *>(words), row % NUMBERS, size);
    }
    float *tile_by_word(int64_t row) const { return by_word.at + row / TILE * TILE * size / OF_A_WORD<Part>; }
    float *tile_by_row(int64_t row) const { return by_row.at + row / TILE * TILE * size / OF_A_WORD<Part>; }
};

// one segment's queries of one key head
template <typename Queries, typename Keys>
struct Task {
    int64_t many, num_keys, size;
    const Queries &queries, &grads;
    const float *centres, *normalisers;
    const int64_t *counts;  // keys that each query sees; 0 in the filling
    const Keys &keys, &values;
    float *grad_keys, *grad_values, *grad_queries;  // (filled up, size), added to
};

template <typename Part>
static inline void differentiate(const Task<Rows<Part, QUERIES>, Rows<Part, LANES>> &at, float scale) {
    constexpr int NUMBERS = OF_A_WORD<Part>;
    const vi lanes = numbers_of_lanes();
    const int64_t words = at.size / NUMBERS;
    alignas(64) float weights[QUERIES * LANES], scores[QUERIES * LANES];
    alignas(64) float weight_words[QUERIES / NUMBERS * LANES], score_words[QUERIES / NUMBERS * LANES], score_rows[QUERIES * LANES / NUMBERS];
    for (int64_t from = 0; from < at.num_keys; from += KEYS_TOGETHER)
        for (int64_t start = 0; start < at.many; start += QUERIES) {
            int64_t most = 0;
            for (int i = 0; i < QUERIES; i++) most = at.counts[start + i] > most ? at.counts[start + i] : most;
            const float *queries = at.queries.tile_by_row(start), *grads = at.grads.tile_by_row(start);
            for (int64_t j = from; j < most && j < from + KEYS_TOGETHER; j += LANES) {
                multiply_block<Part>(at.queries.tile_by_word(start), at.keys.tile_by_word(j), words, weights);
                multiply_block<Part>(at.grads.tile_by_word(start), at.values.tile_by_word(j), words, scores);
                for (int i = 0; i < QUERIES; i += NUMBERS) {
                    vf p[NUMBERS], s[NUMBERS];
                    for (int k = 0; k < NUMBERS; k++) {
                        const int64_t row = start + i + k;
                        const vi seen = lanes < static_cast<int32_t>(at.counts[row] - j);
                        const vf found = load(weights + (i + k) * LANES) * scale - at.normalisers[row];
                        p[k] = choose(seen, exponential(found), vf{});
                        s[k] = p[k] * (load(scores + (i + k) * LANES) - at.centres[row]) * scale;
                        put(reinterpret_cast<Part *>(score_rows + (i + k) * LANES / NUMBERS), s[k]);
                    }
                    put_words(weight_words + i / NUMBERS * LANES, p, AS<Part>);
                    put_words(score_words + i / NUMBERS * LANES, s, AS<Part>);
                }
                constexpr int PAIRS = QUERIES / NUMBERS, KEY_PAIRS = LANES / NUMBERS;
                add_rows<Part, LANES, PAIRS, 1, LANES>(score_words, queries, at.grad_keys + j * at.size, at.size);
                add_rows<Part, LANES, PAIRS, 1, LANES>(weight_words, grads, at.grad_values + j * at.size, at.size);
                add_rows<Part, QUERIES, KEY_PAIRS, KEY_PAIRS, 1>(score_rows, at.keys.tile_by_row(j), at.grad_queries + start * at.size, at.size);
            }
        }
}

#ifdef TILE_SIDE
constexpr int BLOCK = 2 * SIDE;  // queries, and keys, that meet

// two tiles of rows of `a`, from 4 on: (BLOCK, words), `row` words apart
static inline void load_rows(const float *a, int64_t row) {
    _tile_loadd(4, a, row * 4);
    _tile_loadd(5, a + SIDE * row, row * 4);
}
// tiles 0 to 3 += tiles 4 and 5 times those at `left` and `right`, whose words are `row` apart
static inline void add_products(const float *left, const float *right, int64_t row) {
    _tile_loadd(6, left, row * 4);
    _tile_dpbf16ps(0, 4, 6);
    _tile_dpbf16ps(2, 5, 6);
    _tile_loadd(7, right, row * 4);
    _tile_dpbf16ps(1, 4, 7);
    _tile_dpbf16ps(3, 5, 7);
}
// found (BLOCK, BLOCK) = rows of queries, (BLOCK, words), times keys, (words, BLOCK)
static inline void meet(const float *rows, const float *keys, int64_t words, float *found) {
    zero_sums();
    for (int64_t d = 0; d < words; d += SIDE) {
        load_rows(rows + d, words);
        add_products(keys + d * BLOCK, keys + d * BLOCK + SIDE, BLOCK);
    }
    store_sums(found, BLOCK);
}
// to (BLOCK, size) += a (BLOCK, SIDE words) times x (SIDE words, size)
static inline void add_block(const float *a, const float *x, float *to, int64_t size) {
    load_rows(a, SIDE);
    for (int64_t d = 0; d < size; d += 2 * SIDE) {
        load_sums(to + d, size);
        add_products(x + d, x + d + SIDE, size);
        store_sums(to + d, size);
    }
}

static inline void differentiate(const Task<Rows<bf16, BLOCK, true>, Rows<bf16, BLOCK>> &at, float scale) {
    const vi lanes = numbers_of_lanes();
    const int64_t words = at.size / 2;
    alignas(64) float weights[BLOCK * BLOCK], scores[BLOCK * BLOCK];
    alignas(64) float score_rows[BLOCK * SIDE], weights_by_key[BLOCK * SIDE], scores_by_key[BLOCK * SIDE];
    vu weight_words[2][SIDE], score_words[2][SIDE];  // of SIDE keys each: a word for each pair of queries
    const InTiles in(Tiles(SIDE, SIDE));
    for (int64_t from = 0; from < at.num_keys; from += KEYS_TOGETHER)
        for (int64_t start = 0; start < at.many; start += BLOCK) {
            int64_t most = 0;
            for (int i = 0; i < BLOCK; i++) most = at.counts[start + i] > most ? at.counts[start + i] : most;
            for (int64_t j = from; j < most && j < from + KEYS_TOGETHER; j += BLOCK) {
                asm volatile("" ::: "memory");  // the tile instructions do not say what they read
                meet(at.queries.tile_by_word(start), at.keys.tile_by_word(j), words, weights);
                meet(at.grads.tile_by_word(start), at.values.tile_by_word(j), words, scores);
                for (int i = 0; i < BLOCK; i += 2)
                    for (int half = 0; half < 2; half++) {
                        vf p[2], s[2];
                        for (int k = 0; k < 2; k++) {
                            const int64_t row = start + i + k, place = (i + k) * BLOCK + half * SIDE;
                            const vi seen = lanes < static_cast<int32_t>(at.counts[row] - j - half * SIDE);
                            const vf found = load(weights + place) * scale - at.normalisers[row];
                            p[k] = choose(seen, exponential(found), vf{});
                            s[k] = p[k] * (load(scores + place) - at.centres[row]) * scale;
                            put(reinterpret_cast<bf16 *>(score_rows + (i + k) * SIDE) + half * SIDE, s[k]);
                        }
                        put_words(reinterpret_cast<float *>(&weight_words[half][i / 2]), p, AS<bf16>);
                        put_words(reinterpret_cast<float *>(&score_words[half][i / 2]), s, AS<bf16>);
                    }
                for (int half = 0; half < 2; half++) {
                    turn_words(weight_words[half], reinterpret_cast<vu *>(weights_by_key + half * SIDE * SIDE));
                    turn_words(score_words[half], reinterpret_cast<vu *>(scores_by_key + half * SIDE * SIDE));
                }
                asm volatile("" ::: "memory");
                add_block(scores_by_key, at.queries.tile_by_row(start), at.grad_keys + j * at.size, at.size);
                add_block(weights_by_key, at.grads.tile_by_row(start), at.grad_values + j * at.size, at.size);
                add_block(score_rows, at.keys.tile_by_row(j), at.grad_queries + start * at.size, at.size);
            }
        }
}
#endif

// As attend_segments, with its results `out` and normalisers and the gradient `grad` of out, both (M, heads, size).
// tasks are (num_tasks, 4): a segment, its first query token and the one after its last, and where in lines' count the
// task's keys have room in `parts`, 2 x size x kv_heads numbers for each. grad_query is (M, heads, size); grad_key and
// grad_value (T, kv_heads, size) are added to, in the tasks' order whoever was first.
template <typename Part, int QUERIES_OF_TILE, int KEYS_OF_TILE, bool PLAIN, typename Number>
static void differentiate_segments(const Number *query, int64_t query_stride, const Number *key, int64_t key_stride,
                                   const Number *value, int64_t value_stride, const Number *out, const Number *grad,
                                   const float *normalisers, const int64_t *lines, const int64_t *offsets, const int64_t *firsts,
                                   const int64_t *depths, const int64_t *tasks, int64_t num_tasks,
                                   int64_t heads, int64_t kv_heads, int64_t size, Number *grad_query, float *grad_key,
                                   float *grad_value, float *parts, int threads) {
    const int64_t group = heads / kv_heads;
    const float scale = 1.0f / std::sqrt(static_cast<float>(size));
#pragma omp parallel num_threads(threads)
    {
#pragma omp for schedule(dynamic, 1)
        for (int64_t each = 0; each < num_tasks * kv_heads; each++) {
            const int64_t *task = tasks + each / kv_heads * 4, head = each % kv_heads;
            const int64_t s = task[0], begin = task[1], num_keys = depths[s] + task[2], many = (task[2] - begin) * group;
            const int64_t padded = (num_keys + KEYS_OF_TILE - 1) / KEYS_OF_TILE * KEYS_OF_TILE;
            const int64_t filled = (many + QUERIES_OF_TILE - 1) / QUERIES_OF_TILE * QUERIES_OF_TILE;
            using Queries = Rows<Part, QUERIES_OF_TILE, PLAIN>;
            using Keys = Rows<Part, KEYS_OF_TILE>;
            const Keys keys(padded, size), values(padded, size);
            const Queries queries(filled, size), grads(filled, size);
            Scratch numbers(2 * filled), found((2 * padded + filled) * size), places(2 * filled);
            std::memset(numbers.at, 0, 2 * filled * 4);
            std::memset(found.at, 0, (2 * padded + filled) * size * 4);
            std::memset(places.at, 0, 2 * filled * 4);
            int64_t *counts = reinterpret_cast<int64_t *>(places.at);
            float *centres = numbers.at, *norms = centres + filled, *grad_queries = found.at + 2 * padded * size;
            for (int64_t j = 0; j < num_keys; j++) {
                const int64_t place = lines[offsets[s] + j];
                keys.put(j, key + place * key_stride + head * size);
                values.put(j, value + place * value_stride + head * size);
            }
            for (int64_t i = 0; i < many; i++) {
                const int64_t token = begin + i / group, at = firsts[s] + token, h = head * group + i % group;
                const Number *o = out + (at * heads + h) * size, *g = grad + (at * heads + h) * size;
                queries.put(i, query + at * query_stride + h * size);
                grads.put(i, g);
                vf centre{};
                for (int64_t d = 0; d < size; d += LANES) centre += load(o + d) * load(g + d);
                centres[i] = sum(centre);
                norms[i] = normalisers[at * heads + h];
                counts[i] = depths[s] + token + 1;
            }
            differentiate(Task<Queries, Keys>{many, num_keys, size, queries, grads, centres, norms, counts, keys, values, found.at,
                                 found.at + padded * size, grad_queries}, scale);
            for (int64_t i = 0; i < many; i++) {
                Number *to = grad_query + ((firsts[s] + begin + i / group) * heads + head * group + i % group) * size;
                scaled(grad_queries + i * size, to, size, 1.0f);
            }
            float *part = parts + 2 * size * (task[3] * kv_heads + head * num_keys);
            std::memcpy(part, found.at, num_keys * size * 4);
            std::memcpy(part + num_keys * size, found.at + padded * size, num_keys * size * 4);
        }
#pragma omp for schedule(static)
        for (int64_t slice = 0; slice < kv_heads * size / LANES; slice++) {
            const int64_t head = slice * LANES / size, d = slice * LANES % size;
            for (const int64_t *task = tasks; task < tasks + num_tasks * 4; task += 4) {
                const int64_t s = task[0], num_keys = depths[s] + task[2];
                const float *part = parts + 2 * size * (task[3] * kv_heads + head * num_keys) + d;
                for (int64_t j = 0; j < num_keys; j++) {
                    const int64_t at = (lines[offsets[s] + j] * kv_heads + head) * size + d;
                    store(grad_key + at, load(grad_key + at) + load(part + j * size));
                    store(grad_value + at, load(grad_value + at) + load(part + (num_keys + j) * size));
                }
            }
        }
    }
}

// by vectors, of numbers that they multiply
template <typename Number>
constexpr auto *in_vectors = differentiate_segments<Multiplied<Number>, QUERIES, LANES, false, Number>;

extern "C" {
auto *attend_segments_backward_float32 = in_vectors<float>;
#ifdef TILE_SIDE
auto *attend_segments_backward_bfloat16 = HAS_TILES ? differentiate_segments<bf16, BLOCK, BLOCK, true, bf16> : in_vectors<bf16>;
#else
auto *attend_segments_backward_bfloat16 = in_vectors<bf16>;
#endif
}
