// The tiny language model: a Llama-style decoder with a KV cache, greedy and deterministic. The same weights file, and
// the same arithmetic up to rounding, as model_repository/inference/transformer.py.
#pragma once

#include <cstdint>
#include <string>
#include <unordered_map>
#include <vector>

#include "token_bytes.h"
#include "token_stream/matrix.h"

namespace token_stream {

constexpr int kContext = 256;  // longest sequence in tokens: start token, prompt and generated tokens together

// Keys and values of one sequence. This state must grow: each token adds its own, and reads all that came before.
struct Cache {
  // Of each layer: keys (heads, head_dim, context), values (heads, context, head_dim).
  std::vector<Matrix> keys, values;

  size_t bytes() const;
};

// One token that the model is to read: its row in the embedding table, its place in its sequence, and that sequence's
// cache, which takes in its keys and values. Tokens of one sequence follow each other in order.
struct Slot {
  int row;
  int position;
  Cache* cache;
  bool choose;  // whether the most likely next token is wanted
};

class Transformer {
 public:
  // Throws std::runtime_error where the file does not hold this model.
  explicit Transformer(const std::string& path);

  // Rows of the start token and a prompt. Throws std::invalid_argument for a prompt that is empty or too long.
  std::vector<int> prompt_rows(const Ids& prompt) const;

  Cache new_cache() const;

  // Read tokens of any number of sequences together, and return the most likely next row for each that wants one.
  // What is computed for a token does not depend on the others that are read with it, to the last bit.
  std::vector<int> read(const std::vector<Slot>& slots);

  // Logits of the newest `read`, one for each row, of its `which`-th token that wanted one.
  const float* logits(size_t which) const { return &logits_[which * padded_]; }

  int32_t id(int row) const { return ids_[static_cast<size_t>(row)]; }
  int32_t eos() const { return eos_; }
  size_t rows() const { return ids_.size(); }

 private:
  struct Layer {
    std::vector<float> attention_norm, mlp_norm;
    Matrix query_key_value, attention_out, gate_up, down;
  };

  void read_config(const class Json& config);
  void load_layer(const class SafeTensors& file, size_t number);
  void make_rotary_table(double theta);
  void embed(const std::vector<Slot>& slots);
  void attention(const Layer& layer, size_t number, const std::vector<Slot>& slots);
  void attend(float* query, const Slot& slot, size_t number, float* out);
  void store(float* qkv, const Slot& slot, size_t number) const;
  void mlp(const Layer& layer, size_t count);
  void normalise(const std::vector<float>& from, const std::vector<float>& weight, size_t count);
  std::vector<int> choose(const std::vector<Slot>& slots);

  size_t hidden_, inner_, heads_, head_, padded_;  // padded_: rows of the embedding, up to a multiple of the tile
  float eps_;
  int32_t eos_;
  Ids ids_;  // row -> id; row 0 stands for every id that the model does not know
  std::unordered_map<int32_t, int> row_of_;
  std::vector<float> embedding_, norm_, cos_, sin_;
  Matrix unembedding_;
  std::vector<Layer> layers_;
  std::vector<float> x_, normed_, wide_, mixed_, scores_, logits_;  // of the newest read; kept to spare allocations
};

}  // namespace token_stream
