#include "token_stream/transformer.h"

#include <cmath>
#include <cstring>
#include <stdexcept>

#include "recorder.h"

namespace token_stream {
namespace {

constexpr const char* kPrompts[] = {"vanilla", "english", "emoji", "not_in_corpus", "question", "long"};
constexpr double kTolerance = 1e-4;  // as tests/unit/test_transformer.py explains it

Transformer model() { return Transformer(checking::file("models/token_stream_latest/recipes.safetensors")); }

// Tokens of one sequence, from a position on; the last one chooses, or all.
std::vector<Slot> slots(const std::vector<int>& rows, int position, Cache& cache, bool all = false) {
  std::vector<Slot> out;
  for (const int row : rows) out.push_back({row, position++, &cache, all});
  out.back().choose = true;
  return out;
}

// Greedy: the ids up to the end token, which counts as the end only.
Ids generate(Transformer& model, const Ids& prompt) {
  Cache cache = model.new_cache();
  std::vector<int> rows = model.prompt_rows(prompt);
  Ids ids;
  for (int position = 0; position + static_cast<int>(rows.size()) <= kContext;) {
    const int row = model.read(slots(rows, position, cache)).front();
    position += static_cast<int>(rows.size());
    if (model.id(row) == model.eos()) break;
    ids.push_back(model.id(row));
    if (position + 1 > kContext - 1) break;
    rows = {row};
  }
  return ids;
}

double worst(const float* got, const float* expected, size_t rows) {
  double most = 0;
  for (size_t row = 1; row < rows; ++row) {  // row 0, "unknown", is masked
    most = std::max(most, std::fabs(static_cast<double>(got[row]) - static_cast<double>(expected[row])));
  }
  return most;
}

// Rows of a prompt and the beginning of its greedy answer, and the logits that belong to the last of them.
struct Text {
  std::vector<int> rows;
  size_t prefill, count;
  std::vector<float> logits;
};

Text text(const Transformer& model, const std::string& name) {
  const Ids prompt = reference().ids(name + ".prompt"), greedy = reference().ids(name + ".greedy");
  const size_t count = std::string(name) == "long" ? 8 : 10;
  Ids ids = prompt;
  const auto used = static_cast<std::ptrdiff_t>(std::min(count - 1, greedy.size()));
  ids.insert(ids.end(), greedy.begin(), greedy.begin() + used);
  const std::vector<float> logits = reference().floats(name + ".logits", {count, model.rows()});
  return {model.prompt_rows(ids), prompt.size() + 1, count, logits};
}

TEST(logits_of_a_text_at_once) {
  Transformer transformer = model();
  for (const char* name : kPrompts) {
    const Text given = text(transformer, name);
    Cache cache = transformer.new_cache();
    transformer.read(slots(given.rows, 0, cache, true));
    for (size_t i = 0; i < given.count; ++i) {
      const float *got = transformer.logits(given.prefill - 1 + i), *expected = &given.logits[i * transformer.rows()];
      CHECK(worst(got, expected, transformer.rows()) < kTolerance);
    }
  }
}

TEST(logits_token_by_token) {
  Transformer transformer = model();
  for (const char* name : kPrompts) {
    const Text given = text(transformer, name);
    Cache cache = transformer.new_cache();
    for (size_t at = 0; at < given.rows.size(); ++at) {
      transformer.read(slots({given.rows[at]}, static_cast<int>(at), cache));
      if (at + 1 < given.prefill) continue;
      const size_t i = at + 1 - given.prefill;
      CHECK(worst(transformer.logits(0), &given.logits[i * transformer.rows()], transformer.rows()) < kTolerance);
    }
  }
}

TEST(greedy_ids) {
  Transformer transformer = model();
  for (const char* name : kPrompts) {
    CHECK_EQUAL(generate(transformer, reference().ids(std::string(name) + ".prompt")),
                reference().ids(std::string(name) + ".greedy"));
  }
  const Ids ids = generate(transformer, reference().ids("vanilla.prompt"));
  CHECK_EQUAL(Ids(ids.begin(), ids.begin() + 8), reported());
  CHECK_EQUAL(ids.size(), 8U + 87U);
}

std::vector<float> logits(const Transformer& model, size_t which) {
  return {model.logits(which), model.logits(which) + model.rows()};
}

bool same_bits(const std::vector<float>& a, const std::vector<float>& b) {
  return a.size() == b.size() && std::memcmp(a.data(), b.data(), a.size() * sizeof(float)) == 0;
}

// Alone, among others at other places, and in the order reversed: the same bits, token by token.
TEST(a_sequence_has_the_same_bits_alone_and_among_others) {
  Transformer transformer = model();
  const Text ours = text(transformer, "english");
  const std::vector<int> other = text(transformer, "vanilla").rows, third = text(transformer, "emoji").rows;
  Cache alone = transformer.new_cache(), crowd = transformer.new_cache(), before = transformer.new_cache(),
        after = transformer.new_cache();
  for (size_t at = 0; at < ours.rows.size(); ++at) {
    const int position = static_cast<int>(at);
    transformer.read(slots({ours.rows[at]}, position, alone));
    const std::vector<float> expected = logits(transformer, 0);
    std::vector<Slot> together;
    if (at < other.size()) together.push_back({other[at], position, &before, at % 2 == 0});
    const size_t which = together.empty() || !together.front().choose ? 0 : 1;
    together.push_back({ours.rows[at], position, &crowd, true});
    if (at >= 3 && at - 3 < third.size()) together.push_back({third[at - 3], position - 3, &after, true});
    transformer.read(together);
    CHECK(same_bits(logits(transformer, which), expected));
  }
  CHECK(alone.keys == crowd.keys);
  CHECK(alone.values == crowd.values);
}

TEST(a_prompt_has_the_same_bits_at_once_and_token_by_token) {
  Transformer transformer = model();
  const std::vector<int> rows = text(transformer, "question").rows;
  Cache at_once = transformer.new_cache(), stepwise = transformer.new_cache();
  transformer.read(slots(rows, 0, at_once));
  const std::vector<float> expected = logits(transformer, 0);
  for (size_t at = 0; at < rows.size(); ++at) transformer.read(slots({rows[at]}, static_cast<int>(at), stepwise));
  CHECK(same_bits(logits(transformer, 0), expected));
}

TEST(a_full_context) {
  Transformer transformer = model();
  Cache cache = transformer.new_cache();
  transformer.read(slots(std::vector<int>(kContext, 5), 0, cache));
  CHECK(std::isfinite(transformer.logits(0)[1]));
  CHECK_EQUAL(cache.bytes(), 3U * 2U * 64U * kContext * sizeof(float));  // layers, keys and values, width
}

TEST(prompts) {
  const Transformer transformer = model();
  CHECK_EQUAL(transformer.eos(), 151643);
  CHECK_EQUAL(transformer.rows(), 934U);
  CHECK_EQUAL(transformer.prompt_rows({-7, 2'000'000'000}).back(), 0);
  CHECK_EQUAL(transformer.prompt_rows(Ids(254, 64)).size(), 255U);
  CHECK_THROWS(std::invalid_argument, transformer.prompt_rows({}), "the prompt is empty: it has no token ids");
  CHECK_THROWS(std::invalid_argument, transformer.prompt_rows(Ids(255, 64)),
               "has 255 tokens; at most 254 are possible");
}

TEST(a_file_that_is_no_model) {
  const std::string tokens = checking::file("models/token_stream_latest/token_bytes.safetensors");
  CHECK_THROWS(std::runtime_error, Transformer(tokens), "metadata \"config\" is missing");
}

}  // namespace
}  // namespace token_stream
