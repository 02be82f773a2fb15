#include "token_stream/transformer.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <stdexcept>

#include "json.h"
#include "token_stream/matrix.h"
#include "safetensors.h"

namespace token_stream {
namespace {

constexpr int kUnknownRow = 0;
constexpr size_t kMostLayers = 1000;  // a number of a broken file must not use up the memory

size_t padded(size_t columns, size_t tile) { return (columns + tile - 1) / tile * tile; }

// As std::max_element, but of several at once.
float largest(const float* from, size_t count) {
  float most[kNarrow];
  std::fill_n(most, kNarrow, -std::numeric_limits<float>::infinity());
  size_t at = 0;
  for (; at + kNarrow <= count; at += kNarrow) {
    for (size_t lane = 0; lane < kNarrow; ++lane) most[lane] = std::max(most[lane], from[at + lane]);
  }
  for (; at < count; ++at) most[0] = std::max(most[0], from[at]);
  return *std::max_element(most, most + kNarrow);
}

// A matrix as PyTorch stores it, (out, in), into columns `from`, from + 1, ... of one that is (in, width).
void transpose_into(const std::vector<float>& matrix, size_t in, size_t from, size_t width, Matrix& to) {
  const size_t out = matrix.size() / in;
  for (size_t o = 0; o < out; ++o) {
    for (size_t i = 0; i < in; ++i) to[i * width + from + o] = matrix[o * in + i];
  }
}

// Matrices that read the same input, side by side as one, so that one product does for all.
Matrix joined(const std::vector<std::vector<float>>& matrices, size_t in) {
  size_t out = 0;
  for (const auto& matrix : matrices) out += matrix.size() / in;
  const size_t width = padded(out, kTile);
  Matrix to(in * width);
  size_t from = 0;
  for (const auto& matrix : matrices) {
    transpose_into(matrix, in, from, width, to);
    from += matrix.size() / in;
  }
  return to;
}

}  // namespace

size_t Cache::bytes() const {
  size_t floats = 0;
  for (const auto& layer : keys) floats += layer.capacity();
  for (const auto& layer : values) floats += layer.capacity();
  return floats * sizeof(float);
}

Transformer::Transformer(const std::string& path) {
  const SafeTensors file(path);
  try {
    const Json config = Json::parse(file.metadata("config"));
    ids_ = file.ids("ids");
    read_config(config);
  } catch (const std::invalid_argument& error) {
    throw std::runtime_error("weights file " + path + ": " + error.what() + ". Restore the file from the repository");
  }
  for (size_t row = 1; row < ids_.size(); ++row) row_of_[ids_[row]] = static_cast<int>(row);
  embedding_ = file.floats("model.embed_tokens.weight", {ids_.size(), hidden_});
  unembedding_ = joined({embedding_}, hidden_);
  padded_ = padded(ids_.size(), kTile);
  norm_ = file.floats("model.norm.weight", {hidden_});
  for (size_t number = 0; number < layers_.size(); ++number) load_layer(file, number);
  scores_.resize(kContext);
}

void Transformer::read_config(const Json& config) {
  hidden_ = config.at("hidden_size").size();
  inner_ = config.at("intermediate_size").size();
  heads_ = config.at("num_attention_heads").size();
  eps_ = static_cast<float>(config.at("rms_norm_eps").number());
  const size_t eos = config.at("eos_token_id").size();
  const size_t layers = config.at("num_hidden_layers").size();
  const bool present = hidden_ > 0 && inner_ > 0 && heads_ > 0 && layers > 0 && layers <= kMostLayers && ids_.size() > 1;
  if (!present || hidden_ % (kNarrow * heads_) != 0 || hidden_ % kTile != 0 || 2 * inner_ % kTile != 0 ||
      eos > static_cast<size_t>(std::numeric_limits<int32_t>::max())) {
    throw std::invalid_argument("the sizes in its configuration do not fit each other");
  }
  eos_ = static_cast<int32_t>(eos);
  head_ = hidden_ / heads_;
  layers_.resize(layers);
  make_rotary_table(config.at("rope_theta").number());
}

void Transformer::load_layer(const SafeTensors& file, size_t number) {
  const std::string prefix = "model.layers." + std::to_string(number) + ".";
  const auto matrix = [&](const std::string& name, size_t out, size_t in) {
    return file.floats(prefix + name + ".weight", {out, in});
  };
  Layer& layer = layers_[number];
  layer.attention_norm = file.floats(prefix + "input_layernorm.weight", {hidden_});
  layer.query_key_value = joined({matrix("self_attn.q_proj", hidden_, hidden_),
                                  matrix("self_attn.k_proj", hidden_, hidden_),
                                  matrix("self_attn.v_proj", hidden_, hidden_)},
                                 hidden_);
  layer.attention_out = joined({matrix("self_attn.o_proj", hidden_, hidden_)}, hidden_);
  layer.mlp_norm = file.floats(prefix + "post_attention_layernorm.weight", {hidden_});
  layer.gate_up = joined({matrix("mlp.gate_proj", inner_, hidden_), matrix("mlp.up_proj", inner_, hidden_)}, hidden_);
  layer.down = joined({matrix("mlp.down_proj", hidden_, inner_)}, inner_);
}

// Cosine and sine of every position's angles, each (context, head_dim / 2).
void Transformer::make_rotary_table(double theta) {
  const size_t half = head_ / 2;
  for (int position = 0; position < kContext; ++position) {
    for (size_t i = 0; i < half; ++i) {
      const double angle = position * std::pow(theta, -static_cast<double>(i) / static_cast<double>(half));
      cos_.push_back(static_cast<float>(std::cos(angle)));
      sin_.push_back(static_cast<float>(std::sin(angle)));
    }
  }
}

std::vector<int> Transformer::prompt_rows(const Ids& prompt) const {
  if (prompt.empty()) {
    throw std::invalid_argument("the prompt is empty: it has no token ids. Send at least one token");
  }
  if (prompt.size() + 1 >= kContext) {
    throw std::invalid_argument("the prompt has " + std::to_string(prompt.size()) + " tokens; at most " +
                                std::to_string(kContext - 2) + " are possible. Shorten it");
  }
  std::vector<int> rows{row_of_.count(eos_) ? row_of_.at(eos_) : kUnknownRow};
  for (const int32_t id : prompt) {
    const auto found = row_of_.find(id);
    rows.push_back(found == row_of_.end() ? kUnknownRow : found->second);
  }
  return rows;
}

Cache Transformer::new_cache() const {
  const std::vector<Matrix> empty(layers_.size(), Matrix(hidden_ * kContext));
  return {empty, empty};
}

std::vector<int> Transformer::read(const std::vector<Slot>& slots) {
  embed(slots);
  for (size_t number = 0; number < layers_.size(); ++number) {
    attention(layers_[number], number, slots);
    mlp(layers_[number], slots.size());
  }
  return choose(slots);
}

void Transformer::embed(const std::vector<Slot>& slots) {
  x_.resize(slots.size() * hidden_);
  for (size_t at = 0; at < slots.size(); ++at) {
    std::copy_n(&embedding_[static_cast<size_t>(slots[at].row) * hidden_], hidden_, &x_[at * hidden_]);
  }
}

// Scale each vector to a root mean square of 1, then by the weight; into normed_.
void Transformer::normalise(const std::vector<float>& from, const std::vector<float>& weight, size_t count) {
  normed_.resize(count * hidden_);
  for (size_t at = 0; at < count; ++at) {
    const float* x = &from[at * hidden_];
    float squares = 0;
    for (size_t i = 0; i < hidden_; ++i) squares += x[i] * x[i];
    const float scale = 1 / std::sqrt(squares / static_cast<float>(hidden_) + eps_);
    for (size_t i = 0; i < hidden_; ++i) normed_[at * hidden_ + i] = x[i] * scale * weight[i];
  }
}

void Transformer::attention(const Layer& layer, size_t number, const std::vector<Slot>& slots) {
  const size_t count = slots.size();
  normalise(x_, layer.attention_norm, count);
  wide_.resize(count * 3 * hidden_);
  multiply(normed_.data(), count, hidden_, layer.query_key_value.data(), 3 * hidden_, 3 * hidden_, wide_.data());
  mixed_.resize(count * hidden_);
  for (size_t at = 0; at < count; ++at) {
    float* qkv = &wide_[at * 3 * hidden_];
    store(qkv, slots[at], number);
    attend(qkv, slots[at], number, &mixed_[at * hidden_]);
  }
  multiply(mixed_.data(), count, hidden_, layer.attention_out.data(), hidden_, hidden_, normed_.data());
  for (size_t i = 0; i < count * hidden_; ++i) x_[i] += normed_[i];
}

// Turn query and key by their position's angles (rotary embedding), and put key and value into the cache.
void Transformer::store(float* qkv, const Slot& slot, size_t number) const {
  const size_t half = head_ / 2, position = static_cast<size_t>(slot.position);
  for (size_t vector = 0; vector < 2 * heads_; ++vector) {  // the queries' heads, then the keys'
    float *a = qkv + vector * head_, *b = a + half;
    for (size_t i = 0; i < half; ++i) {
      const float c = cos_[position * half + i], s = sin_[position * half + i], first = a[i];
      a[i] = first * c - b[i] * s;
      b[i] = b[i] * c + first * s;
    }
  }
  for (size_t i = 0; i < hidden_; ++i) slot.cache->keys[number][i * kContext + position] = qkv[hidden_ + i];
  for (size_t head = 0; head < heads_; ++head) {
    std::copy_n(qkv + 2 * hidden_ + head * head_, head_,
                &slot.cache->values[number][(head * kContext + position) * head_]);
  }
}

// Mix the values of all positions so far by how well their keys fit the query; `out` is (heads, head_dim).
void Transformer::attend(float* query, const Slot& slot, size_t number, float* out) {
  const size_t end = static_cast<size_t>(slot.position) + 1;
  const float scale = 1 / std::sqrt(static_cast<float>(head_));
  for (size_t i = 0; i < hidden_; ++i) query[i] *= scale;
  for (size_t head = 0; head < heads_; ++head) {
    const float* keys = &slot.cache->keys[number][head * head_ * kContext];
    multiply(query + head * head_, 1, head_, keys, kContext, padded(end, kNarrow), scores_.data());
    const float most = largest(scores_.data(), end);
    float total = 0;
    for (size_t t = 0; t < end; ++t) total += scores_[t] = std::exp(scores_[t] - most);
    float* mixed = out + head * head_;
    const float* values = &slot.cache->values[number][head * kContext * head_];
    multiply(scores_.data(), 1, end, values, head_, head_, mixed);
    for (size_t i = 0; i < head_; ++i) mixed[i] /= total;
  }
}

void Transformer::mlp(const Layer& layer, size_t count) {
  normalise(x_, layer.mlp_norm, count);
  wide_.resize(count * 2 * inner_);
  multiply(normed_.data(), count, hidden_, layer.gate_up.data(), 2 * inner_, 2 * inner_, wide_.data());
  mixed_.resize(count * inner_);
  for (size_t at = 0; at < count; ++at) {
    const float *gate = &wide_[at * 2 * inner_], *up = gate + inner_;
    for (size_t i = 0; i < inner_; ++i) mixed_[at * inner_ + i] = gate[i] / (1 + std::exp(-gate[i])) * up[i];
  }
  multiply(mixed_.data(), count, inner_, layer.down.data(), hidden_, hidden_, normed_.data());
  for (size_t i = 0; i < count * hidden_; ++i) x_[i] += normed_[i];
}

std::vector<int> Transformer::choose(const std::vector<Slot>& slots) {
  size_t wanted = 0;  // those that want a token move to the front, one behind the other
  for (size_t at = 0; at < slots.size(); ++at) {
    if (slots[at].choose) std::copy_n(&x_[at * hidden_], hidden_, &x_[wanted++ * hidden_]);
  }
  normalise(x_, norm_, wanted);
  logits_.resize(wanted * padded_);
  multiply(normed_.data(), wanted, hidden_, unembedding_.data(), padded_, padded_, logits_.data());
  std::vector<int> chosen;
  for (size_t which = 0; which < wanted; ++which) {
    float* row = &logits_[which * padded_];
    row[kUnknownRow] = -std::numeric_limits<float>::infinity();  // "unknown" is no token to say
    chosen.push_back(static_cast<int>(std::find(row, row + ids_.size(), largest(row, ids_.size())) - row));
  }
  return chosen;
}

}  // namespace token_stream
