// Gradients of attention over the segments of a tree: P = exp(q k - normaliser), dV = P' dO, dS = P (dO V' - rowsum(dO O)),
// dQ = dS K, dK = dS' Q, a tile of queries by a block of keys at a time; everything between is float32.
#include "attention.h"

constexpr int QUERIES = 8;  // of a tile; their sums fill half of 16 registers

static inline vi numbers_of_lanes() {
    vi numbers{};
    for (int i = 0; i < LANES; i++) numbers[i] = i;
    return numbers;
}

// a block of keys' rows of two gradients: first += a' x, second += b' y, with a and b (QUERIES, LANES), x and y (QUERIES, size)
static inline void add_to_keys(const float *a, const float *x, float *first, const float *b, const float *y, float *second,
                               int64_t size) {
    for (int64_t d = 0; d < size; d += 2 * LANES)
        for (int j = 0; j < LANES; j += 2) {
            vf sums[2][4];
            for (int k = 0; k < 2; k++)
                for (int part = 0; part < 2; part++) {
                    sums[k][part] = load(first + (j + k) * size + d + part * LANES);
                    sums[k][2 + part] = load(second + (j + k) * size + d + part * LANES);
                }
            for (int i = 0; i < QUERIES; i++) {
                const vf x0 = load(x + i * size + d), x1 = load(x + i * size + d + LANES);
                const vf y0 = load(y + i * size + d), y1 = load(y + i * size + d + LANES);
                for (int k = 0; k < 2; k++) {
                    const float by = a[i * LANES + j + k], and_by = b[i * LANES + j + k];
                    sums[k][0] = add_product(sums[k][0], x0, by);
                    sums[k][1] = add_product(sums[k][1], x1, by);
                    sums[k][2] = add_product(sums[k][2], y0, and_by);
                    sums[k][3] = add_product(sums[k][3], y1, and_by);
                }
            }
            for (int k = 0; k < 2; k++)
                for (int part = 0; part < 2; part++) {
                    store(first + (j + k) * size + d + part * LANES, sums[k][part]);
                    store(second + (j + k) * size + d + part * LANES, sums[k][2 + part]);
                }
        }
}

// the tile's rows: to += a keys, with a (QUERIES, LANES) and keys (LANES, size)
static inline void add_to_queries(const float *a, const float *keys, float *to, int64_t size) {
    for (int i = 0; i < QUERIES; i += 4)
        for (int64_t d = 0; d < size; d += 2 * LANES) {
            vf sums[4][2];
            for (int q = 0; q < 4; q++)
                for (int part = 0; part < 2; part++) sums[q][part] = load(to + (i + q) * size + d + part * LANES);
            for (int j = 0; j < LANES; j++) {
                const vf k0 = load(keys + j * size + d), k1 = load(keys + j * size + d + LANES);
                for (int q = 0; q < 4; q++) {
                    sums[q][0] = add_product(sums[q][0], k0, a[(i + q) * LANES + j]);
                    sums[q][1] = add_product(sums[q][1], k1, a[(i + q) * LANES + j]);
                }
            }
            for (int q = 0; q < 4; q++)
                for (int part = 0; part < 2; part++) store(to + (i + q) * size + d + part * LANES, sums[q][part]);
        }
}

// one segment's queries of one key head
struct Part {
    int64_t many, num_keys, size;
    const float *queries, *grads;  // (many, size), queries times the scale; both filled up with zeros to whole tiles
    const float *centres, *normalisers;
    const int64_t *counts;         // keys that each query sees; 0 in the filling
    const float *key_blocks, *value_blocks, *keys;  // (keys / LANES, size, LANES) twice, (keys, size); filled up to whole blocks
    float *grad_keys, *grad_values, *grad_queries;  // added to
};

static void differentiate(const Part &at) {
    const vi lanes = numbers_of_lanes();
    alignas(64) float weights[QUERIES * LANES], scores[QUERIES * LANES];
    for (int64_t start = 0; start < at.many; start += QUERIES) {
        const float *queries[QUERIES], *grads[QUERIES];
        float *to_weights[QUERIES], *to_scores[QUERIES];
        int64_t most = 0;
        for (int i = 0; i < QUERIES; i++) {
            queries[i] = at.queries + (start + i) * at.size;
            grads[i] = at.grads + (start + i) * at.size;
            to_weights[i] = weights + i * LANES;
            to_scores[i] = scores + i * LANES;
            most = at.counts[start + i] > most ? at.counts[start + i] : most;
        }
        for (int64_t j = 0; j < most; j += LANES) {
            score_blocks<QUERIES, 1>(queries, at.key_blocks + j * at.size, at.size, to_weights);
            score_blocks<QUERIES, 1>(grads, at.value_blocks + j * at.size, at.size, to_scores);
            for (int i = 0; i < QUERIES; i++) {
                const vi seen = lanes < static_cast<int32_t>(at.counts[start + i] - j);
                const vf p = choose(seen, exponential(load(to_weights[i]) - at.normalisers[start + i]), vf{});
                store(to_weights[i], p);
                store(to_scores[i], p * (load(to_scores[i]) - at.centres[start + i]));
            }
            add_to_keys(scores, queries[0], at.grad_keys + j * at.size, weights, grads[0], at.grad_values + j * at.size, at.size);
            add_to_queries(scores, at.keys + j * at.size, at.grad_queries + start * at.size, at.size);
        }
    }
}

// As attend_segments, with its results `out` and normalisers and the gradient `grad` of out, both (M, heads, size).
// tasks are (num_tasks, 4): a segment, its first query token and the one after its last, and where in lines' count the
// task's keys have room in `parts`, 2 x size x kv_heads numbers for each. grad_query is (M, heads, size); grad_key and
// grad_value (T, kv_heads, size) are added to, in the tasks' order whoever was first.
template <typename Number>
static void attend_segments_backward(const Number *query, int64_t query_stride, const Number *key, int64_t key_stride,
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
            const int64_t padded = whole_blocks(num_keys), filled = (many + QUERIES - 1) / QUERIES * QUERIES;
            Scratch blocks(2 * padded * size), keys(padded * size), rows(3 * filled * size), numbers(2 * filled);
            Scratch found(2 * padded * size), places(2 * filled);
            std::memset(blocks.at, 0, 2 * padded * size * 4);
            std::memset(keys.at, 0, padded * size * 4);
            std::memset(rows.at, 0, 3 * filled * size * 4);
            std::memset(numbers.at, 0, 2 * filled * 4);
            std::memset(found.at, 0, 2 * padded * size * 4);
            std::memset(places.at, 0, 2 * filled * 4);
            int64_t *counts = reinterpret_cast<int64_t *>(places.at);
            float *value_blocks = blocks.at + padded * size, *queries = rows.at, *grads = queries + filled * size;
            float *grad_queries = grads + filled * size, *centres = numbers.at, *norms = centres + filled;
            for (int64_t j = 0; j < num_keys; j++) {
                const int64_t place = lines[offsets[s] + j], block = j / LANES * size * LANES + j % LANES;
                const Number *k = key + place * key_stride + head * size, *v = value + place * value_stride + head * size;
                for (int64_t d = 0; d < size; d++) {
                    keys.at[j * size + d] = blocks.at[block + d * LANES] = widen(k[d]);
                    value_blocks[block + d * LANES] = widen(v[d]);
                }
            }
            for (int64_t i = 0; i < many; i++) {
                const int64_t token = begin + i / group, at = firsts[s] + token, h = head * group + i % group;
                const Number *o = out + (at * heads + h) * size, *g = grad + (at * heads + h) * size;
                scaled(query + at * query_stride + h * size, queries + i * size, size, scale);
                scaled(g, grads + i * size, size, 1.0f);
                vf centre{};
                for (int64_t d = 0; d < size; d += LANES) centre += load(o + d) * load(g + d);
                centres[i] = sum(centre);
                norms[i] = normalisers[at * heads + h];
                counts[i] = depths[s] + token + 1;
            }
            differentiate({many, num_keys, size, queries, grads, centres, norms, counts, blocks.at, value_blocks, keys.at,
                           found.at, found.at + padded * size, grad_queries});
            for (int64_t i = 0; i < many; i++) {
                Number *to = grad_query + ((firsts[s] + begin + i / group) * heads + head * group + i % group) * size;
                scaled(grad_queries + i * size, to, size, scale);
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

KERNEL(attend_segments_backward)
